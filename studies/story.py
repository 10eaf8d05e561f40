"""Do chains and reinforcement help, also with species that no training has shown? The five methods of the chapters.

`python -m studies.story` trains and asks all five from each seed, which draws everything: which species are seen, the
order of the training rows, the adapters' start, the rollouts. 25 minutes for five seeds. Writes

    results.csv      accuracy, strict accuracy and words of each seed, method, protocol and split
    differences.csv  between two methods, seed by seed
    where.csv        TAPO minus DAPO on kinds of pictures
    story.png        the picture of the README
"""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from finer1_lite import plots
from finer1_lite.birds.dataset import load_birds
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species, by_name, describe, differences, look_alikes
from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.statistics import result_rows, table
from studies.differences import difference
from studies.study import run, seed_of

PAIRS = (
    ("cot_sft", "sft_answers"), ("tapo", "cot_sft"), ("dapo", "cot_sft"), ("tapo", "dapo"), ("tapo", "sft_answers"),
)  # fmt: skip


def one_seed(seed: int, work: Path) -> list[dict]:
    """All five methods from one seed: rows of results.csv."""
    lab, rows = seed_of(seed, work), []
    for method in METHODS:
        adapter = lab.adapter(method)
        for protocol in ("open", "closed"):
            rows += result_rows(lab.answers(method, adapter, protocol), method, protocol, seed)
        print(f"[seed {seed}] {method} done", flush=True)
    return rows


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
    results = results[(results.metric == "accuracy") & (results.protocol == "open")]
    figures = results.groupby(["split", "method"]).value
    mean, low, high = figures.mean(), figures.min(), figures.max()
    means = {f"{split} species": {m: mean[split, m] for m in METHODS} for split in ("seen", "unseen")}
    reach = {f"{s} species": {m: (mean[s, m] - low[s, m], high[s, m] - mean[s, m]) for m in METHODS}
             for s in ("seen", "unseen")}  # fmt: skip
    figure = plt.figure(figsize=(9, 5))
    rows = figure.add_gridspec(2, len(images), height_ratios=[1, 1.7])
    for i, (image, title) in enumerate(zip(images, titles)):
        axis = figure.add_subplot(rows[0, i])
        axis.imshow(image)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    plots.bars(means, reach, "open-world accuracy", axis=figure.add_subplot(rows[1, :]))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tables(rows: list[dict], work: Path, seeds: list[int], out: Path) -> dict[str, list[dict]]:
    """The three tables; draws the picture and prints the accuracies."""
    out.mkdir(parents=True, exist_ok=True)
    draw_poster(pd.DataFrame(rows), out / "story.png")
    print(table(pd.DataFrame(rows)))
    made = {"differences.csv": paired_differences(work, seeds), "where.csv": where_triplets_matter(work, seeds)}
    return {"results.csv": rows} | made


if __name__ == "__main__":
    run("story", __doc__, one_seed, tables)
