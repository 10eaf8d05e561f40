"""Class names as people write them: the words that the model should say."""

import html
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable

from ..samplers import check_names

NUMBER = re.compile(r"(n\d{8}|\d+)([-._) ]+)(?=[^\W\d_])")  # "n02085620-" of ImageNet, "001." of CUB
BARE = re.compile(r"(?:(?:class|label|category|id)[\W_]*)?\d+|n\d{8}", re.IGNORECASE)  # "17", "class 17"


def clean_name(raw: str) -> str:
    """Underscores become spaces, HTML signs their letters, spaces single, letters NFKC, semicolons (which separate the
    candidates of a chain) commas; case and numbers stay.

    >>> clean_name("Black_footed_Albatross"), clean_name(" 707-320 "), clean_name("Gr&uuml;nfink")
    ('Black footed Albatross', '707-320', 'Grünfink')
    """
    text = unicodedata.normalize("NFKC", html.unescape(raw)).replace("_", " ").replace("\xad", "").replace(";", ",")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def clean_names(raw: Iterable[str]) -> dict[str, str]:
    """Each distinct raw name with its clean one, without numbers where they only count the names, as in CUB and Dogs.

    They do where each name has its own, with zeros in front, ImageNet's, before a dot, or small; of names that would
    become one they stay. ValueError for a name without a letter or digit, and for two that become one or differ only
    in case. Warns of names that are only numbers.

    >>> clean_names(["001.Laysan_Albatross", "118.House_Sparrow"])
    {'001.Laysan_Albatross': 'Laysan Albatross', '118.House_Sparrow': 'House Sparrow'}
    """
    names = list(dict.fromkeys(raw))
    found = [match for match in map(NUMBER.match, names) if match]
    numbers, rest = {m[1] for m in found}, {m.string: clean_name(m.string[m.end() :]) for m in found}
    uses = Counter(name.casefold() for name in rest.values())
    counted = any(n[0] in "0n" for n in numbers) and len({len(n) for n in numbers}) == 1  # all of one width
    counted = counted or all("." in m[2] or ")" in m[2] for m in found)
    if not counted and len(uses) == len(rest) and all(m[2].strip() for m in found):  # no "911 Carrera", "2012_Audi"
        counted = all(int(n) <= 10 * len(names) for n in numbers if n.isdecimal())
    counted = counted and len(names) == len(numbers) > 1
    alone = {name: clean for name, clean in rest.items() if counted and uses[clean.casefold()] == 1}
    cleaned = {name: alone.get(name) or clean_name(name) for name in names}
    if bare := [name for name in cleaned.values() if BARE.fullmatch(name)]:
        what = f"{len(bare)} of {len(names)} class names are only numbers: the model cannot know class {bare[0]!r}"
        warnings.warn(f"{what}; give names (rename the folders, or write a table with path and label)", stacklevel=2)
    first: dict[str, str] = {}
    for name, clean in cleaned.items():
        if not any(c.isalnum() for c in clean):  # answers are compared by letters and digits
            raise ValueError(f"the class name {name!r} has no letter or digit once cleaned; rename it")
        other = first.setdefault(clean, name)
        if unicodedata.normalize("NFC", other) != unicodedata.normalize("NFC", name):
            raise ValueError(f"{other!r} and {name!r} both read {clean!r}: join them, or rename one")
    check_names(cleaned.values())
    return cleaned


def normal_name(name: str) -> str:
    """A name for comparing: no case, punctuation, possessive or remark in brackets.

    >>> normal_name("Red-winged Blackbird (Agelaius phoeniceus)")
    'red winged blackbird'
    """
    bare = re.sub(r"\([^)]*\)", " ", unicodedata.normalize("NFKC", name))
    return re.sub(r"(?:['’]s\b|[\W_])+", " ", bare.casefold()).strip()
