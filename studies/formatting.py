"""How `studies.page` shows figures: rounded to what their interval allows, in tables, in words, in a picture."""

import matplotlib.pyplot as plt
import pandas as pd

from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.statistics import interval
from finer1_lite.plots import COLORS

PROBES = {  # (measure, part) of why.csv that the page shows, in words
    ("probe", "last layer"): "sees: a linear probe names the species",
    ("describes", "all eight"): "sees: describes all eight attributes rightly",
    ("recognises", "looks to name, unseen"):
        "knows: the guide's true sentence is the likeliest of four, unseen species",
    ("recalls", "looks to name, unseen"): "knows: writes the name for given looks, unseen species",
    ("separable", "look-alike"): "uses: a right name is told from a look-alike's (chance 50)",
    ("part is right", "analysis, unseen"): "uses: the chain's analysis is right, unseen species",
    ("says the look-alike", "redrawn"): "looks: names the look-alike when its marks are drawn in",
    ("says the look-alike", "picture"): "looks: names the look-alike when nothing is changed",
    ("says the label", "picture"): "looks: names the bird when nothing is changed",
    ("says the label", "marks hidden"): "looks: names the bird when the marks are hidden",
    ("says the label", "elsewhere hidden"): "looks: names the bird when as much is hidden elsewhere",
}
TASKS = {  # (task, measure, split) of transfer.csv that the page shows, in words
    ("facts", "two steps", "seen"): "facts: the own name looked up in a second, text-only question; seen",
    ("facts", "two steps", "unseen"): "facts: the own name looked up in a second, text-only question; unseen",
    ("facts", "likeliest option", "unseen"): "facts: five options scored after the model's own chain; unseen",
    ("looks", "describe", "unseen"): "looks: attributes right in a description; unseen",
    ("looks", "part, in form", "unseen"): "looks: asked about one part, it answers that part only; unseen",
    ("common", "answer", "common"): "names of common species, never trained on; as an answer",
    ("common", "think", "common"): "names of common species, never trained on; thinking",
    ("shift", "clean", "unseen"): "naming, clean pictures; unseen",
    ("shift", "noise 100", "unseen"): "naming, heavy noise; unseen",
    ("shift", "blur 2", "unseen"): "naming, blurred; unseen",
}


def rounded(mean: float, low: float, high: float, sign: bool = False) -> str:
    """A share in percent, or a difference (`sign`) in points, with its interval; a decimal only below two points'
    width.

    The interval of a share ends at 0 and 100; where seeds do not differ there is none.

    >>> rounded(0.6981, 0.661, 0.732), rounded(0.004, 0.002, 0.006), rounded(0.058, 0.022, 0.095, sign=True)
    ('70 (66 to 73)', '0.4 (0.2 to 0.6)', '+6 (+2 to +10)')
    """
    digits = 0 if 100 * (high - low) >= 2 else 1
    if not sign and low == low:
        low, high = max(0.0, low), min(1.0, high)
    a, b, c = (f"{round(100 * x, digits) + 0.0:{'+' if sign else ''}.{digits}f}" for x in (mean, low, high))
    return a if low != low else f"{a} ({b} to {c})"  # one seed has no interval


def in_words(rows: pd.DataFrame, key: list[str], words: dict[tuple, str], heading: str) -> pd.DataFrame:
    """The rows of `words` (values of `key` -> what it is) as a table: methods across, as `rounded`."""
    found = rows.groupby([*key, "method"]).value.agg(lambda values: interval(values))
    lines = [{heading: what} | {m: rounded(*found.loc[(*k, m)]) for m in METHODS if (*k, m) in found.index}
             for k, what in words.items()]  # fmt: skip
    return pd.DataFrame(lines, columns=[heading, *METHODS])


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.fillna("").astype(str).values]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def section(title: str, text: str, table: pd.DataFrame, picture: str | None = None) -> str:
    """A part of the page as Markdown."""
    lines = [f"## {title}", "", text, "", markdown(table), ""]
    return "\n".join(lines + ([f"![{title}]({picture})", ""] if picture else []))


def forest(panels: dict[str, list[tuple[str, float, float, float]]], xlabel: str):
    """One panel for each key: rows of (label, mean, low, high) as dots, full where the interval leaves zero out."""
    size = (4.2 * len(panels), 0.8 + 0.27 * max(map(len, panels.values())))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (title, panel) in zip(axes.flat, panels.items()):
        for y, (_, mean, low, high) in enumerate(panel):
            face = COLORS[0] if low > 0 or high < 0 else "white"
            axis.plot([low, high], [y, y], color=COLORS[0], linewidth=1.5)
            axis.plot(mean, y, "o", color=COLORS[0], markerfacecolor=face, markersize=6)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel=xlabel, ylim=(len(panel) - 0.5, -0.5))
        axis.set_yticks(range(len(panel)), [label for label, *_ in panel])
        axis.grid(axis="x", color="0.85")
    figure.tight_layout()
    return figure
