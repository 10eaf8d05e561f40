"""The paper's split for any data set: 60% of the classes seen, four training images each, tests of seen and unseen ones.

No picture is in two parts. Where the source has a split of its own, training images come from its training part, and
validation and test images from the rest; a class that has too little there gives what it has.
"""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict

from ..samplers import k_shot, split_classes

VAL_PER_CLASS = 2


def few_shot(
    data: Dataset, shots: int = 4, seed: int = 0, seen_fraction: float = 0.6, seen: Iterable[str] | None = None,
    test_per_class: int | None = None,
) -> DatasetDict:  # fmt: skip
    """`train` (shots images of each seen class), `val` (VAL_PER_CLASS of every class) and `test` (the rest).

    data: columns image and label, perhaps split. Adds the column `seen`. seen: the seen classes, instead of a draw
    with `seed`. test_per_class: the most of a class in `test`. A class with fewer than shots + 1 images cannot be
    trained on and tested: it becomes unseen, with a warning. ValueError where no class is left to train on, and
    for a class of `seen` that is too small.
    """
    labels = data["label"]
    source = data["split"] if "split" in data.column_names else [None] * len(data)
    given = any(source)
    pool = {"train": [i for i, s in enumerate(source) if s in (None, "train")],
            "rest": [i for i, s in enumerate(source) if s != "train" or not given]}  # fmt: skip
    trainable = _classes_with(labels, pool["train"], shots if given else shots + 1)
    chosen = _seen_classes(labels, trainable, seed, seen_fraction, seen, shots)
    mine = [i for i in pool["train"] if labels[i] in chosen]
    train = [mine[i] for i in k_shot([labels[i] for i in mine], shots, seed)]
    rest = sorted(set(pool["rest"]) - set(train))
    val = [rest[i] for i in k_shot([labels[i] for i in rest], VAL_PER_CLASS, seed, on_short="keep")]
    alone = {label for label, n in _sizes(labels, rest).items() if n <= VAL_PER_CLASS}
    val = [i for i in val if labels[i] not in alone]  # few images: rather a test than a validation
    test = sorted(set(rest) - set(val))
    if test_per_class:
        test = [test[i] for i in k_shot([labels[i] for i in test], test_per_class, seed, on_short="keep")]
    marked = data.add_column("seen", [label in chosen for label in labels])
    return DatasetDict({name: marked.select(rows) for name, rows in (("train", train), ("val", val), ("test", test))})


def _sizes(labels, rows) -> dict[str, int]:
    found: dict[str, int] = {}
    for i in rows:
        found[labels[i]] = found.get(labels[i], 0) + 1
    return found


def _classes_with(labels, rows, least: int) -> list[str]:
    return sorted(label for label, n in _sizes(labels, rows).items() if n >= least)


def _seen_classes(labels, trainable, seed, seen_fraction, seen, shots) -> set[str]:
    small = sorted(set(labels) - set(trainable))
    if seen is not None:
        chosen = set(split_classes(labels, seen=seen)[0])
        if bad := sorted(chosen & set(small)):
            raise ValueError(f"seen class {bad[0]!r} has too few images for {shots} shots and a test; add some, or drop it")
        return chosen
    drawn, _ = split_classes(labels, seen_fraction, seed)
    chosen = set(drawn) - set(small)
    if not chosen:
        raise ValueError(f"no class has {shots} images to train on and one to test: add images, or lower shots")
    if lost := sorted(set(drawn) - chosen):
        warnings.warn(
            f"{len(lost)} class(es) have too few images for {shots} shots and a test and are never trained on: "
            f"{', '.join(lost[:5])}", stacklevel=3,
        )  # fmt: skip
    return chosen


def released_classes(path: str | Path) -> list[str]:
    """The classes of a released closed-world file (JSONL with `ground_truth`), for `few_shot(seen=...)`."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return sorted({json.loads(line)["ground_truth"] for line in lines if line.strip()})
