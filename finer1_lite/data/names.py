"""Class names as people write them: the words that the model should say."""

import html
import re
import unicodedata
from collections.abc import Iterable

from ..samplers import check_names


def clean_name(raw: str) -> str:
    """Underscores become spaces, HTML signs their letters, spaces single, letters NFC; case and numbers stay.

    >>> clean_name("Black_footed_Albatross"), clean_name(" 707-320 "), clean_name("Bull &amp; Terrier")
    ('Black footed Albatross', '707-320', 'Bull & Terrier')
    """
    text = unicodedata.normalize("NFC", html.unescape(raw)).replace("_", " ")
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()


def clean_names(raw: Iterable[str]) -> dict[str, str]:
    """Each distinct raw name with its clean one. ValueError for a name of which nothing is left, and for two that
    become one (or differ only in case): are they one class or two? NFC and NFD spellings are one.

    >>> clean_names(["House_Finch", "wren"])
    {'House_Finch': 'House Finch', 'wren': 'wren'}
    """
    cleaned = {name: clean_name(name) for name in dict.fromkeys(raw)}
    first: dict[str, str] = {}
    for name, clean in cleaned.items():
        if not clean:
            raise ValueError(f"the class name {name!r} is empty once cleaned; rename it")
        other = first.setdefault(clean, name)
        if unicodedata.normalize("NFC", other) != unicodedata.normalize("NFC", name):
            raise ValueError(f"{other!r} and {name!r} both read {clean!r}: join them, or rename one")
    check_names(cleaned.values())
    return cleaned
