"""How a model's text is read: which part is the answer, and whether that is a name, however the name is spelt.

More lenient than the released code, whose rules are in `rewards` and `evaluate.protocols`; used for own pictures, for
judging and for the quality of chains.
"""

import re
import unicodedata
from functools import lru_cache

OPENED, CLOSED = (re.compile(rf"<\s*{sign}answer\b[^<>]*>", re.IGNORECASE) for sign in ("", r"/\s*"))
THINK, THOUGHT = (re.compile(rf"<\s*{sign}think\b[^<>]*>", re.IGNORECASE) for sign in ("", r"/\s*"))


def read_answer(completion: str) -> tuple[str, str | None]:
    """What was thought and what was answered; None where there is no answer.

    All up to </think> is thought, opened or not, as some chat templates open it in the prompt; tags may be in upper
    case and have attributes. Without an <answer> what follows the thought is the answer; one that is cut off is none.

    >>> read_answer("It is small.</think> <Answer>Wren</Answer>"), read_answer("<think> x </think> <answer> Wr")
    (('It is small.', 'Wren'), ('x', None))
    """
    thought, rest = _parts(completion)
    if opened := OPENED.search(rest):
        closed = CLOSED.search(rest, opened.end())
        return thought, rest[opened.end() : closed.start()].strip() if closed else None
    return thought, rest.strip() or None


def tagged_answer(completion: str) -> str:
    """The answer of `read_answer` if it stands in tags, else "": what is not in them earns nothing."""
    return (read_answer(completion)[1] or "") if OPENED.search(_parts(completion)[1]) else ""


def _parts(completion: str) -> tuple[str, str]:
    """What was thought, and what follows."""
    started, ended, opened = (sign.search(completion) for sign in (THINK, THOUGHT, OPENED))
    if not (started or ended):
        return "", completion
    end, rest = (ended.start(), ended.end()) if ended else (opened.start(),) * 2 if opened else (len(completion),) * 2
    return completion[started.end() if started and started.end() <= end else 0 : end].strip(), completion[rest:]


@lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """Lower case, one Unicode form, runs of anything but letters, digits and marks as one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded)
    return " ".join(words.split())


@lru_cache(maxsize=100_000)
def spelling(name: str) -> tuple[str, ...]:
    """The words of a name without what data sets and models spell differently: possessives, a last s, grey or gray.

    >>> spelling("Forster's Tern") == spelling("Forsters Tern"), spelling("Chuck-will's-widow")
    (True, ('chuck', 'will', 'widow'))
    """
    words = normalise(re.sub(r"['’‘`´](?:s\b)?", "", name, flags=re.IGNORECASE)).replace("grey", "gray").split()
    return tuple(word[:-1] if len(word) > 4 and word[-1] == "s" != word[-2] else word for word in words)


def same_name(one: str, other: str) -> bool:
    """Whether two texts are one name (`spelling`), also split otherwise, or with a letter too few in a long word.

    >>> same_name("Arctic Tern", "Artic Tern"), same_name("Brewer's Sparrow", "Brewer Blackbird")
    (True, False)
    """
    return _alike(spelling(one), spelling(other))


def holds_name(answer: str, label: str) -> bool:
    """Whether an answer contains the label, in any spelling (`same_name`); inside of longer words too, as released.

    >>> holds_name("It is a LeConte's Sparrow.", "Le Conte Sparrow"), holds_name("", "Wren")
    (True, False)
    """
    said, name, plain = spelling(answer), spelling(label), normalise(label)
    spans = (said[i : i + n] for n in range(len(name) - 1, len(name) + 2) for i in range(len(said) - n + 1))
    return plain != "" and (plain in normalise(answer) or any(_alike(span, name) for span in spans))


def _alike(said: tuple[str, ...], name: tuple[str, ...]) -> bool:
    if "".join(said) == "".join(name):
        return name != ()
    odd = [sorted(pair, key=len) for pair in zip(said, name) if pair[0] != pair[1]]
    if len(said) != len(name) or len(odd) != 1:
        return False
    short, long = odd[0]
    fewer = (long[:i] + long[i + 1 :] for i in range(1, len(long)))
    return len(long) > 5 and long.isalpha() and short in fewer
