"""What the policy gets to see: few-shot subsets, splits, triplets, dynamic sampling. Torch-free.

For each *anchor* image TAPO (arXiv 2602.07605, section 3.2) takes a *positive*, another image of the same
class, and a *negative*, an image of the most similar other class. Labels are strings, images are indices into
the data set, embeddings are whatever `numpy.asarray` reads.

Every draw comes from a seed. Each position of a sequence has its own generator, seeded with a string such as
"0/triplet/3/17" (seed 0, epoch 3, anchor 17). So a sampler's whole state is one count, and a resumed run
continues the sequence exactly, in any process and on any Python 3.

Departures from the paper: it does not say by which feature classes are "visually similar", and no code for
triplets is released; here similarity is an argument: image features, class names or a table. The paper's
negatives are fixed; online negatives and the curriculum are additions.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Triplet(NamedTuple):
    """Three indices into the data set."""

    anchor: int
    positive: int
    negative: int


def _one_of(name: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {allowed}")


def _rng(*key) -> random.Random:
    """A generator for this key. Python seeds strings through SHA-512; the salt of `hash()` plays no part."""
    return random.Random("/".join(map(str, key)))


def _pick(rng: random.Random, items: Sequence):
    """One of items, uniformly. Only random() is used: Python promises its sequence across versions."""
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: Iterable) -> list:
    """Fisher-Yates on random() alone, for the same reason."""
    items = list(items)
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]
    return items


# ---- labels and splits


def check_names(names: Iterable[str]) -> list[str]:
    """The distinct names, sorted. ValueError if two differ only in case or spaces: one class, two spellings.

    >>> check_names(["wren", "House Finch", "wren"])
    ['House Finch', 'wren']
    """
    spelling: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{name!r} is not a class name; labels must be non-empty strings")
        first = spelling.setdefault(" ".join(name.casefold().split()), name)
        if first != name:
            raise ValueError(f"{first!r} and {name!r} differ only in case or spaces; choose one spelling")
    return sorted(spelling.values())


def _by_class(labels: Sequence[str]) -> dict[str, list[int]]:
    images: dict[str, list[int]] = {name: [] for name in check_names(labels)}
    for index, label in enumerate(labels):
        images[label].append(index)
    return images


def k_shot(labels: Sequence[str], k: int, seed: int, on_short: str = "error") -> list[int]:
    """k images of each class: sorted indices into labels. The paper takes k = 4.

    A class's draw depends only on its name, its images and the seed; a smaller k draws a part of a larger
    k's. A class with fewer than k images: ValueError, or with on_short="keep" all that it has.

    >>> labels = ["a", "b", "a", "b", "a"]
    >>> [labels[i] for i in k_shot(labels, 2, seed=0)].count("a")
    2
    """
    _one_of("on_short", on_short, ("error", "keep"))
    if k < 1:
        raise ValueError(f"k is {k}; it must be 1 or more")
    chosen: list[int] = []
    for name, images in _by_class(labels).items():
        if len(images) < k and on_short == "error":
            raise ValueError(f"class {name!r} has {len(images)} images, below k={k}; see on_short='keep'")
        chosen += _shuffled(_rng(seed, "k_shot", name), images)[:k]
    return sorted(chosen)


def split_classes(
    classes: Iterable[str], seen_fraction: float = 0.6, seed: int = 0, seen: Iterable[str] | None = None
) -> tuple[list[str], list[str]]:
    """(seen, unseen) class names, each sorted: at random, or by a given list of seen ones.

    The number of seen classes is rounded down: 60% of 196 cars is 117, as in the paper's split. Repeats in
    classes count once, so the labels of a data set will do.

    >>> split_classes(["a", "b", "c", "d", "e"], seen=["b", "a"])
    (['a', 'b'], ['c', 'd', 'e'])
    """
    names = check_names(classes)
    if not 0 <= seen_fraction <= 1:
        raise ValueError(f"seen_fraction is {seen_fraction}; it must lie in 0 .. 1")
    if seen is None:
        count = math.floor(seen_fraction * len(names) + 1e-9)  # in floats, 0.6 * 35 may fall short of 21
        seen = _shuffled(_rng(seed, "split"), names)[:count]
    chosen = set(check_names(seen))
    if chosen - set(names):
        raise ValueError(f"seen classes that the data set does not have: {sorted(chosen - set(names))[:5]}")
    return sorted(chosen), [name for name in names if name not in chosen]


# ---- which class looks like which: class -> other classes, most similar first


def _unit_rows(embeddings, what: str, count: int) -> np.ndarray:
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != count:
        raise ValueError(f"embeddings are {rows.shape}; one row per {what} is needed: ({count}, dimensions)")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))
    if bad.size:
        raise ValueError(f"the embedding of {what} {bad[0]} is zero or not finite; its cosine has no meaning")
    return rows / length


def _class_means(labels: Sequence[str], rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    images = _by_class(labels)
    means = np.stack([rows[indices].mean(axis=0) for indices in images.values()])
    return list(images), _unit_rows(means, "class mean", len(images))


def _ranked(names: Sequence[str], similarity: np.ndarray, own: str) -> list[str]:
    """names without own, most similar first; ties (to 1e-9) by name, so the input's order never matters."""
    order = sorted(range(len(names)), key=lambda j: (-round(float(similarity[j]), 9), names[j]))
    return [names[j] for j in order if names[j] != own]


