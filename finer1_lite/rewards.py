r"""What an answer is worth. Plain functions of the completion's text and the label; the standard library alone.

The paper's reward (arXiv 2602.07605, section 4.1) is 0.9 accuracy + 0.1 format, exactly as in the released
code (`TAPO/examples/reward_function/cls_thinking.py`, commit 84cdc5c): white space around ``<``, ``>`` and
``/`` is stripped first; format asks that the whole completion be ``<think>...</think> <answer>...</answer>``;
accuracy asks that the lower-cased label be contained in the first answer. One departure: the label loses such white
space too, else a class "Audi A4 / S4" could never be right.

Containment pays for "Finch A or Finch B or Finch C", a known reward hack. `strict_accuracy` and
`guarded_reward` close it; `look_alike_reward` gives partial credit for an answer of the right family. Both
are additions. To train with another reward, write a function (completion, label) -> dict with "overall" (what
the advantage is made of), "accuracy" (0 or 1, what the group filter counts) and, only for the log, "format".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

ACCURACY_WEIGHT = 0.9
FORMAT_WEIGHT = 0.1


def strip_tags_space(completion: str) -> str:
    """White space around <, > and / removed, as models write "< think >".

    >>> strip_tags_space("< think >x</ think > <answer> a b </answer>")
    '<think>x</think><answer>a b</answer>'
    """
    return re.sub(r"\s*([<>/])\s*", r"\1", completion)


def extract_answer(completion: str) -> str | None:
    """Text of the first <answer>...</answer>, stripped; None if there is none.

    >>> extract_answer("<think>x</think> <answer> House Finch </answer> <answer>Wren</answer>")
    'House Finch'
    """
    found = re.search(r"<answer>(.*?)</answer>", strip_tags_space(completion), re.DOTALL)
    return found.group(1).strip() if found else None


def format_reward(completion: str) -> float:
    """1.0 if the whole completion is <think>...</think> <answer>...</answer>, else 0.0.

    >>> format_reward("<think>a beak</think> <answer>Wren</answer>"), format_reward("Wren")
    (1.0, 0.0)
    """
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    return float(re.fullmatch(pattern, strip_tags_space(completion), re.DOTALL) is not None)


def accuracy_reward(completion: str, label: str) -> float:
    """1.0 if the first answer contains the label, in any case, else 0.0 (so without an answer).

    >>> accuracy_reward("<answer>a house finch or a wren</answer>", "Wren")
    1.0
    """
    if not label.strip():
        raise ValueError("the label is empty; every answer would contain it")
    answer = extract_answer(completion)
    return float(answer is not None and strip_tags_space(label).lower() in answer.lower())


def _weighted(accuracy: float, format_score: float) -> float:
    return ACCURACY_WEIGHT * accuracy + FORMAT_WEIGHT * format_score


def released_reward(completion: str, label: str) -> dict[str, float]:
    """The paper's and the released code's reward: overall = 0.9 accuracy + 0.1 format.

    >>> released_reward("<think>x</think> <answer>Wren</answer>", "Wren")
    {'overall': 1.0, 'format': 1.0, 'accuracy': 1.0}
    """
    accuracy, format_score = accuracy_reward(completion, label), format_reward(completion)
    return {"overall": _weighted(accuracy, format_score), "format": format_score, "accuracy": accuracy}


# ---- stricter, and partial credit


def bare_reward(completion: str, label: str) -> dict[str, float]:
    """Accuracy alone, for answers without thinking (No-Thinking-RL, arXiv 2503.16188). "format": no <think> in it.

    >>> bare_reward("<answer> Wren </answer>", "wren")
    {'overall': 1.0, 'format': 1.0, 'accuracy': 1.0}
    """
    accuracy = accuracy_reward(completion, label)
    return {"overall": accuracy, "format": float("<think>" not in strip_tags_space(completion)), "accuracy": accuracy}


@lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """Lower case, one Unicode form, runs of anything but letters, digits and marks as one space.

    >>> normalise(" EUROPEAN  Gold-finch. ")
    'european gold finch'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded)
    return " ".join(words.split())


def strict_accuracy(completion: str, label: str) -> float:
    """1.0 if the first answer *is* the label after `normalise`, else 0.0.

    >>> strict_accuracy("<answer>wren.</answer>", "Wren"), strict_accuracy("<answer>a wren</answer>", "Wren")
    (1.0, 0.0)
    """
    answer = extract_answer(completion)
    return float(answer is not None and normalise(answer) == normalise(label) != "")


