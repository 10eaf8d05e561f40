"""The paper's split for any data set: 60% of the classes seen, four training images each, tests of seen and unseen ones.

No picture is in two parts. Where the source has a training part and another one, training images come from its
training part and test images from its test part (its validation part where it has no other), which stays whole; val
comes from the source's validation part, else from training images that are left. A class that has none there gives
what it has. A source with one part alone is split as if it had none.
"""

import json
import warnings
from collections import Counter
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
    labels, source = list(data["label"]), _parts(data)
    last = "test" if "test" in source else "val"
    pool = [i for i, s in enumerate(source) if s in (None, "train")]
    enough = set(_classes_with(labels, range(len(data)), shots + 1))
    trainable = [c for c in _classes_with(labels, pool, shots) if c in enough]
    chosen = _seen_classes(labels, trainable, seed, seen_fraction, seen, shots)
    mine = [i for i in pool if labels[i] in chosen]
    train = [mine[i] for i in k_shot([labels[i] for i in mine], shots, seed)]
    left = sorted(set(range(len(data))) - set(train))
    test = _preferred(labels, left, {i for i in left if source[i] == last})
    free = sorted(set(left) - set(test))
    free = _preferred(labels, free, {i for i in free if source[i] == "val"})
    sizes, served = Counter(labels[i] for i in test), {labels[i] for i in free}  # few images: rather a test than a validation
    free += [i for i in test if labels[i] not in served and sizes[labels[i]] > VAL_PER_CLASS]
    val = sorted(free[i] for i in k_shot([labels[i] for i in free], VAL_PER_CLASS, seed, on_short="keep"))
    test = sorted(set(test) - set(val))
    if test_per_class:
        test = [test[i] for i in k_shot([labels[i] for i in test], test_per_class, seed, on_short="keep")]
    marked = data.add_column("seen", [label in chosen for label in labels])
    return DatasetDict({name: marked.select(rows) for name, rows in (("train", train), ("val", val), ("test", test))})


def _parts(data: Dataset) -> list[str | None]:
    """The source's part of each picture; None for all where it has no training part beside another one."""
    parts = list(data["split"]) if "split" in data.column_names else []
    return parts if "train" in parts and set(parts) - {None, "train"} else [None] * len(data)


def _preferred(labels, rows, good: set[int]) -> list[int]:
    """Of each class the good rows, or all of its rows where it has no good one."""
    served = {labels[i] for i in good}
    return [i for i in rows if i in good or labels[i] not in served]


def _classes_with(labels, rows, least: int) -> list[str]:
    return sorted(label for label, n in Counter(labels[i] for i in rows).items() if n >= least)


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
    """The classes of a released closed-world file (JSONL with `ground_truth`), for `few_shot(seen=...)`.

    ValueError naming a broken line.
    """
    found = set()
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        try:
            found |= {json.loads(line)["ground_truth"]} if line.strip() else set()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: should be an object with ground_truth ({error!r})") from None
    return sorted(found)
