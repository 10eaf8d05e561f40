"""What the policy gets to see: few-shot subsets, splits, triplets, dynamic sampling. Torch-free.

For each *anchor* image TAPO (arXiv 2602.07605, section 4.3) takes a *positive*, another image of the same
class, and a *negative*, an image of the most similar other class. Each position of a sequence has its own generator,
seeded with a string such as "0/triplet/3/17" (seed 0, epoch 3, position 17), so that a resumed run continues exactly.

The paper does not say by which feature classes are "visually similar"; here the ranking is an argument. Online
negatives and the curriculum are additions.
"""

import hashlib
import json
import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

NEAREST = 256  # look-alikes kept for a class: all of them up to 257 classes, which is more than the paper's sets have


class Triplet(NamedTuple):
    """Three indices into the data set."""
    anchor: int
    positive: int
    negative: int


def _rng(*key) -> random.Random:  # Python seeds strings through SHA-512; the salt of hash() plays no part
    return random.Random("/".join(map(str, key)))


def _pick(rng: random.Random, items: Sequence):  # random() alone: Python promises its sequence across versions
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: Iterable) -> list:  # Fisher-Yates, for the same reason
    items = list(items)
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]
    return items


def check_names(names: Iterable[str]) -> list[str]:
    """The distinct names, sorted. ValueError if two differ only in case or spaces: one class, two spellings.

    And for one without a letter or digit, as answers are compared by these: every answer would hold it.
    """
    spelling: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not any(c.isalnum() for c in name):
            raise ValueError(f"{name!r} is not a class name; labels must be strings with a letter or digit")
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

    A smaller k draws a part of a larger k's. Fewer than k images: ValueError, or with on_short="keep" all of them.
    """
    chosen: list[int] = []
    for name, images in _by_class(labels).items():
        if len(images) < k and on_short != "keep":
            raise ValueError(f"class {name!r} has {len(images)} images, below k={k}; see on_short='keep'")
        chosen += _shuffled(_rng(seed, "k_shot", name), images)[:k]
    return sorted(chosen)


def split_classes(
    classes: Iterable[str], seen_fraction: float = 0.6, seed: int = 0, seen: Iterable[str] | None = None
) -> tuple[list[str], list[str]]:
    """(seen, unseen) class names, each sorted: at random, or by a given list of seen ones.

    The number of seen classes is rounded down: 60% of 196 cars is 117, as in the paper's split. Repeats count once.
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


def nearest_classes(labels: Sequence[str], embeddings) -> dict[str, list[str]]:
    """Which class looks like which, by the cosine of mean image features: class -> others, most similar first.

    embeddings (images, dimensions) come from any encoder, as anything that `numpy.asarray` reads. Ties (to 1e-9)
    go by name, so the order of the images never matters. At most the NEAREST others are kept.
    """
    rows, images = np.asarray(embeddings), _by_class(labels)
    broken = ValueError(f"embeddings are {rows.shape}; needed are {len(labels)} finite rows, none of them zero")
    if len(rows) != len(labels):
        raise broken
    means = []
    for indices in images.values():  # class by class: a copy of all rows may not fit
        own = np.asarray(rows[indices], dtype=np.float64)
        length = np.linalg.norm(own, axis=1, keepdims=True)
        if not (np.isfinite(length) & (length > 0)).all():
            raise broken
        means.append((own / length).mean(axis=0))
    means = np.stack(means) / np.linalg.norm(means, axis=1, keepdims=True)
    nearest, names, most = {}, list(images), min(NEAREST, len(images) - 1)
    for start in range(0, len(names), NEAREST):
        rank = np.rint(means[start : start + NEAREST] @ means.T * -1e9).astype(np.int64)
        rank = rank * len(names) + np.arange(len(names))  # of equals, the first by name
        rank[range(len(rank)), range(start, start + len(rank))] = np.iinfo(np.int64).max  # not the class itself
        chosen = np.sort(np.partition(rank, most - 1)[:, :most]) % len(names)
        nearest |= {name: [names[j] for j in row] for name, row in zip(names[start:], chosen.tolist())}
    return nearest


class ConfusionCounts:
    """Online hard negatives: which class the current policy takes for which, learnt from its own answers.

    counts[true][predicted] is multiplied by decay at each later answer for the same true class, right or wrong.
    """

    def __init__(self, classes: Iterable[str], decay: float = 0.95):
        self.decay = decay
        self.counts: dict[str, dict[str, float]] = {name: {} for name in check_names(classes)}

    def update(self, true: str, predicted: str | None) -> None:
        """Count one answer of the policy; one that is no class, as spelt in classes, is ignored."""
        if predicted in self.counts:
            row = self.counts[true] = {name: count * self.decay for name, count in self.counts[true].items()}
            if predicted != true:
                row[predicted] = row.get(predicted, 0.0) + 1.0

    def hardest(self, true: str, fallback: str | None = None, among: Iterable[str] | None = None) -> str | None:
        """The class most often taken for true (ties: first by name) if its count is at least 0.1, else fallback."""
        row = [(-n, name) for name, n in self.counts[true].items() if n >= 0.1 and (among is None or name in among)]
        return min(row)[1] if row else fallback


