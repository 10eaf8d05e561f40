"""The difference between two methods, seed by seed: what is the same in both, above all the species, cancels."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import ttest_1samp

from finer1_lite.evaluate.answers import Prediction, load_predictions
from finer1_lite.evaluate.statistics import interval


def paired(gaps: Sequence[float]) -> dict[str, float]:
    """Of each seed's difference: mean, 95% t-interval (low, high), the t-test's p; nan where seeds cannot tell."""
    p = float(ttest_1samp(gaps, 0).pvalue) if len(set(gaps)) > 1 else float("nan")
    return dict(zip(("mean", "low", "high", "p"), (*interval(gaps), p)))


def difference(
    work: Path, seeds: Sequence[int], a: str, b: str, protocol: str, keep: Callable[[int, Prediction], bool]
) -> dict:
    """Row: accuracy of `a` minus `b` on the same images, those that `keep(seed, prediction)` takes; see `paired`."""
    gaps = []
    for seed in seeds:
        both = (load_predictions(work / f"seed{seed}" / f"{method}_{protocol}.jsonl") for method in (a, b))
        gaps.append([float(x.correct) - float(y.correct) for x, y in zip(*both, strict=True) if keep(seed, x)])
    means = [float(np.mean(gap)) for gap in gaps]
    figures = {name: round(value, 4) for name, value in paired(means).items()}
    found = {"n": sum(map(len, gaps)), "each_seed": " ".join(f"{m:+.4f}" for m in means)}
    return {"difference": f"{a} - {b}"} | figures | found
