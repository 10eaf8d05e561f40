"""Chains from a table of what each class looks like: for who has a field guide, but no large teacher.

Departure from the paper: the analysis tells what the class looks like, not what this image shows, so a student learns
to guess the parts that are hidden in the image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..cot.chains import MAX_CANDIDATES, Chain
from ..cot.concepts import split_concepts
from ..files import read_csv


def read_guide(path: str | Path) -> dict[str, list[str]]:
    """A CSV file with the columns `name` and `looks`: each class with the phrases of its looks. ValueError, with the
    line, for a class without looks or named twice, and without the two columns."""
    guide: dict[str, list[str]] = {}
    for line, row in read_csv(path, ("name", "looks")):
        name, phrases = row["name"], split_concepts(row["looks"])
        if not name or not phrases or name in guide:
            raise ValueError(f"{path}, line {line}: {name!r} is named twice, or lacks its name or looks")
        guide[name] = phrases
    return guide


def guide_chain(guide: Mapping[str, Sequence[str]], label: str) -> Chain:
    """The chain to `label`, beside the classes that share most phrases with it. KeyError where the guide lacks it.

    >>> guide_chain({"a": ["red", "long"], "b": ["red", "short"]}, "a").comparison
    'a: fits. b: short.'
    """
    mine = set(guide[label])
    others = sorted((n for n in guide if n != label), key=lambda n: (-len(mine & set(guide[n])), n))
    names = sorted([label, *others[: MAX_CANDIDATES - 1]])
    instead = {n: ", ".join(p for p in guide[n] if p not in mine) or "the same looks" for n in names}
    instead[label] = "fits"
    comparison = ". ".join(f"{n}: {words}" for n, words in instead.items()) + "."
    return Chain(", ".join(guide[label]) + ".", names, comparison, label)