class TripletSampler:
    """Endless triplets (anchor, positive of the same class, negative of another), as indices into labels.

    Each epoch visits every image once as the anchor, in a new order. The positive is drawn from the other
    images of its class, the negative from the images of one other class:

        "similar"  by rank in nearest: hardness 1 takes the most similar class (paper), 0 the least similar of them
        "random"   any other class
        "online"   the class that the policy confuses most with this one (confusion), else as "similar"

    hardness=(start, end) goes from easy to hard in a straight line over curriculum_triplets triplets. nearest: class
    -> others, most similar first. A class with one image has it as its positive too, which only DAPO can use.
    ValueError for a class without a look-alike.
    """

    def __init__(
        self, labels: Sequence[str], nearest: Mapping[str, Sequence[str]], seed: int,
        hardness: float | tuple[float, float] = 1.0, curriculum_triplets: int | None = None,
        negative: str = "similar", confusion: ConfusionCounts | None = None,
    ):  # fmt: skip
        if negative not in ("similar", "random", "online") or (negative == "online" and confusion is None):
            raise ValueError(f"negative is {negative!r}; choose 'similar', 'random', or 'online' with confusion=")
        self.labels, self.seed, self.negative, self.confusion = list(labels), seed, negative, confusion
        self.hardness = hardness if isinstance(hardness, tuple) else (hardness, hardness)
        if not all(0 <= h <= 1 for h in self.hardness) or (len(set(self.hardness)) > 1 and not curriculum_triplets):
            raise ValueError("hardness must lie in 0 .. 1; (start, end) also needs curriculum_triplets")
        self.curriculum_triplets = curriculum_triplets or 1
        self.images = _by_class(self.labels)
        self.rankings = {name: self._ranking(name, nearest.get(name, ())) for name in self.images}
        self.drawn = 0

    def _ranking(self, name: str, ranked: Sequence[str]) -> list[str]:
        present = [other for other in ranked if other in self.images]
        if name in present or (not present and self.negative != "random"):
            raise ValueError(f"class {name!r} has no look-alike with images in nearest, or is listed as its own")
        return present

    def __len__(self) -> int:
        """Triplets per epoch."""
        return len(self.labels)

    def _negative_class(self, label: str, rng: random.Random) -> str:
        others = [name for name in self.images if name != label]
        confused = self.confusion.hardest(label, among=others) if self.negative == "online" else None
        if confused is not None:
            return confused
        if self.negative == "random":
            return _pick(rng, others)
        (start, end), ranked = self.hardness, self.rankings[label]
        hardness = start + (end - start) * min(1.0, self.drawn / self.curriculum_triplets)
        return ranked[round((1 - hardness) * (len(ranked) - 1))]

    def _draw(self) -> Triplet:
        epoch, position = divmod(self.drawn, len(self))
        anchor = _shuffled(_rng(self.seed, "order", epoch), range(len(self)))[position]
        label, rng = self.labels[anchor], _rng(self.seed, "triplet", epoch, position)
        positive = _pick(rng, [i for i in self.images[label] if i != anchor] or [anchor])
        negative = _pick(rng, self.images[self._negative_class(label, rng)])
        self.drawn += 1
        return Triplet(anchor, positive, negative)

    def next(self, batch_size: int) -> list[Triplet]:
        """The next batch_size triplets; a batch may run over into the next epoch."""
        return [self._draw() for _ in range(batch_size)]

    def identity(self) -> dict:
        """Plain JSON values: all that decides the sequence but where it stands."""
        ranked = hashlib.sha256(json.dumps([self.labels, self.rankings]).encode()).hexdigest()[:16]
        curriculum = [*self.hardness, self.curriculum_triplets]
        decay = None if self.confusion is None else self.confusion.decay
        return {"ranked": ranked, "negative": self.negative, "curriculum": curriculum, "decay": decay}

    def state_dict(self) -> dict:
        """Plain JSON values: where the sequence stands, and the confusion counts if there are any."""
        labels = hashlib.sha256("\n".join(self.labels).encode()).hexdigest()[:16]
        counts = None if self.confusion is None else dict(self.confusion.counts)
        return {"seed": self.seed, "labels": labels, "drawn": self.drawn, "confusion": counts}

    def load_state_dict(self, state: dict) -> None:
        """Go on where the state was taken. ValueError if it belongs to another seed or data set."""
        here = self.state_dict()
        if any(state[name] != here[name] for name in ("seed", "labels")):
            raise ValueError(f"the saved sampler is of another run or data: {state}, this one {here}")
        self.drawn = state["drawn"]
        if self.confusion is not None:
            self.confusion.counts = dict(state["confusion"])


class Filled(NamedTuple):
    """A batch from `fill_batch`: what was kept, rounds used, items drawn."""
    items: list
    rounds: int
    drawn: int


def fill_batch(
    draw: Callable[[int], Sequence], keep: Callable[[Sequence], Sequence[bool]], batch_size: int,
    max_rounds: int = 20,
) -> Filled:  # fmt: skip
    """Dynamic sampling (DAPO): draw groups, keep the useful ones, go on until batch_size are kept.

    draw(n): n new items. keep(items): a truth value for each. After max_rounds it warns (RuntimeWarning) and returns
    what it has; the released code raises there.
    """
    kept, drawn, rounds = [], 0, 0
    while len(kept) < batch_size and rounds < max_rounds:
        items = draw(batch_size - len(kept))
        kept += [item for item, useful in zip(items, keep(items), strict=True) if useful]
        drawn, rounds = drawn + len(items), rounds + 1
    if len(kept) < batch_size:
        warnings.warn(
            f"dynamic sampling kept {len(kept)} of {drawn} groups in {rounds} rounds, {batch_size} were asked for: "
            "questions are too easy or too hard: take other data, a larger group, more rounds", RuntimeWarning, 2,
        )  # fmt: skip
    return Filled(kept, rounds, drawn)