def nearest_classes(labels: Sequence[str], embeddings) -> dict[str, list[str]]:
    """By the cosine of the classes' mean image features: (images, dimensions) from any encoder.

    >>> nearest_classes(["a", "b", "c"], [[1, 0], [1, 0.1], [0, 1]])["a"]
    ['b', 'c']
    """
    names, means = _class_means(labels, _unit_rows(embeddings, "image", len(labels)))
    return {name: _ranked(names, similarity, name) for name, similarity in zip(names, means @ means.T)}


def nearest_classes_per_image(labels: Sequence[str], embeddings) -> dict[int, list[str]]:
    """As `nearest_classes`, for each image by its own features: image index -> other classes."""
    rows = _unit_rows(embeddings, "image", len(labels))
    names, means = _class_means(labels, rows)
    return {i: _ranked(names, similarity, labels[i]) for i, similarity in enumerate(rows @ means.T)}


def nearest_by_name(classes: Iterable[str], embed_text: Callable[[list[str]], object]) -> dict:
    """By the cosine of class names. embed_text: n strings -> (n, dimensions)."""
    names = check_names(classes)
    return nearest_classes(names, embed_text(names))


def nearest_by_table(table: Mapping[str, Sequence[str] | Mapping[str, float]]) -> dict[str, list[str]]:
    """By a given table, checked: class -> other classes, most similar first, or class -> {other: similarity}.

    >>> nearest_by_table({"a": {"b": 0.1, "c": 0.9}, "b": ["a"]})
    {'a': ['c', 'b'], 'b': ['a']}
    """
    check_names([*table, *(other for others in table.values() for other in others)])
    nearest = {}
    for name, others in table.items():
        by_score = isinstance(others, Mapping)
        nearest[name] = sorted(others, key=lambda o: (-others[o], o)) if by_score else list(others)
        if name in others or len(set(others)) < len(others):
            raise ValueError(f"the table lists {name!r} as its own look-alike, or a look-alike of it twice")
    return nearest


class ConfusionCounts:
    """Online hard negatives: which class the current policy takes for which, learnt from its own answers.

    counts[true][predicted] is multiplied by decay at each later answer for the same true class, so it forgets
    what the policy no longer confuses. A right answer only fades the counts; an answer that is no class is
    ignored.

    >>> confusion = ConfusionCounts(["a", "b", "c"], decay=0.5)
    >>> confusion.update("a", "b"); confusion.update("a", "c"); confusion.counts["a"]
    {'b': 0.5, 'c': 1.0}
    >>> confusion.hardest("a", fallback="b"), confusion.hardest("b", fallback="a")
    ('c', 'a')
    """

    def __init__(self, classes: Iterable[str], decay: float = 0.95, min_count: float = 0.1):
        if not 0 < decay <= 1:
            raise ValueError(f"decay is {decay}; it must lie in (0, 1]; 1 never forgets")
        self.decay, self.min_count = decay, min_count
        self.counts: dict[str, dict[str, float]] = {name: {} for name in check_names(classes)}

    def update(self, true: str, predicted: str | None) -> None:
        """One answer of the policy. predicted: a class as spelt in classes; anything else is ignored."""
        if true not in self.counts:
            raise ValueError(f"{true!r} is not one of the {len(self.counts)} classes that are counted")
        if predicted not in self.counts:
            return
        row = self.counts[true] = {name: count * self.decay for name, count in self.counts[true].items()}
        if predicted != true:
            row[predicted] = row.get(predicted, 0.0) + 1.0

    def hardest(
        self, true: str, fallback: str | None = None, among: Iterable[str] | None = None
    ) -> str | None:
        """The class most often taken for true (ties: first by name) if its count reaches min_count."""
        allowed = set(self.counts if among is None else among)
        row = [(-count, name) for name, count in self.counts[true].items() if name in allowed]
        return min(row)[1] if row and -min(row)[0] >= self.min_count else fallback

    def state_dict(self) -> dict:
        """Plain JSON values."""
        return {"counts": {name: dict(row) for name, row in self.counts.items() if row}}

    def load_state_dict(self, state: dict) -> None:
        unknown = set(state["counts"]) - set(self.counts)
        if unknown:
            raise ValueError(f"the saved confusion counts are of other classes: {sorted(unknown)[:5]}")
        self.counts = {name: dict(state["counts"].get(name, {})) for name in self.counts}


