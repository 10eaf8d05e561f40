"""Chains from a table of what each class looks like: for who has a field guide, but no large teacher.

Departure from the paper: the analysis tells what the class looks like, not what this image shows, so a student learns
to guess the parts that are hidden in the image.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ..cot.chains import MAX_CANDIDATES, Chain
from ..cot.concepts import split_concepts
from ..data.names import clean_names
from ..files import read_csv, write_csv


def read_guide(path: str | Path, classes: Collection[str] = ()) -> dict[str, list[str]]:
    """A CSV file with the columns `name` and `looks`: each class, its name cleaned, with the phrases of its looks.

    ValueError, with all lines, for a class without looks or named twice, and, where the `classes` of the data are
    given, for one that is none of them and for those that the table lacks; also without the two columns.
    """
    rows, guide, wrong = read_csv(path, ("name", "looks")), {}, []
    names = clean_names(row["name"] for _, row in rows if row.get("name"))
    for line, row in rows:
        name, phrases = names.get(row.get("name"), ""), split_concepts(row.get("looks", ""))
        if not name or not phrases or name in guide:
            wrong.append(f"line {line}: {name!r} is named twice, or lacks its name or looks")
        elif classes and name not in classes:
            wrong.append(f"line {line}: the data have no class {name!r}: correct it, or take the line out")
        guide[name] = phrases
    if missing := [name for name in classes if name not in guide]:
        wrong.append(f"add lines for the classes {', '.join(map(repr, missing))}")
    if wrong:
        raise ValueError(f"{path}, " + "\n".join(wrong))
    return guide


def write_guide_template(path: str | Path, classes: Iterable[str]) -> None:
    """A table for `read_guide`, the looks of each class to be filled in. FileExistsError for one that is there."""
    if Path(path).exists():
        raise FileExistsError(f"{path} is there already; give the template another name")
    write_csv(path, ({"name": name, "looks": ""} for name in sorted(set(classes))))


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
