"""The paper's split for any data set: 60% of the classes seen, four training images each, tests of all classes.

No picture is in two parts. Training images come from the training part of the source; its test part (else validation)
stays whole as test; val comes from its validation part, else from what is left, and a class gives what it has.
For pictures of your own, all classes may be seen and most pictures trained on.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable

from datasets import Dataset, DatasetDict

from ..samplers import k_shot, split_classes

VAL_PER_CLASS = 2


def few_shot(
    data: Dataset, shots: int | None = 4, seed: int = 0, seen_fraction: float = 0.6, seen: Iterable[str] | None = None,
    test_per_class: int | None = None,
) -> DatasetDict:  # fmt: skip
    """Split into `train` (shots images of each seen class), `val` (VAL_PER_CLASS of every class), `test` (the rest).

    data: columns image and label, perhaps split. Adds the column `seen`. seen: the seen classes (each `ground_truth` of
    a released file), instead of a draw with `seed`. test_per_class: the most of a class in `test`. shots: None for all
    but a fifth of each class, or the whole training part where the source has a test. A class with fewer than shots + 1
    images becomes unseen, with a warning. ValueError where no class is left to train on, or one of `seen` is too small.
    """
    labels, source = list(data["label"]), list(data["split"]) if "split" in data.column_names else []
    if "train" not in source or not set(source) - {None, "train"}:  # one part alone
        source = [None] * len(data)
    pool = [i for i, part in enumerate(source) if part in (None, "train")]
    whole, usable = Counter(labels), Counter(labels[i] for i in pool)
    drawn = split_classes(labels, seen_fraction, seed, seen)[0]
    if not drawn:
        advice = "give the seen ones as `seen`, or more classes"
        raise ValueError(f"{seen_fraction:.0%} of {len(whole)} class(es) is none to train on: {advice}")
    fewest = 1 if shots is None else shots
    small = [name for name in drawn if whole[name] <= fewest or usable[name] < fewest]
    if len(small) == len(drawn) or (small and seen is not None):
        raise ValueError(f"too few images for {fewest} shots and a test in {small[:5]} of the seen {drawn[:5]}")
    if small:
        warnings.warn(f"{len(small)} class(es) too small are never trained on: {', '.join(small[:5])}", stacklevel=2)
    chosen = set(drawn) - set(small)
    mine = [i for i in pool if labels[i] in chosen]
    if shots is None and "test" not in source:
        sizes = Counter(labels[i] for i in mine)
        each = [([i for i in mine if labels[i] == name], n - math.ceil(n / 5)) for name, n in sizes.items()]
        train = sorted(row for rows, number in each for row in _drawn(rows, labels, number, seed))
    else:
        train = _drawn(mine, labels, shots or len(mine), seed)
    left = sorted(set(range(len(data))) - set(train))
    last = "test" if "test" in source else "val"
    test = _preferred(labels, left, {i for i in left if source[i] == last})
    free = sorted(set(left) - set(test))
    free = _preferred(labels, free, {i for i in free if source[i] == "val"})
    sizes, served = Counter(labels[i] for i in test), {labels[i] for i in free}  # rather a test than a val
    free += [i for i in test if labels[i] not in served and sizes[labels[i]] > VAL_PER_CLASS]
    val = sorted(_drawn(free, labels, VAL_PER_CLASS, seed))
    test = sorted(set(test) - set(val))
    if test_per_class:
        test = _drawn(test, labels, test_per_class, seed)
    marked = data.add_column("seen", [label in chosen for label in labels])
    return DatasetDict({name: marked.select(rows) for name, rows in (("train", train), ("val", val), ("test", test))})


def _drawn(rows: list[int], labels: list[str], number: int, seed: int) -> list[int]:
    return [rows[i] for i in k_shot([labels[i] for i in rows], number, seed, on_short="keep")]


def _preferred(labels: list[str], rows: list[int], good: set[int]) -> list[int]:
    """Of each class the good rows, or all of its rows where it has no good one."""
    served = {labels[i] for i in good}
    return [i for i in rows if i in good or labels[i] not in served]