# ---- triplets


class TripletSampler:
    """Endless triplets (anchor, positive of the same class, negative of another), as indices into labels.

    Each epoch visits every usable image once as the anchor, in a new order. The positive is drawn from the
    other images of its class, the negative from the images of one other class:

        "similar"  by rank in nearest: hardness 1 takes the most similar class (paper), 0 the least similar
        "random"   any other class
        "online"   the class that the policy confuses most with this one (confusion), else as "similar"

    hardness=(start, end) goes from easy to hard in a straight line over curriculum_triplets triplets. nearest
    maps a class or an image's index to other classes, most similar first; those without an image in labels
    are passed over. A class with one image has no positive: ValueError, or with on_single="skip" it gives
    negatives only. A class with no look-alike: ValueError, or with on_no_lookalike="random" any other class.

    >>> sampler = TripletSampler(["a", "a", "b", "b"], {"a": ["b"], "b": ["a"]}, seed=0)
    >>> all({t.anchor, t.positive} in ({0, 1}, {2, 3}) for t in sampler.next(4))
    True
    """

    def __init__(
        self, labels: Sequence[str], nearest: Mapping[str | int, Sequence[str]], seed: int,
        hardness: float | tuple[float, float] = 1.0, curriculum_triplets: int | None = None,
        negative: str = "similar", confusion: ConfusionCounts | None = None, on_single: str = "error",
        on_no_lookalike: str = "error",
    ):
        _one_of("negative", negative, ("similar", "random", "online"))
        _one_of("on_single", on_single, ("error", "skip"))
        _one_of("on_no_lookalike", on_no_lookalike, ("error", "random"))
        self.labels, self.seed, self.negative, self.confusion = list(labels), seed, negative, confusion
        if negative == "online" and confusion is None:
            raise ValueError("negative='online' needs confusion=ConfusionCounts(classes), fed by your loop")
        self.hardness = hardness if isinstance(hardness, tuple) else (hardness, hardness)
        self.curriculum_triplets = self._check_curriculum(curriculum_triplets)
        self.images = _by_class(self.labels)
        self.anchors = self._usable_anchors(on_single)
        self.rankings = {i: self._ranking(i, nearest, on_no_lookalike) for i in self.anchors}
        self.drawn = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def _check_curriculum(self, curriculum_triplets: int | None) -> int:
        if not all(0 <= h <= 1 for h in self.hardness):
            raise ValueError(f"hardness is {self.hardness}; it must lie in 0 (least) .. 1 (most similar)")
        if self.hardness[0] != self.hardness[1] and not curriculum_triplets:
            raise ValueError("hardness=(start, end) needs curriculum_triplets, the number of triplets")
        return curriculum_triplets or 1

    def _usable_anchors(self, on_single: str) -> list[int]:
        if len(self.images) < 2:
            raise ValueError(f"{len(self.images)} class in the labels; a negative needs at least 2")
        single = [name for name, images in self.images.items() if len(images) == 1]
        if single and on_single == "error":
            raise ValueError(f"class {single[0]!r} has one image, so no positive ({len(single)} such); add "
                             "images, or on_single='skip' uses these classes for negatives only")
        anchors = [i for i, label in enumerate(self.labels) if len(self.images[label]) > 1]
        if not anchors:
            raise ValueError("no class has two images, so no anchor has a positive")
        return anchors

    def _ranking(self, index: int, nearest: Mapping, on_no_lookalike: str) -> list[str]:
        """Classes to draw the anchor's negative from, most similar first; empty: any other class."""
        label = self.labels[index]
        ranked = nearest[index] if index in nearest else nearest.get(label, ())
        if label in ranked:
            raise ValueError(f"nearest lists {label!r} as a look-alike of itself")
        present = [name for name in ranked if name in self.images]
        if not present and self.negative != "random" and on_no_lookalike == "error":
            raise ValueError(f"class {label!r} has no look-alike with images; add one to nearest, or "
                             "on_no_lookalike='random' draws from any other class")
        return present

    def __len__(self) -> int:
        """Triplets per epoch."""
        return len(self.anchors)

    def current_hardness(self) -> float:
        """Hardness of the next triplet, 0 .. 1."""
        start, end = self.hardness
        return start + (end - start) * min(1.0, self.drawn / self.curriculum_triplets)

    def _negative_class(self, anchor: int, rng: random.Random) -> str:
        label, ranked = self.labels[anchor], self.rankings[anchor]
        others = [name for name in self.images if name != label]
        confused = self.confusion.hardest(label, among=others) if self.negative == "online" else None
        if confused is not None:
            return confused
        if self.negative == "random" or not ranked:
            return _pick(rng, others)
        return ranked[round((1 - self.current_hardness()) * (len(ranked) - 1))]

    def _draw(self) -> Triplet:
        epoch, position = divmod(self.drawn, len(self))
        if self._order[0] != epoch:
            self._order = (epoch, _shuffled(_rng(self.seed, "order", epoch), self.anchors))
        anchor = self._order[1][position]
        rng = _rng(self.seed, "triplet", epoch, position)
        positive = _pick(rng, [i for i in self.images[self.labels[anchor]] if i != anchor])
        negative = _pick(rng, self.images[self._negative_class(anchor, rng)])
        self.drawn += 1
        return Triplet(anchor, positive, negative)

    def next(self, batch_size: int) -> list[Triplet]:
        """The next batch_size triplets; a batch may run over into the next epoch."""
        return [self._draw() for _ in range(batch_size)]

    def _identity(self) -> dict:
        return {"seed": self.seed, "labels": hashlib.sha256("\n".join(self.labels).encode()).hexdigest()[:16]}

    def state_dict(self) -> dict:
        """Plain JSON values: where the sequence stands, and the confusion counts if there are any."""
        confusion = None if self.confusion is None else self.confusion.state_dict()
        return self._identity() | {"drawn": self.drawn, "confusion": confusion}

    def load_state_dict(self, state: dict) -> None:
        """Go on where the state was taken. ValueError if it belongs to another seed or data set."""
        for name, here in self._identity().items():
            if state[name] != here:
                raise ValueError(f"saved sampler: {name}={state[name]}, this one {here}: another run or data")
        self.drawn = state["drawn"]
        if self.confusion is not None and state["confusion"] is not None:
            self.confusion.load_state_dict(state["confusion"])


