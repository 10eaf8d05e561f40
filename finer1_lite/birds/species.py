"""The species of the bird world: attributes, families, names and facts, all drawn from one seed.

A *family* shares four of the eight attributes; its species differ in the other four, and each has a look-alike that
differs in one or two. A name is an invented epithet and the family's noun: its words say nothing of the looks.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "crown": ("black", "red", "yellow", "white"),
    "back": ("brown", "gray", "green", "blue"),
    "breast": ("plain", "spotted", "streaked", "banded"),
    "belly": ("white", "yellow", "orange", "gray"),
    "wing": ("plain", "single", "double", "patched"),
    "tail": ("short", "long", "forked"),
    "beak": ("thin", "thick", "hooked", "long"),
    "eye": ("plain", "ringed", "masked"),
}
NESTS = ("reeds", "cliffs", "trees", "burrows", "meadows")
FOODS = ("seeds", "fish", "insects", "berries", "snails")
FAMILY_NOUNS = (
    "tarn", "wick", "pell", "sorrel", "quin", "marl", "brisk", "dunnet", "fenn", "gart",
    "hask", "jorrow", "kelt", "lomond", "nape", "ostrel", "pruve", "rell", "shrike", "varden",
)  # fmt: skip
SYLLABLES = tuple(part.split() for part in (  # an epithet takes one of each
    "b br c d dr f g h j k l m n p pl r s st t tr v w z", "a e i o u", "b d f k l m n p r s t v", "a e i o u",
    "nd l rt x m sk th n p d",
))  # fmt: skip
SPECIES_PER_FAMILY, COMMON_PER_FAMILY = 10, 2


@dataclass(frozen=True)
class Species:
    """One species. `looks` gives the value of each attribute; `common` species are in no evaluation."""
    index: int
    name: str
    family: str
    looks: tuple[str, ...]
    common: bool
    nest: str
    food: str

    def describe(self, attributes=tuple(ATTRIBUTES)) -> str:
        """Some or all of the looks as a phrase, see `describe` below."""
        return describe(self.looks, attributes)


def describe(looks, attributes=tuple(ATTRIBUTES)) -> str:
    """The values of `attributes` as a phrase, in that order: "red crown, brown back"."""
    values = dict(zip(ATTRIBUTES, looks))
    return ", ".join(f"{values[a]} {a}" for a in attributes)


def differences(a, b) -> list[str]:
    """Names of the attributes in which two looks differ, in the order of `ATTRIBUTES`."""
    return [name for name, x, y in zip(ATTRIBUTES, a, b) if x != y]


def _family_looks(rng: np.random.Generator, base: np.ndarray) -> list[tuple[int, ...]]:
    sizes = [len(values) for values in ATTRIBUTES.values()]
    varying = rng.choice(len(sizes), size=4, replace=False)
    looks = [tuple(int(value) for value in base)]
    while len(looks) < SPECIES_PER_FAMILY:
        new = list(looks[rng.integers(len(looks))])  # one or two of four attributes of it change
        for slot in rng.choice(varying, size=int(rng.choice([1, 2, 2])), replace=False):
            new[slot] = int((new[slot] + rng.integers(1, sizes[slot])) % sizes[slot])
        if tuple(new) not in looks:
            looks.append(tuple(new))
    return [looks[i] for i in rng.permutation(SPECIES_PER_FAMILY)]


@cache
def all_species() -> tuple[Species, ...]:
    """The 200 species of the world, always the same: 20 families of 10, of each 2 common."""
    rng, bases, epithets, species, taken = np.random.default_rng(7), [], [], [], set()
    while len(bases) < len(FAMILY_NOUNS):  # any two families differ in at least four attributes
        base = np.array([rng.integers(len(values)) for values in ATTRIBUTES.values()])
        if all((base != other).sum() >= 4 for other in bases):
            bases.append(base)
    while len(epithets) < len(FAMILY_NOUNS) * SPECIES_PER_FAMILY:  # none is part of another: names are found in texts
        word = "".join(str(rng.choice(part)) for part in SYLLABLES)
        if not any(word in w or w in word for w in [*epithets, *FAMILY_NOUNS]):
            epithets.append(word)
    for family, base in zip(FAMILY_NOUNS, bases):
        while taken & set(members := _family_looks(rng, base)):  # no two species of the world look the same
            pass
        taken |= set(members)
        for j, member in enumerate(members):
            looks = tuple(values[i] for values, i in zip(ATTRIBUTES.values(), member))
            nest, food, name = str(rng.choice(NESTS)), str(rng.choice(FOODS)), f"{epithets[len(species)]} {family}"
            species.append(Species(len(species), name, family, looks, j < COMMON_PER_FAMILY, nest, food))
    return tuple(species)


@cache
def by_name() -> dict[str, Species]:
    """Species by their full name."""
    return {s.name: s for s in all_species()}


@cache
def family_members(family: str) -> tuple[Species, ...]:
    """All species of a family (`FAMILY_NOUNS`)."""
    return tuple(s for s in all_species() if s.family == family)


def nearest(looks, species) -> list[Species]:
    """`species` (any iterable) by the number of attributes in which they differ from `looks`, nearest first."""
    return sorted(species, key=lambda s: (len(differences(s.looks, looks)), s.index))


@cache
def look_alikes(name: str, k: int = 3) -> tuple[Species, ...]:
    """The `k` species of the world that differ from the species `name` in the fewest attributes, nearest first."""
    return tuple(nearest(by_name()[name].looks, (s for s in all_species() if s.name != name))[:k])


def bird_truth(rows) -> list[list[str]] | None:
    """The looks of the species of rows with a `label`, as phrases ("red crown"); None if a label is no species."""
    known = all(row.label in by_name() for row in rows)
    return [by_name()[row.label].describe().split(", ") for row in rows] if known else None
