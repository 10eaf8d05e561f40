"""One page of results from the committed tables: `python -m studies.page` writes `summary.md` and its picture `ablations.png`.

A part whose table is not there is left out. Figures are rounded to what their interval allows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import false_discovery_control

from finer1_lite import plots
from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.statistics import over_seeds
from finer1_lite.files import write_whole
from studies.differences import paired
from studies.variants import LABELS, TABLES
from studies.words import PROBES, TASKS

def rounded(mean: float, low: float, high: float, sign: bool = False) -> str:
    """A share in percent, or a difference (`sign`) in points, with its interval; a decimal only below two points' width.

    The interval of a share ends at 0 and 100; where seeds do not differ there is none.

    >>> rounded(0.6981, 0.661, 0.732), rounded(0.004, 0.002, 0.006), rounded(0.058, 0.022, 0.095, sign=True)
    ('70 (66 to 73)', '0.4 (0.2 to 0.6)', '+6 (+2 to +10)')
    >>> rounded(0.21, -0.14, 0.56)
    '21 (0 to 56)'
    """
    digits = 0 if 100 * (high - low) >= 2 else 1
    if not sign and low == low:
        low, high = max(0.0, low), min(1.0, high)
    a, b, c = (f"{round(100 * x, digits) + 0.0:{'+' if sign else ''}.{digits}f}" for x in (mean, low, high))
    return a if low != low else f"{a} ({b} to {c})"  # one seed has no interval


def cells(rows: pd.DataFrame, index: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean and interval over seeds as a table of `rounded` cells: `index` down, `columns` across, in their first order."""
    found = over_seeds(rows, [*index, *columns])
    found["cell"] = [rounded(*ends) for ends in found[["mean", "low", "high"]].itertuples(index=False)]
    made = found.pivot_table(index=list(index), columns=list(columns), values="cell", aggfunc="first", sort=False)
    best = found.groupby(list(index), sort=False)["mean"].mean().sort_values(ascending=False, kind="stable").index
    made.columns = [", ".join(c) if isinstance(c, tuple) else c for c in made.columns]
    return made.loc[best].reset_index()


def section(title: str, text: str, table: pd.DataFrame | None = None, picture: str | None = None) -> str:
    """A part of the page as Markdown."""
    lines = [f"## {title}", "", text, ""]
    if table is not None:
        rows = [table.columns, ["---"] * len(table.columns), *table.fillna("").astype(str).values]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(lines + ([f"![{title}]({picture})", ""] if picture else []))


def story(rows: pd.DataFrame, folder: Path) -> str:
    """Accuracy of the story's methods, and what the paired differences say."""
    rows = rows[rows.metric == "accuracy"]
    sizes = " and ".join(f"{n} images of {split} species" for split, n in rows.groupby("split").n.first().items())
    gaps = pd.read_csv(folder / "differences.csv").query("protocol == 'open'")
    said = "\n".join(f"- {r.difference}, {r.split} species: {rounded(r.mean, r.low, r.high, sign=True)} points"
                     for r in gaps.itertuples())  # fmt: skip
    text = (
        f"Percent right on test images, mean over {rows.seed.nunique()} seeds with a 95% interval; {sizes} for each seed. "
        "Open: the name is asked for; closed: four look-alikes to choose from.\n\n"
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
        f"The same questions for other ways to name a bird: percent right, {rows.seed.nunique()} seed(s), with 95% intervals. What "
        "each has met before differs, so read the last column too.\n\n"
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
    plots.forest(panels, "points minus the reference's").savefig(folder / "ablations.png", dpi=90)
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
        f"{len(str(rows.each_seed.iloc[0]).split())} seeds. 20 steps, half of the story's, and DAPO has TAPO's learning rate here: "
        "compare these figures only with each other. In the picture a full dot is a difference whose interval leaves zero out. "
        f"{len(told)} of {len(once)} comparisons do, {kept} also after allowing for their number (Benjamini and Hochberg; the "
        "table of ways to train is left out):\n\n"
    )
    return section("Ablations: one thing changed at a time", text + "\n".join(said), picture="ablations.png")


def in_words(rows: pd.DataFrame, key: list[str], words: dict[tuple, str], heading: str) -> pd.DataFrame:
    """The rows of `words` (values of `key` -> what it is) as a table: methods across, as `rounded`."""
    found = over_seeds(rows, [*key, "method"]).set_index([*key, "method"])[["mean", "low", "high"]]
    lines = [{heading: what} | {m: rounded(*found.loc[(*k, m)]) for m in METHODS if (*k, m) in found.index}
             for k, what in words.items()]  # fmt: skip
    return pd.DataFrame(lines, columns=[heading, *METHODS])


def why(rows: pd.DataFrame, folder: Path) -> str:
    """What each method sees, knows and uses."""
    text = f"Percent, mean over {rows.seed.nunique()} seeds with a 95% interval; `studies/why.py` says how each is measured."
    return section("Why it works: what changed inside", text, in_words(rows, ["measure", "part"], PROBES, "probe"))


def transfer(rows: pd.DataFrame, folder: Path) -> str:
    """What else changes when a model learns to name."""
    key = ["task", "measure", "split"]
    table, guess = in_words(rows, key, TASKS, "task"), rows.groupby(key).chance.mean()
    table["guessing"] = ["" if guess[k] != guess[k] else f"{100 * guess[k]:.0f}" for k in TASKS]
    unseen = rows[rows.split == "unseen"].pivot_table(index="seed", columns=["task", "measure", "method"], values="value")
    written = ", ".join(f"{100 * share:.0f}" for share in unseen["facts", "two steps", "tapo"])
    shifts = [kind for kind in unseen["shift"].columns.unique("measure") if kind != "clean"]
    gains = [paired(unseen["shift", kind, "tapo"] - unseen["shift", kind, "cot_sft"])["low"] > 0 for kind in shifts]
    text = (
        f"Percent, mean over {rows.seed.nunique()} seeds with a 95% interval; `studies/transfer.py` describes each task.\n\n"
        "Seeds differ in what they still write: facts looked up in a second, text-only question, unseen species, TAPO: "
        f"{written}%, seed by seed. On {sum(gains)} of {len(gains)} kinds of worse pictures TAPO names more unseen species than "
        "CoT SFT (95% t-intervals of paired differences)."
    )
    return section("Transfer: what else changes", text, table)


def write_page(folder: Path) -> Path:
    """Write the page from the tables in `folder`; returns its path."""
    note = "Bird world, tiny model, CPU. Made by `python -m studies.page`."
    parts = [make(pd.read_csv(folder / name), folder) for name, make in MAKERS.items() if (folder / name).exists()]
    return write_whole(folder / "summary.md", "\n".join(["# finer1_lite: results", "", note, "", *parts]))


MAKERS = {
    "results.csv": story, "baselines.csv": baselines, "ablations.csv": ablations, "why.csv": why, "transfer.csv": transfer,
}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("studies/results"))
    print(write_page(parser.parse_args().folder))