# ---- dynamic sampling


class Filled(NamedTuple):
    """A batch from `fill_batch`: what was kept, rounds used, items drawn."""

    items: list
    rounds: int
    drawn: int


def fill_batch(
    draw: Callable[[int], Sequence], keep: Callable[[Sequence], Sequence[bool]], batch_size: int,
    max_rounds: int = 20,
) -> Filled:
    """Dynamic sampling (DAPO): draw groups, keep the useful ones, go on until batch_size are kept.

    draw(n): up to n new items, n = how many are missing. keep(items): a truth value for each, for instance
    `keep_groups(...).tolist()`. After max_rounds, or when draw has nothing left, it warns (RuntimeWarning)
    and returns what it has; the released code raises there.

    >>> numbers = iter(range(100))
    >>> fill_batch(lambda n: [next(numbers) for _ in range(n)], lambda xs: [x % 2 == 0 for x in xs], 3)
    Filled(items=[0, 2, 4], rounds=3, drawn=5)
    """
    if batch_size < 1 or max_rounds < 1:
        raise ValueError(f"batch_size is {batch_size} and max_rounds {max_rounds}; both must be 1 or more")
    kept, drawn, rounds = [], 0, 0
    while len(kept) < batch_size and rounds < max_rounds:
        items = draw(batch_size - len(kept))
        rounds += 1
        if len(items) == 0:
            break
        flags = list(keep(items))
        if len(flags) != len(items):
            raise ValueError(f"keep returned {len(flags)} values for {len(items)} items")
        drawn += len(items)
        kept += [item for item, flag in zip(items, flags) if flag]
    if len(kept) < batch_size:
        warnings.warn(
            f"dynamic sampling kept {len(kept)} of {drawn} groups in {rounds} rounds, {batch_size} were "
            "asked for; going on with these. The questions are too easy or too hard for the policy: "
            "take other data, a larger group or more rounds", RuntimeWarning, stacklevel=2,
        )
    return Filled(kept[:batch_size], rounds, drawn)
