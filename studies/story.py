"""Do chains and reinforcement help, also with species that no training has shown? The five methods of the chapters.

`python -m studies.story` trains and asks all five from each seed, which draws everything: which species are seen, the
order of the training rows, the adapters' start, the rollouts. From five more seeds it asks DAPO and TAPO alone, which
lie close together. Writes

    results.csv      what the answers of each seed, method, protocol and split are worth, see `result_rows`
    story.png        the picture of the README
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from finer1_lite import plots
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species, describe, differences, look_alikes
from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.statistics import result_rows, table
from studies.command import run
from studies.study import SEEDS, seed_of
from studies.tables import ROWS

PAIR, MORE_SEEDS = ("dapo", "tapo"), (5, 6, 7, 8, 9)


def one_seed(seed: int, work: Path) -> list[dict]:
    """All methods that are asked from one seed: rows of results.csv."""
    lab, rows = seed_of(seed, work), []
    for method in METHODS if seed not in MORE_SEEDS else PAIR:
        adapter = lab.adapter(method)
        for protocol in ("open", "closed"):
            rows += result_rows(lab.answers(method, adapter, protocol), method, protocol, seed)
        print(f"[seed {seed}] {method} done", flush=True)
    return rows


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
    called = {m: ROWS[m][0] for m in METHODS}
    means = {f"{s} species": {called[m]: mean[s, m] for m in METHODS} for s in ("seen", "unseen")}
    reach = {f"{s} species": {called[m]: (mean[s, m] - low[s, m], high[s, m] - mean[s, m]) for m in METHODS}
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
    """The table; draws the picture and prints the accuracies."""
    out.mkdir(parents=True, exist_ok=True)
    draw_poster(pd.DataFrame(rows), out / "story.png")
    print(table(pd.DataFrame(rows)))
    return {"results.csv": rows}


if __name__ == "__main__":
    run("story", __doc__, one_seed, tables, seeds=(*SEEDS, *MORE_SEEDS))
