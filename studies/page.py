"""One page of results from the committed tables: `python -m studies.page` writes it to `results/`.

`summary.md` and `summary.html` (one file, pictures inside) hold the same parts: methods, baselines, ablations, probes,
transfer. Each part comes from one CSV; a part whose CSV is not there is left out. Figures are rounded to what their
interval allows.
"""

import argparse
import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import false_discovery_control

from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.statistics import over_seeds
from studies import plots
from studies.ablations import TABLES, label_of, verdict


@dataclass(frozen=True)
class Part:
    """A heading, what to read from it, a table and a picture's file name (both optional)."""

    title: str
    text: str
    table: pd.DataFrame | None = None
    picture: str | None = None


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


def wide(rows: pd.DataFrame, index: str, columns: Sequence[str]) -> pd.DataFrame:
    """Rows of mean, low, high as a table of `rounded` cells: `index` down, `columns` across; best mean of a row first."""
    cells = rows.assign(cell=[rounded(*ends) for ends in rows[["mean", "low", "high"]].itertuples(index=False)])
    made = cells.pivot(index=index, columns=list(columns), values="cell")
    made.columns = [", ".join(c) if isinstance(c, tuple) else c for c in made.columns]
    order = rows.groupby(index)["mean"].mean().sort_values(ascending=False).index
    return made.loc[order].reset_index()


def markdown(part: Part) -> str:
    """A part as Markdown."""
    lines = [f"## {part.title}", "", part.text, ""]
    if part.table is not None:
        rows = [part.table.columns, ["---"] * len(part.table.columns), *part.table.fillna("").astype(str).values]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    if part.picture:
        lines += [f"![{part.title}]({part.picture})", ""]
    return "\n".join(lines)


def webpage(part: Part, folder: Path) -> str:
    """A part as HTML, its picture inside."""
    text, bullets = part.text.replace("`", ""), "".join(
        f"<li>{html.escape(line[2:])}</li>" for line in part.text.replace("`", "").splitlines() if line.startswith("- ")
    )  # fmt: skip
    paragraphs = "".join(f"<p>{html.escape(p)}</p>" for p in text.split("\n\n") if not p.startswith("- "))
    listed = f"<ul>{bullets}</ul>" if bullets else ""
    table = part.table.fillna("").to_html(index=False, border=0) if part.table is not None else ""
    picture = ""
    if part.picture:
        data = base64.b64encode((folder / part.picture).read_bytes()).decode()
        picture = f'<img alt="{html.escape(part.title)}" src="data:image/png;base64,{data}">'
    return f"<h2>{html.escape(part.title)}</h2>{paragraphs}{listed}{table}{picture}"


# ---- the parts, each from one table


def methods(rows: pd.DataFrame, folder: Path) -> Part:
    """Accuracy of the story's methods, and what the paired differences say."""
    rows = rows[rows.metric == "accuracy"]
    sizes = rows.groupby("split").n.first()
    table = wide(over_seeds(rows, ["method", "protocol", "split"]), "method", ["protocol", "split"])
    there = (folder / "differences.csv").exists()  # chapter 5 writes results.csv alone
    gaps = pd.read_csv(folder / "differences.csv") if there else pd.DataFrame(columns=["protocol"])
    said = [
        f"- {r.difference}, {r.split} species: {rounded(r.mean, r.low, r.high, sign=True)} points"
        for r in gaps[gaps.protocol == "open"].itertuples()
    ]
    text = (
        f"Percent right on test images, mean over {rows.seed.nunique()} seeds with a 95% interval; "
        f"{' and '.join(f'{n} images of {split} species' for split, n in sizes.items())} for each seed. Open: the name is asked for; closed: four look-alikes to choose from.\n\n"
        + ("" if not said else "Paired differences, open-world, with 95% t-intervals over seeds:\n\n" + "\n".join(said))
    )
    return Part("The story: five methods", text, table, "story.png" if (folder / "story.png").exists() else None)


