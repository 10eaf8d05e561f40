"""What a study shows: the table, paired differences with intervals, one picture, the versions it used."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from finer1_lite.birds.dataset import load_birds
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species, by_name, describe, differences, look_alikes
from finer1_lite.evaluate.answers import METHODS, Prediction, load_predictions
from finer1_lite.evaluate.statistics import bootstrap_seeds, interval
from finer1_lite.plots import poster

PAIRS = (
    ("cot_sft", "sft_answers"), ("tapo", "cot_sft"), ("dapo", "cot_sft"), ("tapo", "dapo"), ("tapo", "sft_answers"),
)  # fmt: skip


def difference(
    work: Path, seeds: list[int], a: str, b: str, protocol: str, keep: Callable[[int, Prediction], bool]
) -> dict:
    """Row: accuracy of method `a` minus `b` on the same images, those that `keep(seed, prediction)` accepts.

    low, high: 95% t-interval over the seeds; of one seed, the bootstrap over classes and images. p: t-test over seeds.
    """
    gaps, classes = [], []
    for seed in seeds:
        ours, theirs = (load_predictions(work / f"seed{seed}" / f"{m}_{protocol}.jsonl") for m in (a, b))
        both = [(x, y) for x, y in zip(ours, theirs, strict=True) if keep(seed, x)]
        gaps.append(np.array([float(x.correct) - float(y.correct) for x, y in both]))
        classes.append([x.label for x, _ in both])
    means = [float(g.mean()) for g in gaps]
    found = interval(means) if len(means) > 1 else bootstrap_seeds(gaps, classes)
    mean, low, high = (round(x, 4) for x in found)
    p = ttest_1samp(means, 0).pvalue if len(set(means)) > 1 else float("nan")
    return {
        "difference": f"{a} - {b}", "mean": mean, "low": low, "high": high, "p": round(float(p), 4),
        "n": sum(map(len, gaps)), "each_seed": " ".join(f"{m:+.4f}" for m in means),
    }  # fmt: skip


def paired_differences(work: Path, seeds: list[int]) -> list[dict]:
    """Every pair of `PAIRS`, both protocols, seen and unseen: see `difference`."""
    return [
        {"protocol": protocol, "split": split}
        | difference(work, seeds, a, b, protocol, lambda _, p: p.seen == (split == "seen"))
        for (a, b), protocol, split in itertools.product(PAIRS, ("open", "closed"), ("seen", "unseen"))
    ]


def where_triplets_matter(work: Path, seeds: list[int]) -> list[dict]:
    """TAPO minus DAPO, open-world, on kinds of test images: near look-alikes or not, dim or bright pictures."""
    dim = {}
    for seed in seeds:
        light = [np.asarray(image).mean() for image in load_birds(seed)["test"]["image"]]
        dim |= {(seed, i): value < np.median(light) for i, value in enumerate(light)}

    def apart(p):  # attributes between the species and its nearest look-alike
        return len(differences(by_name()[p.label].looks, look_alikes(p.label, 1)[0].looks))

    kinds = {
        "nearest look-alike one attribute apart": lambda _, p: apart(p) == 1,
        "nearest look-alike further apart": lambda _, p: apart(p) > 1,
        "darker half of the pictures": lambda seed, p: dim[seed, p.index],
        "brighter half of the pictures": lambda seed, p: not dim[seed, p.index],
    }
    return [
        {"images": kind, "split": split}
        | difference(work, seeds, "tapo", "dapo", "open", lambda s, p: p.seen == (split == "seen") and keep(s, p))
        for (kind, keep), split in itertools.product(kinds.items(), ("seen", "unseen"))
    ]


def draw_poster(results: pd.DataFrame, path: Path) -> None:
    """One species in three pictures, three look-alikes, open-world accuracy: mean, and lowest to highest seed."""
    species = all_species()[2]
    alike = look_alikes(species.name)
    apart = [describe(s.looks, differences(species.looks, s.looks)).replace(", ", "\n") for s in alike]
    titles = [species.name, "the same", "the same", *(f"{s.name}:\n{marks}" for s, marks in zip(alike, apart))]
    images = [draw(species, i) for i in (1, 4, 2)] + [draw(s, 3) for s in alike]
    figures = results[(results.metric == "accuracy") & (results.protocol == "open")].groupby(["split", "method"]).value
    mean, low, high = figures.mean(), figures.min(), figures.max()
    means = {f"{split} species": {m: mean[split, m] for m in METHODS} for split in ("seen", "unseen")}
    reach = {f"{s} species": {m: (mean[s, m] - low[s, m], high[s, m] - mean[s, m]) for m in METHODS}
             for s in ("seen", "unseen")}  # fmt: skip
    poster(images, titles, means, reach, "open-world accuracy").savefig(path, dpi=110)