def loose_reward(completion: str, label: str) -> dict[str, float]:
    """`released_reward`, but case, hyphens and other punctuation of a name do not count, as when answers are judged.

    For names out of folders: a model writes "Black-footed Albatross" where CUB has "Black footed Albatross".

    >>> loose_reward("<think>x</think> <answer>Black-footed Albatross</answer>", "Black footed Albatross")["accuracy"]
    1.0
    """
    scores = released_reward(completion, label)
    accuracy = float(normalise(label) in normalise(extract_answer(completion) or ""))
    return scores | {"accuracy": accuracy, "overall": _weighted(accuracy, scores["format"])}


def names_in(answer: str, all_labels: Iterable[str]) -> list[str]:
    """The labels that the answer names in whole words, longest first; names inside longer names do not count.

    >>> names_in("an American Goldfinch or a wren", ["Goldfinch", "American Goldfinch", "Wren", "House Wren"])
    ['American Goldfinch', 'Wren']
    """
    rest, found = f" {normalise(answer)} ", []
    for label in sorted(set(all_labels), key=lambda name: (-len(normalise(name)), name)):
        phrase = f" {normalise(label)} "
        if phrase.strip() and phrase in rest:
            found.append(label)
            rest = rest.replace(phrase, " | ")
    return found


def names_several(answer: str, label: str, all_labels: Iterable[str]) -> bool:
    """Whether the answer names two or more classes: the guard against "A or B or C".

    It sees full names only; "American or European Goldfinch" counts as one.

    >>> names_several("Wren or House Finch", "Wren", ["Wren", "House Finch"])
    True
    """
    return len(names_in(answer, {label, *all_labels})) > 1


def names_other(answer: str, label: str, all_labels: Iterable[str]) -> list[str]:
    """The classes that the answer names beside the label.

    >>> names_other("a House Wren", "Wren", ["Wren", "House Wren"])
    ['House Wren']
    """
    return [name for name in names_in(answer, {label, *all_labels}) if normalise(name) != normalise(label)]


def guarded_reward(completion: str, label: str, all_labels: Iterable[str]) -> dict[str, float]:
    """`released_reward`, but an answer that names any other class is wrong.

    That covers "A or B or C", and "House Wren" where the label is "Wren" and both are classes.

    >>> guarded_reward("<think>x</think> <answer>Wren or Finch</answer>", "Wren", ["Wren", "Finch"])
    {'overall': 0.1, 'format': 1.0, 'accuracy': 0.0}
    """
    scores = released_reward(completion, label)
    if scores["accuracy"] and names_other(extract_answer(completion), label, all_labels):
        scores |= {"accuracy": 0.0, "overall": _weighted(0.0, scores["format"])}
    return scores


def look_alike_reward(
    completion: str, label: str, family_of: Mapping[str, str], credit: float = 0.3
) -> dict[str, float]:
    """`guarded_reward` with partial credit: exactly one class named, the wrong one, of the label's family.

    family_of: every class -> its family or genus. "accuracy" stays 0 for such an answer, so the group filter
    counts what the paper's counts; only "overall" gets 0.9 * credit. "look_alike" says which answers got it.

    >>> families = {"Wren": "wrens", "House Wren": "wrens", "Finch": "finches"}
    >>> look_alike_reward("<think>x</think> <answer>House Wren</answer>", "House Wren", families)["overall"]
    1.0
    >>> look_alike_reward("<think>x</think> <answer>Wren</answer>", "House Wren", families, credit=0.5)
    {'overall': 0.55, 'format': 1.0, 'accuracy': 0.0, 'look_alike': 1.0}
    """
    if label not in family_of:
        raise ValueError(f"family_of has no family for {label!r}; give one for every class")
    if not 0 <= credit < 1:
        raise ValueError(f"credit is {credit}; it must lie in [0, 1), below a right answer")
    scores = guarded_reward(completion, label, family_of)
    named = names_in(extract_answer(completion) or "", family_of)
    close = not scores["accuracy"] and len(named) == 1 and named[0] != label
    look_alike = float(close and family_of[named[0]] == family_of[label])
    overall = _weighted(max(scores["accuracy"], credit * look_alike), scores["format"])
    return scores | {"overall": overall, "look_alike": look_alike}