def baselines(rows: pd.DataFrame, folder: Path) -> Part:
    """What a practitioner would try first, beside the story's methods; and where it wins."""
    figures = over_seeds(rows, ["baseline", "protocol", "split"])
    table = wide(figures, "baseline", ["protocol", "split"])
    table["has met"] = table.baseline.map(rows.drop_duplicates("baseline").set_index("baseline").met)
    wins = []
    for (protocol, split), part in figures.groupby(["protocol", "split"]):
        best = part.loc[part["mean"].idxmax()]
        share = rounded(*best[["mean", "low", "high"]])
        wins.append(f"- {protocol}-world, {split} species: best is `{best.baseline}` with {share}%")
    text = (
        f"The same questions for other ways to name a bird: percent right, {rows.seed.nunique()} seed(s), with 95% intervals. What "
        "each has met before differs, so read the last column too.\n\n"
    )
    return Part("Baselines", text + "\n".join(wins), table)


def ablations(rows: pd.DataFrame, folder: Path) -> Part:
    """Every variant against its reference, as one picture, and the sentences of those that differ."""
    shown = rows[rows.variant != rows.against]
    panels = {
        f"{split} species": [
            (label_of(r.variant) + (f" ({r.table.split(', ')[1]})" if ", " in r.table else ""),
             *(100 * x for x in (r.difference, r.low, r.high)))
            for table in TABLES for r in shown[(shown.table == table) & (shown.split == split)].itertuples()
            if table != "methods"
        ]
        for split in ("seen", "unseen")
    }  # fmt: skip
    plots.forest(panels, "points minus the reference's").savefig(folder / "ablations.png", dpi=90)
    plt.close()
    apart = (shown.low > 0) | (shown.high < 0)
    told = shown[apart & (shown.table != "methods")].drop_duplicates(["variant", "against", "split"])
    same = shown[~apart & (shown.table != "methods")].drop_duplicates(["variant", "against", "split"])
    p = pd.concat([told, same]).p.dropna()
    kept = int((false_discovery_control(p) < 0.05).sum()) if len(p) else 0
    text = (
        "Open-world accuracy minus the reference's (TAPO; for Stage 1 alone CoT SFT on all chains), "
        f"{len(str(rows.each_seed[0]).split())} seeds. 20 steps, half of the story's, and DAPO has TAPO's learning rate here: compare these figures only with each other. "
        "In the picture a full dot is a difference whose interval leaves zero out. "
        f"{len(told)} of {len(told) + len(same)} comparisons do, {kept} also after allowing for their number (Benjamini and Hochberg; the table of ways to train is left "
        "out):\n\n"
        + "\n".join(f"- {verdict(r)}" for r in told.sort_values("difference").to_dict("records"))
    )
    return Part("Ablations: one thing changed at a time", text, None, "ablations.png")


PROBES = {  # (measure, part) of why.csv, in words
    ("probe", "last layer"): "sees: a linear probe names the species",
    ("describes", "all eight"): "sees: describes all eight attributes rightly",
    ("recognises", "looks to name, unseen"): "knows: the guide's true sentence is the likeliest of four, unseen species",
    ("recalls", "looks to name, unseen"): "knows: writes the name for given looks, unseen species",
    ("separable", "look-alike"): "uses: a right name is told from a look-alike's (chance 50)",
    ("part is right", "analysis, unseen"): "uses: the chain's analysis is right, unseen species",
    ("says the look-alike", "redrawn"): "looks: names the look-alike when its marks are drawn in",
}


def probes(rows: pd.DataFrame, folder: Path) -> Part:
    """What each method sees, knows and uses."""
    figures = over_seeds(rows, ["measure", "part", "method"]).set_index(["measure", "part", "method"])
    table = [
        {"probe": words}
        | {m: rounded(*figures.loc[(*key, m), ["mean", "low", "high"]]) for m in METHODS if (*key, m) in figures.index}
        for key, words in PROBES.items()
    ]  # fmt: skip
    text = f"Percent, mean over {rows.seed.nunique()} seeds with a 95% interval; chapter 9 says how each is measured."
    return Part("Why it works: what changed inside", text, pd.DataFrame(table, columns=["probe", *METHODS]))


