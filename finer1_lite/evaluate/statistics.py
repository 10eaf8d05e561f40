"""Figures of answers: rows of a results file, intervals over seeds, bootstrap over classes and images, smaller test sets."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.stats import t

from .answers import METHODS, Prediction

COLUMNS = ("method", "split", "protocol", "metric", "value", "n", "seed")


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


def subset_error(labels: Sequence[str], chosen: Sequence[str], right: Sequence[float] | None = None) -> float:
    r"""Standard error of a subset's accuracy (0-1) as an estimate of the whole set's: what asking all would change.

    labels: classes of the whole set's N images; chosen: of the subset's n. right: 1 or 0 for each of the subset,
    once it was asked; without it the answer is the largest error that can be. Outcomes are p + class + image, of
    variances $\rho p(1-p)$ and $(1-\rho)p(1-p)$ with $\rho$ the correlation within a class, so with k_c of N_c images

    $$ Var = p(1-p) [ \rho \sum_c (k_c/n - N_c/N)^2 + (1-\rho) (1/n - 1/N) ] $$

    which is 0 for n = N. It does not hold what another draw of classes and images into the *whole* set would change:
    that is `bootstrap_difference`.

    >>> round(subset_error(["a", "b"] * 500, ["a", "b"] * 50), 3), subset_error(["a", "b"], ["a", "b"])
    (0.047, 0.0)
    """
    labels, chosen = list(labels), list(chosen)
    whole, part, n = Counter(labels), Counter(chosen), len(chosen)
    if not n or part - whole:
        raise ValueError("the chosen labels are not a part of all labels; give both from the same data")
    between = sum((part[c] / n - whole[c] / len(labels)) ** 2 for c in whole)
    within = 1 / n - 1 / len(labels)
    if right is None:
        return float(np.sqrt(0.25 * max(between, within)))
    p, alike = float(np.mean(right)), _alike(np.asarray(right, float), chosen)
    return float(np.sqrt(p * (1 - p) * (alike * between + (1 - alike) * within)))


def _alike(right: np.ndarray, classes: list[str]) -> float:
    """Correlation of two outcomes of one class, from the analysis of variance; 0 where no class has two images."""
    groups = [right[np.array(classes) == name] for name in dict.fromkeys(classes)]
    n, sizes = len(right), np.array([len(g) for g in groups])
    if len(groups) in (1, n):
        return 0.0
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (n - len(groups))
    between = sum(len(g) * (g.mean() - right.mean()) ** 2 for g in groups) / (len(groups) - 1)
    size = (n - (sizes**2).sum() / n) / (len(groups) - 1)
    total = between + (size - 1) * within
    return float(np.clip((between - within) / total, 0, 1)) if total > 0 else 0.0


def result_rows(predictions: list[Prediction], method: str, protocol: str, seed: int) -> list[dict]:
    """Accuracy, strict accuracy and answer length on seen and on unseen classes, as rows of the results file."""
    rows = []
    for split, wanted in (("seen", True), ("unseen", False)):
        part = [p for p in predictions if p.seen == wanted]
        if not part:
            continue
        figures = {
            "accuracy": np.mean([p.correct for p in part]),
            "strict_accuracy": np.mean([p.strict for p in part]),
            "words": np.mean([len(p.text.split()) for p in part]),
        }
        for metric, value in figures.items():
            cells = (method, split, protocol, metric, round(float(value), 6), len(part), seed)
            rows.append(dict(zip(COLUMNS, cells)))
    return rows


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one figure of each seed with its 95% t-interval, as (mean, low, high); NaN ends for one seed, and where
    seeds do not differ: that is no certainty (but nothing, of nothing but zeros, is).

    It is about new seeds, with all that a seed draws. A bootstrap of a few seeds would be too narrow.

    >>> [round(x, 2) for x in interval([0.5, 0.6, 0.7])]
    [0.6, 0.35, 0.85]
    """
    values = np.asarray(values, float)
    mean, n = values.mean(), len(values)
    told = n > 1 and (np.ptp(values) > 1e-12 or not values.any())
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if told else np.nan
    return float(mean), float(mean - half), float(mean + half)


