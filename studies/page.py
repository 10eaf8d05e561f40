"""One page of results from the committed tables: `python -m studies.page` writes `summary.md` and `ablations.png`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import false_discovery_control

from finer1_lite.evaluate.statistics import over_seeds
from finer1_lite.files import write_whole
from studies.differences import paired
from studies.formatting import PROBES, TASKS, cells, forest, in_words, rounded, section
from studies.variants import LABELS, TABLES


def story(rows: pd.DataFrame, folder: Path) -> str:
    """Accuracy of the story's methods, and what the paired differences say."""
    rows = rows[rows.metric == "accuracy"]
    sizes = " and ".join(f"{n} images of {split} species" for split, n in rows.groupby("split").n.first().items())
    gaps = pd.read_csv(folder / "differences.csv").query("protocol == 'open'")
    said = "\n".join(f"- {r.difference}, {r.split} species: {rounded(r.mean, r.low, r.high, sign=True)} points"
                     for r in gaps.itertuples())  # fmt: skip
    text = (
        f"Percent right on test images, mean over {rows.seed.nunique()} seeds with a 95% interval; {sizes} for each "
        "seed. Open: the name is asked for; closed: four look-alikes to choose from.\n\n"
        f"Paired differences, open-world, with 95% t-intervals over seeds:\n\n{said}"
    )
    return section("The story: five methods", text, cells(rows, ["method"], ["protocol", "split"]), "story.png")


def baselines(rows: pd.DataFrame, folder: Path) -> str:
    """What a practitioner would try first, beside the story's methods; and where it wins."""
    table = cells(rows, ["baseline"], ["protocol", "split"])
    table["has met"] = table.baseline.map(rows.drop_duplicates("baseline").set_index("baseline").met)
    wins = []
    for (protocol, split), part in over_seeds(rows, ["baseline", "protocol", "split"]).groupby(["protocol", "split"]):
        best = part.loc[part["mean"].idxmax()]
        share = rounded(*best[["mean", "low", "high"]])
        wins.append(f"- {protocol}-world, {split} species: best is `{best.baseline}` with {share}%")
    text = (
        f"The same questions for other ways to name a bird: percent right, {rows.seed.nunique()} seed(s), with 95% "
        "intervals. What each has met before differs, so read the last column too.\n\n"
    )
    return section("Baselines", text + "\n".join(wins), table)


def ablations(rows: pd.DataFrame, folder: Path) -> str:
    """Every variant against its reference, as one picture, and the sentences of those that differ."""
    rows = rows[(rows.variant != rows.against) & (rows.table != "methods")]
    panels = {
        f"{split} species": [
            (LABELS[r.variant] + (f" ({r.table.split(', ')[1]})" if ", " in r.table else ""),
             *(100 * x for x in (r.difference, r.low, r.high)))
            for table in TABLES for r in rows[(rows.table == table) & (rows.split == split)].itertuples()
        ]
        for split in ("seen", "unseen")
    }  # fmt: skip
    forest(panels, "points minus the reference's").savefig(folder / "ablations.png", dpi=90)
    plt.close()
    once = rows.drop_duplicates(["variant", "against", "split"])
    told, p = once[(once.low > 0) | (once.high < 0)], once.p.dropna()
    kept = int((false_discovery_control(p) < 0.05).sum()) if len(p) else 0
    said = [
        f"- {LABELS[r.variant]}: {'better' if r.low > 0 else 'worse'} than {LABELS[r.against]} on {r.split} species "
        f"({100 * r.difference:+.1f} points, {100 * r.low:+.1f} to {100 * r.high:+.1f})."
        for r in told.sort_values("difference").itertuples()
    ]
    text = (
        "Open-world accuracy minus the reference's (TAPO; for Stage 1 alone CoT SFT on all chains), "
        f"{len(str(rows.each_seed.iloc[0]).split())} seeds. 20 steps, half of the story's, and DAPO has TAPO's "
        "learning rate here: compare these figures only with each other. In the picture a full dot is a difference "
        f"whose interval leaves zero out. {len(told)} of {len(once)} comparisons do, {kept} also after allowing for "
        "their number (Benjamini and Hochberg; the table of ways to train is left out):\n\n"
    )
    return section("Ablations: one thing changed at a time", text + "\n".join(said), picture="ablations.png")


def why(rows: pd.DataFrame, folder: Path) -> str:
    """What each method sees, knows and uses."""
    found = in_words(rows, ["measure", "part"], PROBES, "probe")
    text = f"Percent, mean over {rows.seed.nunique()} seeds with a 95% interval; `studies/why.py` says what each is."
    return section("Why it works: what changed inside", text, found)


def transfer(rows: pd.DataFrame, folder: Path) -> str:
    """What else changes when a model learns to name."""
    key = ["task", "measure", "split"]
    table, guess = in_words(rows, key, TASKS, "task"), rows.groupby(key).chance.mean()
    table["guessing"] = ["" if guess[k] != guess[k] else f"{100 * guess[k]:.0f}" for k in TASKS]
    unseen = rows[rows.split == "unseen"].pivot_table("value", "seed", ["task", "measure", "method"])
    written = ", ".join(f"{100 * share:.0f}" for share in unseen["facts", "two steps", "tapo"])
    kinds = [kind for kind in unseen["shift"].columns.unique("measure") if kind != "clean"]
    gains = [paired(unseen["shift", kind, "tapo"] - unseen["shift", kind, "cot_sft"])["low"] > 0 for kind in kinds]
    text = (
        f"Percent, mean over {rows.seed.nunique()} seeds with a 95% interval; `studies/transfer.py` describes each "
        "task.\n\nSeeds differ in what they still write: facts looked up in a second, text-only question, unseen "
        f"species, TAPO: {written}%, seed by seed. On {sum(gains)} of {len(gains)} kinds of worse pictures TAPO names"
        " more unseen species than CoT SFT (95% t-intervals of paired differences)."
    )
    return section("Transfer: what else changes", text, table)


def write_page(folder: Path) -> Path:
    """Write the page from the tables in `folder`; returns its path."""
    note = "Bird world, tiny model, CPU. Made by `python -m studies.page`."
    parts = [make(pd.read_csv(folder / name), folder) for name, make in PARTS.items() if (folder / name).exists()]
    return write_whole(folder / "summary.md", "\n".join(["# finer1_lite: results", "", note, "", *parts]))


PARTS = {
    "results.csv": story, "baselines.csv": baselines, "ablations.csv": ablations, "why.csv": why,
    "transfer.csv": transfer,
}  # fmt: skip


if __name__ == "__main__":
    print(write_page(Path("studies/results")))