TASKS = {  # (task, measure, split) of transfer.csv, in words
    ("facts", "two steps", "seen"): "facts: the own name looked up in a second, text-only question; seen",
    ("facts", "two steps", "unseen"): "facts: the own name looked up in a second, text-only question; unseen",
    ("facts", "likeliest option", "unseen"): "facts: five options scored after the model's own chain; unseen",
    ("looks", "describe", "unseen"): "looks: attributes right in a description; unseen",
    ("looks", "part, in form", "unseen"): "looks: asked about one part, it answers that part only; unseen",
    ("recall", "food", "unseen"): "text alone: what it eats; unseen",
    ("common", "answer", "common"): "names of common species, never trained on; as an answer",
    ("common", "think", "common"): "names of common species, never trained on; thinking",
    ("fish", "part", "fish"): "fish: one part, in words for birds",
    ("fish", "name, guide, likeliest option", "fish"): "fish: the name among four, with their guide",
    ("shift", "clean", "unseen"): "naming, clean pictures; unseen",
    ("shift", "noise 100", "unseen"): "naming, heavy noise; unseen",
    ("shift", "blur 2", "unseen"): "naming, blurred; unseen",
    ("options", "4", "unseen"): "naming among 4 look-alikes; unseen",
    ("options", "32", "unseen"): "naming among 32; unseen",
}


def transfer(rows: pd.DataFrame, folder: Path) -> Part:
    """What else changes when a model learns to name."""
    key = ["task", "measure", "split"]
    figures = over_seeds(rows, [*key, "method"]).set_index([*key, "method"])
    guess = rows.groupby(key).chance.mean()
    table = [
        {"task": words} | {m: rounded(*figures.loc[(*k, m), ["mean", "low", "high"]]) for m in METHODS}
        | {"guessing": "" if guess[k] != guess[k] else f"{100 * guess[k]:.0f}"}
        for k, words in TASKS.items()
    ]  # fmt: skip
    written = rows[(rows.measure == "two steps") & (rows.split == "unseen") & (rows.method == "tapo")].value
    text = (
        f"Percent, mean over {rows.seed.nunique()} seeds with a 95% interval; chapter 10 shows each task and its questions.\n\n"
        "Seeds differ in what they still write: facts looked up in a second, text-only question, unseen species, TAPO: "
        + ", ".join(f"{100 * v:.0f}" for v in written) + "%, seed by seed."
    )  # fmt: skip
    return Part("Transfer: what else changes", text, pd.DataFrame(table))


MAKERS = {
    "results.csv": methods, "baselines.csv": baselines, "ablations.csv": ablations, "why.csv": probes,
    "transfer.csv": transfer,
}  # fmt: skip
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}img{max-width:100%}"
)


def write_page(folder: Path) -> list[Path]:
    """Write both forms of the page from the tables in `folder`. FileNotFoundError where there are none."""
    made = [make(pd.read_csv(folder / name), folder) for name, make in MAKERS.items() if (folder / name).exists()]
    if not made:
        raise FileNotFoundError(f"no tables in {folder}: make study and make evidence write them")
    title, note = "finer1_lite: results", "Bird world, tiny model, CPU. Made by `python -m studies.page`."
    text = "\n".join([f"# {title}", "", note, "", *(markdown(part) for part in made)])
    body = "".join(webpage(part, folder) for part in made)
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1><p>{note.replace('`', '')}</p>{body}</body></html>"
    )
    paths = [folder / "summary.md", folder / "summary.html"]
    for path, content in zip(paths, (text, page)):
        path.write_text(content)
    return paths


def main() -> None:
    """Command line: the folder with the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("studies/results"))
    for path in write_page(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
