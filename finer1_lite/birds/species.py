"""The species of the bird world: attributes, families, names and facts, all drawn from one seed.

A *family* shares four of the eight attributes; its species differ in the other four, and each has a
look-alike that differs in one or two. A name is an invented epithet and the family's noun, so its
words say nothing of the looks: who has not read the field guide cannot guess.
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
HEAD, BODY, SHAPE = ("crown", "eye", "beak"), ("back", "breast", "belly"), ("wing", "tail")
NESTS = ("reeds", "cliffs", "trees", "burrows", "meadows")
FOODS = ("seeds", "fish", "insects", "berries", "snails")

FAMILY_NOUNS = (
    "tarn", "wick", "pell", "sorrel", "quin", "marl", "brisk", "dunnet", "fenn", "gart",
    "hask", "jorrow", "kelt", "lomond", "nape", "ostrel", "pruve", "rell", "shrike", "varden",
)  # fmt: skip
SPECIES_PER_FAMILY, COMMON_PER_FAMILY, WORLD_SEED = 10, 2, 7


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
        """The looks as a phrase: "red crown, brown back, ..."."""
        return describe(self.looks, attributes)


def describe(looks, attributes=tuple(ATTRIBUTES)) -> str:
    """Attribute values as words, in the order of `attributes` ("double wing" reads "double wing")."""
    by_name = dict(zip(ATTRIBUTES, looks))
    return ", ".join(f"{by_name[a]} {a}" for a in attributes)


def differences(a, b) -> list[str]:
    """Names of the attributes in which two looks differ, in the canonical order."""
    return [name for name, x, y in zip(ATTRIBUTES, a, b) if x != y]


def _epithets(rng: np.random.Generator, n: int) -> list[str]:
    """`n` invented words, none of which is contained in another."""
    onset, middle = "b br c d dr f g h j k l m n p pl r s st t tr v w z".split(), "b d f k l m n p r s t v".split()
    vowel, coda = "a e i o u".split(), "nd l rt x m sk th n p d".split()
    words: list[str] = []
    while len(words) < n:
        word = "".join(str(rng.choice(part)) for part in (onset, vowel, middle, vowel, coda))
        if not any(word in w or w in word for w in [*words, *FAMILY_NOUNS]):
            words.append(word)
    return words


def _family_codes(rng: np.random.Generator) -> list[np.ndarray]:
    """One base look for each family; any two differ in at least four attributes."""
    sizes = [len(v) for v in ATTRIBUTES.values()]
    bases: list[np.ndarray] = []
    while len(bases) < len(FAMILY_NOUNS):
        code = np.array([rng.integers(s) for s in sizes])
        if all((code != b).sum() >= 4 for b in bases):
            bases.append(code)
    return bases


def _member_codes(rng: np.random.Generator, base: np.ndarray) -> list[tuple[int, ...]]:
    """Ten looks of one family: each new one changes one or two of four attributes of an older one."""
    sizes = [len(v) for v in ATTRIBUTES.values()]
    varying = rng.choice(len(sizes), size=4, replace=False)
    codes = [tuple(int(c) for c in base)]
    while len(codes) < SPECIES_PER_FAMILY:
        code = list(codes[rng.integers(len(codes))])
        for slot in rng.choice(varying, size=int(rng.choice([1, 2, 2])), replace=False):
            code[slot] = int((code[slot] + rng.integers(1, sizes[slot])) % sizes[slot])
        if tuple(code) not in codes:
            codes.append(tuple(code))
    return [codes[i] for i in rng.permutation(SPECIES_PER_FAMILY)]


@cache
def all_species() -> tuple[Species, ...]:
    """The 200 species of the world, always the same: 20 families of 10, of each 2 common."""
    rng = np.random.default_rng(WORLD_SEED)
    values = list(ATTRIBUTES.values())
    bases, taken, species = _family_codes(rng), set(), []
    names = _epithets(rng, len(FAMILY_NOUNS) * SPECIES_PER_FAMILY)
    for family, base in zip(FAMILY_NOUNS, bases):
        codes = _member_codes(rng, base)
        while taken & set(codes):  # no two species of the world look the same
            codes = _member_codes(rng, base)
        taken |= set(codes)
        for j, code in enumerate(codes):
            looks = tuple(v[c] for v, c in zip(values, code))
            nest, food = str(rng.choice(NESTS)), str(rng.choice(FOODS))
            index = len(species)
            name = f"{names[index]} {family}"
            species.append(Species(index, name, family, looks, j < COMMON_PER_FAMILY, nest, food))
    return tuple(species)


@cache
def by_name() -> dict[str, Species]:
    """Species by their full name."""
    return {s.name: s for s in all_species()}


@cache
def family_members(family: str) -> tuple[Species, ...]:
    """All species of a family; ValueError for an unknown one."""
    if family not in FAMILY_NOUNS:
        raise ValueError(f"unknown family {family!r}; the families are: {', '.join(FAMILY_NOUNS)}")
    return tuple(s for s in all_species() if s.family == family)


@cache
def look_alikes(name: str, k: int = 3) -> tuple[Species, ...]:
    """The `k` species that differ from `name` in the fewest attributes, nearest first."""
    me = by_name()[name]
    others = [s for s in all_species() if s.name != name]
    return tuple(sorted(others, key=lambda s: (len(differences(me.looks, s.looks)), s.index))[:k])


def bird_truth(rows) -> list[list[str]] | None:
    """The looks of the species of rows with a `label`, as phrases ("red crown"); None if a label is no species."""
    if not all(row.label in by_name() for row in rows):
        return None
    return [by_name()[row.label].describe().split(", ") for row in rows]
