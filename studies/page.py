"""One page of results from the committed tables: `python -m studies.page` writes `summary.md` and `ablations.png`.

The tables that chapters show go to files of their own, too: `main_table.csv`, `scorecard.csv`, `ablation_table.csv`,
`why_table.csv` and `transfer_table.csv`; the core of the score card goes into README.md.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import false_discovery_control

from finer1_lite.config import RESULTS
from finer1_lite.files import write_csv, write_whole
from studies.figures import gap, load
from studies.formatting import PROBES, TASKS, forest, in_words, markdown, rounded, section
from studies.scorecard import score
from studies.tables import SPLITS, descriptions_table, main_table, share
from studies.variants import CHAINS, LABELS, TABLES

MARKS = "<!-- card: written by python -m studies.page -->", "<!-- end -->"  # in README.md


def fewest_to_most(seeds: pd.Series) -> str:
    """How many seeds the comparisons of a table have, in words: "3 to 5 seeds"."""
    return " to ".join(map(str, sorted({seeds.min(), seeds.max()}))) + " seeds"


def ablation_gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Every variant that was run against the last one of its table: table, variant, against, split, and `gap`."""
    run = set(rows[rows.study == "ablations"].method)
    return pd.DataFrame([
        {"table": table, "variant": name, "against": names[-1], "split": split}
        | gap(rows, "ablations", name, names[-1], "open", split)
        for table, names in TABLES.items() for name in names[:-1] for split in SPLITS[:2] if name in run
    ])  # fmt: skip


def ablations(rows: pd.DataFrame, folder: Path) -> str:
    """Every variant against its reference, as one picture and as a table with each seed."""
    gaps = ablation_gaps(rows)
    panels = {
        f"{split} species": [
            (LABELS[r.variant] + (f" ({r.table.split(', ')[1]})" if r.variant.removesuffix("+tapo") in CHAINS else ""),
             *(100 * x for x in (r.mean, r.low, r.high)))
            for r in gaps[gaps.split == split].itertuples()
        ]
        for split in SPLITS[:2]
    }  # fmt: skip
    forest(panels, "points minus the reference's").savefig(folder / "ablations.png", dpi=90)
    plt.close()
    told, p = gaps[(gaps.low > 0) | (gaps.high < 0)], gaps.p.dropna()
    kept = int((false_discovery_control(p) < 0.05).sum()) if len(p) else 0
    text = (
        f"Open-world accuracy minus that of each table's last variant, {fewest_to_most(gaps.seeds)}. 12 steps instead "
        "of the story's 40: compare them only with each other. A full dot is a difference whose interval leaves "
        f"zero out: {len(told)} of {len(gaps)}, and {kept} after allowing for their number (Benjamini and Hochberg)."
    )
    lines = [
        {"table": r.table, "variant": LABELS[r.variant], "against": LABELS[r.against], "split": r.split,
         "accuracy": share(rows, "ablations", r.variant, "open", r.split),
         "difference": rounded(r.mean, r.low, r.high, sign=True),
         "each seed": " ".join(f"{100 * float(x):+.0f}" for x in r.each_seed.split())}
        for r in gaps.itertuples()
    ]  # fmt: skip
    write_csv(folder / "ablation_table.csv", lines)
    return section("Ablations: one thing changed at a time", text, pd.DataFrame(lines), "ablations.png")


def write_page(folder: Path, readme: Path) -> Path:
    """Write the page from the tables in `folder`, and the core of its score card into `readme`; returns its path."""
    rows = load(folder)
    card = pd.DataFrame(score(rows))
    write_csv(folder / "scorecard.csv", card.to_dict("records"))
    shown = pd.DataFrame({
        "claim": card.claim, "asked": card.protocol, "who": card.who,
        "they say": card.points.map(lambda x: f"{x:+.1f}" if x == x else ""),
        "where": [f"{r.a} - {r.b}; {r.split}" for r in card.itertuples()],
        "measured": [rounded(*(x / 100 for x in (r.mean, r.low, r.high)), sign=True) for r in card.itertuples()],
        "seeds": card.seeds, "verdict": card.verdict,
    })  # fmt: skip
    said = " ".join(f"{what.capitalize()}: {n}." for what, n in card.verdict.value_counts().items())
    core = shown[card.core].rename(columns={"they say": "paper", "measured": "here"})
    before, after = (readme.read_text(encoding="utf-8").split(mark) for mark in MARKS)
    core = markdown(core[["claim", "asked", "paper", "here", "verdict"]])
    text = f"{len(card)} claims, {fewest_to_most(card.seeds)}. {said}\n\n{core}\n"
    write_whole(readme, f"{before[0]}{MARKS[0]}\n{text}{MARKS[1]}{after[1]}")
    main, why, transfer = main_table(rows), pd.read_csv(folder / "why.csv"), pd.read_csv(folder / "transfer.csv")
    probes = in_words(why, ["measure", "part"], PROBES, "probe")
    tasks = in_words(transfer, ["task", "measure", "split"], TASKS, "task")
    for name, table in {"main_table": main, "why_table": probes, "transfer_table": tasks}.items():
        write_csv(folder / f"{name}.csv", table.to_dict("records"))
    sizes = pd.read_csv(folder / "results.csv").groupby("split").n.first()
    asked = " and ".join(f"{n} images of {split} species" for split, n in sizes.items())
    parts = [
        section("Score card", f"{len(card)} claims. {said} Points with 95% t-intervals of paired differences over "
                "seeds; `studies/scorecard.py` says when a claim holds.", shown),
        section("The paper's tables in miniature", f"Percent right on test images ({asked} for each seed), mean over "
                "seeds (DAPO and TAPO have five more) with a 95% interval, and the paper's figure for Qwen2.5-VL-3B "
                "(closed: accuracy; open: text inclusion) beside it. What each had met differs.", main, "story.png"),
        section("The table of the first description", "Points, closed-world; its figures are not the paper's.",
                descriptions_table(rows)),
        ablations(rows, folder),
        section("Why it works: what changed inside", f"Percent, {why.seed.nunique()} seeds; `studies/why.py` says what"
                " each is.", probes),
        section("Transfer: what else changes", f"Percent, {transfer.seed.nunique()} seeds; `studies/transfer.py` "
                "describes each task.", tasks),
    ]  # fmt: skip
    title = ["# finer1_lite: results", "", "Bird world, tiny model, CPU. Made by `python -m studies.page`.", ""]
    return write_whole(folder / "summary.md", "\n".join([*title, *parts]))


if __name__ == "__main__":
    print(write_page(RESULTS, Path("README.md")))