def bootstrap_difference(a: np.ndarray, b: np.ndarray, classes: list[str], seed: int = 0, draws: int = 2000):
    """Mean of `a - b` (N,) with a 95% interval; see `bootstrap_seeds`, of which this is the case of one seed."""
    return bootstrap_seeds([np.asarray(a, float) - np.asarray(b, float)], [classes], seed, draws)


def bootstrap_seeds(gaps: list[np.ndarray], classes: list[list[str]], seed: int = 0, draws: int = 2000):
    """Mean of the seeds' mean gaps with a 95% interval, as (mean, low, high).

    gaps: for each seed the differences (N,) of two methods on the same images, classes: the images'
    classes. Each draw takes seeds, then classes of each, then images of each class, all with repeats.
    """
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(gaps), size=(len(gaps), draws))
    low, high = np.quantile(drawn_means(rng, gaps, classes, picked), [0.025, 0.975])
    return float(np.mean([g.mean() for g in gaps])), float(low), float(high)


def drawn_means(
    rng: np.random.Generator, values: list[np.ndarray], classes: list[list[str]], picked: np.ndarray
) -> np.ndarray:
    """Means (draws,) of resampled seeds, classes and images; see `bootstrap_seeds`.

    picked: (seeds, draws), which seed stands at each place of each draw. Two figures that are drawn with the same
    `picked` belong together, draw by draw.
    """
    draws = picked.shape[1]
    drawn = [[_resampled_means(rng, v, c, draws) for v, c in zip(values, classes)] for _ in values]
    return np.mean([np.choose(row, columns) for row, columns in zip(picked, drawn)], axis=0)


def _resampled_means(rng: np.random.Generator, values: np.ndarray, classes: list[str], draws: int) -> np.ndarray:
    """Means (draws,) of `values` (N,), where classes and then images of each drawn class come with repeats."""
    groups = [values[np.array(classes) == name] for name in dict.fromkeys(classes)]
    sizes = np.array([len(g) for g in groups])
    padded = np.stack([np.pad(g, (0, sizes.max() - len(g))) for g in groups])  # (G, largest)
    which = rng.integers(len(groups), size=(draws, len(groups)))
    images = (rng.random((*which.shape, sizes.max())) * sizes[which][..., None]).astype(int)
    found = padded[which[..., None], images] * (np.arange(sizes.max()) < sizes[which][..., None])
    return found.sum((1, 2)) / sizes[which].sum(1)


def over_seeds(rows: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """For each group of the columns `by`: mean, low, high (see `interval`) and how many seeds there are."""
    made = rows.groupby(list(by), sort=False)[value].agg(lambda v: interval(v)).apply(pd.Series)
    made.columns = ["mean", "low", "high"]
    return made.assign(seeds=rows.groupby(list(by), sort=False).seed.nunique()).reset_index()


def table(results: pd.DataFrame) -> str:
    """Accuracy of each method in percent: mean over seeds; with several, also the lowest and the highest seed."""
    figures = results[results.metric == "accuracy"].groupby(["method", "protocol", "split"]).value
    lines = ["| method | open, seen | open, unseen | closed, seen | closed, unseen |", "| --- | --- | --- | --- | --- |"]
    for method in (m for m in METHODS if m in set(results.method)):
        cells = []
        for protocol in ("open", "closed"):
            for split in ("seen", "unseen"):
                if (method, protocol, split) not in figures.groups:  # no unseen classes, say
                    cells.append("-")
                    continue
                values = figures.get_group((method, protocol, split)) * 100
                spread = f" ({values.min():.0f}-{values.max():.0f})" if len(values) > 1 else ""
                cells.append(f"{values.mean():.1f}{spread}")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)
