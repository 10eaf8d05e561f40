"""What can be concluded from answers: rows of a results file, intervals over seeds, classes, images; smaller tests.

`python -m finer1_lite.evaluate.statistics runs/cpu/results.csv` prints the table of a results file.
"""

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.stats import t

from ..prompts import ANSWER_INSTRUCTION
from ..rewards import strict_format
from .answers import METHODS, Prediction
from .paper import paper_figures

COLUMNS = ("method", "split", "protocol", "metric", "value", "n", "seed")


def result_rows(predictions: list[Prediction], method: str, protocol: str, seed: int) -> list[dict]:
    """What the answers are worth on seen and unseen classes, as rows (COLUMNS) of a results file.

    Shares of right and strictly right answers, of those in the form that was asked for (`strict_format`), and of those
    that end, and their words.
    """
    rows = []
    for split, wanted in (("seen", True), ("unseen", False)):
        part = [p for p in predictions if p.seen == wanted]
        figures = {
            "accuracy": [p.correct for p in part], "strict_accuracy": [p.strict for p in part],
            "format": [strict_format(p.text, ANSWER_INSTRUCTION not in p.question) for p in part],
            "ended": [p.ended for p in part], "words": [len(p.text.split()) for p in part],
        }  # fmt: skip
        for metric, values in figures.items() if part else ():
            cells = (method, split, protocol, metric, round(float(np.mean(values)), 6), len(part), seed)
            rows.append(dict(zip(COLUMNS, cells)))
    return rows


def table(results: pd.DataFrame) -> str:
    """Accuracy of each method in percent as a Markdown table: the mean over seeds, with their lowest and highest.

    The last two columns are the paper's, for Qwen2.5-VL-3B on real birds, cars and the like (closed-world).
    """
    figures = results[results.metric == "accuracy"].groupby(["method", "protocol", "split"]).value
    paper = paper_figures().query("table == 'training methods'").set_index(["method", "split"]).value
    columns = ["open, seen", "open, unseen", "closed, seen", "closed, unseen", "paper: seen", "paper: unseen"]
    lines = [f"| method | {' | '.join(columns)} |", "|" + " --- |" * (1 + len(columns))]
    for method in (m for m in METHODS if m in set(results.method)):
        cells = []
        for key in ((method, protocol, split) for protocol in ("open", "closed") for split in ("seen", "unseen")):
            values = figures.get_group(key) * 100 if key in figures.groups else pd.Series(dtype=float)
            spread = f" ({values.min():.0f}-{values.max():.0f})" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}" if len(values) else "-")  # no unseen classes, say
        cells += [f"{paper[method, s]:.1f}" if (method, s) in paper else "-" for s in ("seen", "unseen")]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one figure of each seed with its 95% t-interval, as (mean, low, high); NaN ends for one seed.

    It is about new seeds, with all that a seed draws. Seeds that do not differ leave the ends NaN too, as that is no
    certainty, unless all are 0.

    >>> [round(x, 2) for x in interval([0.5, 0.6, 0.7])]
    [0.6, 0.35, 0.85]
    """
    values = np.asarray(values, float)
    mean, n = values.mean(), len(values)
    told = n > 1 and (np.ptp(values) > 1e-12 or not values.any())
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if told else np.nan
    return float(mean), float(mean - half), float(mean + half)


def bootstrap_difference(a: np.ndarray, b: np.ndarray, classes: Sequence[str], seed: int = 0, draws: int = 2000):
    """Mean of `a - b` (N,), two methods on the same images, with a 95% interval, as (mean, low, high).

    classes: the images' classes (N,). Each draw takes classes, then images of each drawn class, both with repeats.
    """
    rng, gaps = np.random.default_rng(seed), np.asarray(a, float) - np.asarray(b, float)
    groups = [gaps[np.array(classes) == name] for name in dict.fromkeys(classes)]
    sizes = np.array([len(g) for g in groups])
    padded = np.stack([np.pad(g, (0, sizes.max() - len(g))) for g in groups])  # (G, largest)
    which = rng.integers(len(groups), size=(draws, len(groups)))
    images = (rng.random((*which.shape, sizes.max())) * sizes[which][..., None]).astype(int)
    found = padded[which[..., None], images] * (np.arange(sizes.max()) < sizes[which][..., None])
    low, high = np.quantile(found.sum((1, 2)) / sizes[which].sum(1), [0.025, 0.975])
    return float(gaps.mean()), float(low), float(high)


def subset_of(data: Dataset, n: int, seed: int) -> Dataset:
    """`n` rows of `data`, in its order: of each class (column label) its share, to within one row, drawn with `seed`.

    With fewer rows than classes some classes have none. ValueError unless 1 <= n <= len(data).
    """
    if not 1 <= n <= len(data):
        raise ValueError(f"{n} of {len(data)} images cannot be drawn; ask for 1 to {len(data)}")
    rng, labels = np.random.default_rng(seed), np.array(data["label"][:])
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)  # evenly spread, from a random start
    return data.select(np.sort(np.argsort(place, kind="stable")[:n]))


if __name__ == "__main__":
    print(table(pd.read_csv(sys.argv[1])))
