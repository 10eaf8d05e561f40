"""What is wrong with a data set, before hours are spent on it: pictures twice, names alike, classes too small.

Pictures are compared by a perceptual hash of 16 x 16 bits (`imagehash.phash`). Why this one, measured on all
1856 drawn birds and 384 drawn fish (`tests/test_data_health.py` holds a part of it): the same picture as JPEG of
quality 50 or 20, at half or double size, 20% darker or 10% brighter, or half, brighter and JPEG at once, is at most
24 bits away; two different pictures, of one species or of two, at least 38. With 8 x 8 bits the two ranges overlap.
dhash of 16 x 16 leaves less between them, and moves 150 bits where a brighter sky of a photograph loses its shades.
What this hash misses: a picture cropped, turned or mirrored, and a copy of one so blurred that fine bits are noise.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations

import imagehash
import numpy as np
import pandas as pd
from datasets import Dataset
from tqdm.auto import tqdm

from ..config import TapoConfig
from ..images import LONGEST, as_rgb
from ..rewards import normalise
from .names import normal_name

HASH_SIDE = 16
MAX_DISTANCE = 28  # of 256 bits; nearer to 24 than to 38, as more pictures hold nearer strangers
AT_ONCE = 64  # pictures that are compared with all others in one step: 40 MB for 20,000
SHOTS = 4
TINY = 56  # pixels of the shorter side: below 56 x 56 Qwen's processor enlarges
LARGE = 24_000_000  # pixels
SAME, BRACKETS = "the same but for case, spaces or punctuation", "the same but for what stands in brackets"
CONTAINED, SLIP = "the first contained in the second", "one letter different, missing or moved"
NAMES = {
    SAME: "If they are one class, choose one spelling; else say what tells them apart",
    BRACKETS: "The checks of chains take them for one class: say what tells them apart without brackets",
    CONTAINED: "To answer the second is paid as the first: train with `guarded_reward`, report strict accuracy",
    SLIP: "If it is a slip of the pen, correct it",
}


@dataclass(frozen=True)
class Health:
    """What `check_health` found. `problems` are sentences that name thing and remedy; the tables are to be shown.

    counts: images by class (index) and split. sizes: in pixels, by split. duplicates: see `duplicate_pairs`. names:
    see `similar_names`. tokens: image tokens by split; step_tokens: of the images that one TAPO step encodes.
    """

    problems: list[str]
    counts: pd.DataFrame
    sizes: pd.DataFrame
    duplicates: pd.DataFrame
    names: pd.DataFrame
    tokens: pd.DataFrame | None
    step_tokens: int | None


def check_health(splits, processor=None, max_distance: int = MAX_DISTANCE) -> Health:
    """Look at every picture and name of a Dataset, or of a DatasetDict with splits train, val, test.

    processor: Qwen2.5-VL's, to count image tokens by its own rule; without it there are none. max_distance: bits of
    256 up to which two pictures are one. Every picture is decoded once. Raises as `picture_facts`.
    """
    facts = picture_facts(splits)
    counts = pd.crosstab(facts["label"], facts["split"])[facts["split"].unique()]
    pairs, names = duplicate_pairs(facts, max_distance), similar_names(counts.index)
    problems = [*_duplicate_problems(pairs), *_name_problems(names), *_class_problems(counts), *_size_problems(facts)]
    tokens = _tokens(facts[~facts["thin"]], processor.image_processor) if processor else (None, None)
    return Health(problems, counts, _sizes(facts), pairs, names, *tokens)


def picture_facts(splits) -> pd.DataFrame:
    """One row for each picture: where it is, its label, its sides, whether these are odd, and its hashes.

    splits: as for `check_health`. Raises ValueError for an empty data set, one without the columns image and label,
    and for a row that has no name or no readable picture.
    """
    splits = splits if isinstance(splits, Mapping) else {"all": splits}
    facts = pd.DataFrame([fact for split, data in splits.items() for fact in _facts_of(split, data)])
    if facts.empty:
        raise ValueError("the data set has no rows; was the right folder read?")
    short, long = (getattr(facts[["width", "height"]], side)(axis=1) for side in ("min", "max"))
    return facts.assign(
        short=short, long=long, portrait=facts["height"] > facts["width"], landscape=facts["width"] > facts["height"],
        tiny=short < TINY, large=short * long > LARGE, thin=long > LONGEST * short,
    )  # fmt: skip


def _facts_of(split: str, data: Dataset) -> Iterable[dict]:
    lacks = {"image", "label"} - set(data.column_names)
    if lacks:
        raise ValueError(f"{split} has no column {' and '.join(sorted(lacks))}; it has {data.column_names}")
    data = data.select_columns(["image", "label"])
    for row in tqdm(range(len(data)), desc=f"look at {split}", leave=False, delay=5):
        try:
            values = data[row]
            image, label = as_rgb(values["image"]), values["label"]
        except Exception as error:  # a broken file makes Pillow raise almost anything
            raise ValueError(f"{split}[{row}] has no readable picture, leave it out: {error}") from error
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{split}[{row}] has the label {label!r}; labels should be the words to say")
        pixels = blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
        bits = np.packbits(imagehash.phash(image, HASH_SIDE).hash).tobytes()
        yield {"split": split, "row": row, "label": label, "width": image.width, "height": image.height,
               "pixels": pixels, "bits": bits}  # fmt: skip


def duplicate_pairs(facts: pd.DataFrame, max_distance: int = MAX_DISTANCE) -> pd.DataFrame:
    """Pairs that are one picture: split, row and label of both (`_a`, `_b`), bits of `distance`, all pixels `exact`.

    facts: of `picture_facts`. All pairs are compared: 20,000 pictures take about 10 seconds.
    """
    if not 0 <= max_distance < HASH_SIDE**2:
        raise ValueError(f"max_distance is {max_distance}; it must lie in 0 .. {HASH_SIDE**2 - 1} bits")
    bits = np.frombuffer(b"".join(facts["bits"]), np.uint64).reshape(len(facts), -1)
    found = []
    for start in range(0, len(bits), AT_ONCE):
        apart = np.bitwise_count(bits[start : start + AT_ONCE, None] ^ bits[None, start:]).sum(-1, dtype=np.uint16)
        a, b = np.nonzero(np.triu(apart <= max_distance, 1))  # each pair once, none with itself
        found.append(np.stack([a + start, b + start, apart[a, b]]))
    a, b, distance = np.concatenate(found, axis=1)
    sides = [facts.iloc[i][["split", "row", "label"]].reset_index(drop=True) for i in (a, b)]
    pixels = facts["pixels"].to_numpy()
    pairs = sides[0].add_suffix("_a").join(sides[1].add_suffix("_b"))
    return pairs.assign(distance=distance, exact=(pixels[a] == pixels[b]).astype(bool))


def similar_names(names: Iterable[str]) -> pd.DataFrame:
    """Pairs of class names that are easily taken for each other: name_a, name_b, why (the first reason of four).

    Another digit is no slip ("737-200", "737-300"), and names below five letters are too short to tell.

    >>> similar_names(["Wren", "House Wren", "Tern 2", "Tern 3"]).iloc[0].tolist()
    ['Wren', 'House Wren', 'the first contained in the second']
    """
    names = sorted(set(names), key=lambda name: (len(normalise(name)), name))
    plain = {name: normalise(name) for name in names}
    solid = {name: plain[name].replace(" ", "") for name in names}
    kinds = {
        SAME: _sharing(names, lambda name: {solid[name]}),
        BRACKETS: _sharing(names, lambda name: {normal_name(name)} - {""}),
        CONTAINED: [(a, b) for a, b in combinations(names, 2) if plain[a] in plain[b]],
        SLIP: _sharing(names, lambda name: _with_a_letter_less(solid[name])),
    }
    why: dict[tuple, str] = {}
    for reason, pairs in kinds.items():
        for pair in sorted(pairs):
            why.setdefault(pair, reason)
    return pd.DataFrame([(*pair, reason) for pair, reason in why.items()], columns=["name_a", "name_b", "why"])


def _sharing(names: list[str], keys: Callable[[str], set[str]]) -> set[tuple[str, str]]:
    """Pairs of names that have a key in common."""
    groups = defaultdict(list)
    for name in names:
        for key in keys(name):
            groups[key].append(name)
    return {pair for group in groups.values() for pair in combinations(group, 2)}


def _with_a_letter_less(name: str) -> set[str]:
    """The name, and what is left without any one letter: two names that are one slip apart share one of these."""
    less = {name[:i] + name[i + 1 :] for i, letter in enumerate(name) if letter.isalpha()}
    return {name} | less if len(name) >= 5 else set()


def _sizes(facts: pd.DataFrame) -> pd.DataFrame:
    how = {"row": "count", "short": "min", "width": "median", "height": "median", "long": "max"}
    how |= dict.fromkeys(("portrait", "landscape", "tiny", "large", "thin"), "sum")
    names = {"row": "images", "short": "shortest_side", "width": "median_width", "height": "median_height",
             "long": "longest_side"}  # fmt: skip
    return facts.groupby("split", sort=False).agg(how).rename(columns=names)


def _tokens(facts: pd.DataFrame, rule) -> tuple[pd.DataFrame, int]:
    """Image tokens by split, and those of a TAPO step: three images (training ones, if known) for each question."""
    size = zip(facts["height"], facts["width"])
    tokens = facts.assign(n=[rule.get_number_of_image_patches(h, w, {}) // rule.merge_size**2 for h, w in size])
    table = tokens.groupby("split", sort=False)["n"].agg(["min", "median", "max", "sum"])
    trained = tokens[tokens["split"] == "train"] if "train" in table.index else tokens
    return table, round(3 * TapoConfig().questions * trained["n"].mean())


# ---- problems, as sentences


def _problem(examples: list[str], what: str, remedy: str) -> list[str]:
    """What is wrong, how often, the first three examples, the remedy; nothing where there is no example."""
    more = " and more" if len(examples) > 3 else ""
    return [f"{what} ({len(examples)}): {', '.join(examples[:3])}{more}. {remedy}."] if examples else []


def _duplicate_problems(pairs: pd.DataFrame) -> Iterable[str]:
    names, splits = pairs["label_a"] != pairs["label_b"], pairs["split_a"] != pairs["split_b"]
    for chosen, what, remedy in [
        (splits, "Pictures in two splits", "What was trained on must not be tested on: drop one of each"),
        (names, "Pictures under two names", "Look at them, keep the right name, drop the other"),
        (~names & ~splits, "Pictures twice in a class", "Drop one of each: a shot given twice teaches once"),
    ]:
        rows = pairs[chosen].itertuples()
        yield from _problem([f"{p.split_a}[{p.row_a}] {p.label_a!r} and {p.split_b}[{p.row_b}] {p.label_b!r}"
                             for p in rows], what, remedy)  # fmt: skip


def _name_problems(names: pd.DataFrame) -> Iterable[str]:
    for why, remedy in NAMES.items():
        rows = names[names["why"] == why].itertuples()
        yield from _problem([f"{pair.name_a!r} and {pair.name_b!r}" for pair in rows], f"Names, {why}", remedy)


def _class_problems(counts: pd.DataFrame) -> Iterable[str]:
    if {"train", "test"} <= set(counts.columns):  # a class without training images is an unseen one
        train, test = counts["train"], counts["test"]
        kinds = [(train[(train > 0) & (train < SHOTS)], f"Classes with less than {SHOTS} images in train"),
                 (test[test == 0], "Classes without an image in test")]  # fmt: skip
    else:
        whole = counts.sum(axis=1)
        kinds = [(whole[whole <= SHOTS], f"Classes with less than {SHOTS} images to learn from and one to test on")]
    for numbers, what in kinds:
        examples = [f"{name!r} ({number})" for name, number in numbers.items()]
        yield from _problem(examples, what, "Add images, or leave the class out")


def _size_problems(facts: pd.DataFrame) -> Iterable[str]:
    for column, what, remedy in [
        ("tiny", f"Pictures with a side below {TINY} pixels", "Details are lost in them: find larger ones"),
        ("large", f"Pictures above {LARGE // 10**6} megapixels", "Decoding them takes long: save them smaller once"),
        ("thin", f"Pictures over {LONGEST} times as long as wide", "Qwen's processor refuses them: crop them"),
    ]:
        rows = facts[facts[column]].itertuples()
        yield from _problem([f"{p.split}[{p.row}] ({p.width} x {p.height})" for p in rows], what, remedy)
