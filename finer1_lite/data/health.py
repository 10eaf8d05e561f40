"""What is wrong with a data set, before hours are spent on it: pictures twice, names alike, classes too small.

Pictures are compared by a perceptual hash of 16 x 16 bits (`imagehash.phash`): on drawn pictures a JPEG, resized or
darker copy was at most 24 bits away, two different ones at least 38. A cropped, turned or mirrored copy is missed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from datasets import Dataset
from datasets import Image as ImageColumn
from tqdm.auto import tqdm

from ..images import LONGEST, as_rgb
from ..reading import normalise
from .names import normal_name

MAX_DISTANCE = 28  # of 256 bits; nearer to 24 than to 38, as more pictures hold nearer strangers
SHOTS = 4
STEP_IMAGES = 24  # of a TAPO step: 8 questions (`config.TapoConfig`), each with anchor, positive and negative
TINY = 56  # pixels of the shorter side: below 56 x 56 Qwen's processor enlarges
SAME, BRACKETS = "the same but for case, spaces or punctuation", "the same but for what stands in brackets"
CONTAINED = "the first contained in the second"
NAMES = {
    SAME: "If they are one class, choose one spelling; else say what tells them apart",
    BRACKETS: "The checks of chains take them for one class: say what tells them apart without brackets",
    CONTAINED: "To answer the second is paid as the first: train with `guarded_reward`, report strict accuracy",
}


@dataclass(frozen=True)
class Health:
    """What `check_health` found: `problems` are sentences that name thing and remedy; the tables are to be shown."""

    problems: list[str]
    counts: pd.DataFrame  # images by class and split
    sizes: pd.DataFrame  # in pixels, by split
    duplicates: pd.DataFrame  # pairs that are one picture: split, row, label, place (`_a`, `_b`), `distance` in bits
    names: pd.DataFrame  # see `similar_names`
    tokens: pd.DataFrame | None  # image tokens by split
    step_tokens: int | None  # of the images that one TAPO step encodes


def check_health(splits, processor=None) -> Health:
    """Look at every picture and name of a Dataset, or of a DatasetDict with splits train, val, test.

    processor: the policy's, to count image tokens by its own rule. ValueError for no rows, no name, no picture.
    """
    splits = splits if isinstance(splits, Mapping) else {"all": splits}
    facts = pd.DataFrame([fact for split, data in splits.items() for fact in _facts_of(split, data)])
    if facts.empty:
        raise ValueError("the data set has no rows; was the right folder read?")
    by_split = facts.groupby("split", sort=False)
    sizes = by_split.agg(images=("row", "count"), shortest_side=("short", "min"), longest_side=("long", "max"))
    sizes = sizes.join(by_split[["width", "height"]].median().add_prefix("median_"))
    sizes = sizes.join(by_split[["tiny", "thin"]].sum())
    counts = pd.crosstab(facts["label"], facts["split"])[facts["split"].unique()]
    pairs, names, tokens, step_tokens = _duplicates(facts), similar_names(counts.index), None, None
    if processor:
        rule, taken = processor.image_processor, facts[~facts["thin"]]
        patches = [rule.get_number_of_image_patches(*sides, {}) for sides in zip(taken["height"], taken["width"])]
        each = pd.Series(patches, taken.index) // rule.merge_size**2
        tokens = each.groupby(taken["split"], sort=False).agg(["min", "median", "max", "sum"])
        step_tokens = round(STEP_IMAGES * each[taken["split"].eq("train") | ("train" not in tokens.index)].mean())
    return Health(_problems(facts, counts, pairs, names), counts, sizes, pairs, names, tokens, step_tokens)


def _facts_of(split: str, data: Dataset) -> Iterable[dict]:
    stored = data.cast_column("image", ImageColumn(decode=False))
    for row in tqdm(range(len(data)), desc=f"look at {split}", leave=False, delay=5):
        try:
            image = as_rgb((values := data[row])["image"])
        except Exception as error:  # a broken file makes Pillow raise almost anything
            raise ValueError(f"{split}[{row}] has no readable picture, leave it out: {error}") from error
        label, (short, long) = values["label"], sorted(image.size)
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{split}[{row}] has the label {label!r}; labels should be the words to say")
        place = " ".join([f"{split}[{row}]", *Path(stored[row]["image"]["path"] or "").parts[-1:]])
        yield {
            "split": split, "row": row, "label": label, "place": place, "width": image.width, "height": image.height,
            "short": short, "long": long, "tiny": short < TINY, "thin": long > LONGEST * short,
            "bits": np.packbits(imagehash.phash(image, 16).hash).tobytes(),
        }  # fmt: skip


def _duplicates(facts: pd.DataFrame) -> pd.DataFrame:
    bits = np.frombuffer(b"".join(facts["bits"]), np.uint64).reshape(len(facts), -1)
    found = []
    for a in range(len(bits)):
        apart = np.bitwise_count(bits[a] ^ bits[a + 1 :]).sum(-1)
        found += [(a, a + 1 + b, apart[b]) for b in np.flatnonzero(apart <= MAX_DISTANCE)]
    a, b, distance = np.array(found, dtype=int).reshape(-1, 3).T
    one, other = (facts.iloc[i][["split", "row", "label", "place"]].reset_index(drop=True) for i in (a, b))
    return one.add_suffix("_a").join(other.add_suffix("_b")).assign(distance=distance)


def similar_names(names: Iterable[str]) -> pd.DataFrame:
    """Pairs of class names that are easily taken for each other: name_a, name_b, why (the first reason of three).

    >>> similar_names(["Wren", "House Wren", "Tern 2", "Tern 3"]).iloc[0].tolist()
    ['Wren', 'House Wren', 'the first contained in the second']
    """
    plain = {name: normalise(name) for name in names}
    solid = {name: plain[name].replace(" ", "") for name in plain}
    bare = {name: normal_name(name) for name in plain}
    found = {why: [] for why in NAMES}
    for a, b in combinations(sorted(plain, key=lambda name: (len(plain[name]), name)), 2):
        alike = solid[a] == solid[b], bare[a] == bare[b] != "", plain[a] in plain[b]
        if any(alike):
            why = list(NAMES)[alike.index(True)]
            found[why].append((a, b, why))
    return pd.DataFrame([row for rows in found.values() for row in sorted(rows)], columns=["name_a", "name_b", "why"])


def _problems(facts: pd.DataFrame, counts: pd.DataFrame, pairs: pd.DataFrame, names: pd.DataFrame) -> list[str]:
    found = []

    def add(what: str, rows: pd.DataFrame, example: str, remedy: str) -> None:
        if len(rows):
            examples = ", ".join(map(example.format, rows.head(3).itertuples())) + " and more" * (len(rows) > 3)
            found.append(f"{what} ({len(rows)}): {examples}. {remedy}.")

    pair = "{0.place_a} {0.label_a!r} and {0.place_b} {0.label_b!r}"
    named, split = pairs["label_a"] != pairs["label_b"], pairs["split_a"] != pairs["split_b"]
    add("Pictures in two splits", pairs[split], pair, "What was trained on must not be tested on: drop one of each")
    add("Pictures under two names", pairs[named], pair, "Look at them, keep the right name, drop the other")
    add("Pictures twice in a class", pairs[~named & ~split], pair, "Drop one: a shot given twice teaches once")
    for why, remedy in NAMES.items():
        add(f"Names, {why}", names[names["why"] == why], "{0.name_a!r} and {0.name_b!r}", remedy)
    if {"train", "test"} <= set(counts.columns):  # a class without training images is an unseen one
        small = {f"with less than {SHOTS} images in train": counts["train"][counts["train"].between(1, SHOTS - 1)],
                 "without an image in test": counts["test"][counts["test"] == 0]}  # fmt: skip
    else:
        whole = counts.sum(axis=1)
        small = {f"with less than {SHOTS} images to learn from and one to test on": whole[whole <= SHOTS]}
    for what, few in small.items():
        add(f"Classes {what}", few.reset_index(name="n"), "{0.label!r} ({0.n})", "Add images, or leave the class out")
    size = "{0.place} ({0.width} x {0.height})"
    add(f"Pictures with a side below {TINY} pixels", facts[facts["tiny"]], size, "Details are lost: find larger ones")
    add(f"Pictures over {LONGEST} times as long as wide", facts[facts["thin"]], size, "Qwen refuses them: crop them")
    return found
