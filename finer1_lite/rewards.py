r"""What an answer is worth. Plain functions of the completion's text and the label; the standard library alone.

The paper's reward (arXiv 2602.07605) is 0.9 accuracy + 0.1 format, exactly as in the released
code (`TAPO/examples/reward_function/cls_thinking.py`, commit 84cdc5c): white space around ``<``, ``>`` and
``/`` is stripped first; format asks that the whole completion be ``<think>...</think> <answer>...</answer>``;
accuracy asks that the lower-cased label be contained in the first answer. One departure: the label loses such white
space too, else a class "Audi A4 / S4" could never be right.

Two reward hacks are known. Containment pays for "Finch A or Finch B": `strict_accuracy` and `guarded_reward` close
that. The released format pays for an answer that goes on after its end, so that a policy may learn never to stop; and
0.1 is too little to keep a form, once names are worth 0.9. So all rewards here but `released_reward` pay nothing for
an answer without `strict_format`. Those for own pictures know a name in any spelling (`reading`).

Your own reward is a function (completion, label) -> dict with "overall" (what the advantage is made of), "accuracy"
(0 or 1, what the group filter counts) and, only for the log, "format".
"""

import re
from collections.abc import Iterable, Mapping

from .reading import holds_name, normalise, spelling, tagged_answer

ACCURACY_WEIGHT, FORMAT_WEIGHT = 0.9, 0.1


def strip_tags_space(completion: str) -> str:
    """White space around <, > and / removed, as models write "< think >"."""
    first, *rest = re.split("([<>/])", completion)  # not one pattern with the spaces: it is quadratic in them
    if not rest:
        return first
    *middle, last = rest
    return first.rstrip() + "".join(part.strip() for part in middle) + last.lstrip()


def extract_answer(completion: str) -> str | None:
    """Text of the first <answer>...</answer>, stripped; None if there is none."""
    _, opened, rest = strip_tags_space(completion).partition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    return answer.strip() if opened and closed else None


def format_reward(completion: str) -> float:
    """1.0 if the whole completion is <think>...</think> <answer>...</answer>, else 0.0."""
    text, middle = strip_tags_space(completion), "</think><answer>"
    thought = text.startswith("<think>") and text.endswith("</answer>")
    return float(thought and middle in text[len("<think>") : -len("</answer>")])


def strict_format(completion: str, think: bool = True) -> float:
    """1.0 if the completion is one <think> part, one <answer> part and nothing more, else 0.0.

    think: False for answers without thinking, which must be one <answer> part and nothing more.

    >>> hack = "<think>x</think><answer> a </answer> b </answer> a </answer>"
    >>> format_reward(hack), strict_format(hack), strict_format("<think>x</think> <answer> a </answer>")
    (1.0, 0.0, 1.0)
    """
    text = strip_tags_space(completion)
    tags = {"<think>": int(think), "</think>": int(think), "<answer>": 1, "</answer>": 1}
    pattern = "<think>.*</think>" * think + "<answer>.*</answer>"
    return float(all(text.count(tag) == n for tag, n in tags.items()) and bool(re.fullmatch(pattern, text, re.DOTALL)))


def accuracy_reward(completion: str, label: str) -> float:
    """1.0 if the first answer contains the label, in any case, else 0.0 (so without an answer)."""
    answer = extract_answer(completion)
    return float(answer is not None and strip_tags_space(label).lower() in answer.lower())


def _scores(accuracy: float, format_score: float) -> dict[str, float]:
    overall = ACCURACY_WEIGHT * accuracy + FORMAT_WEIGHT * format_score
    return {"overall": overall, "format": format_score, "accuracy": accuracy}


def released_reward(completion: str, label: str) -> dict[str, float]:
    """The paper's and the released code's reward: overall = 0.9 accuracy + 0.1 format."""
    return _scores(accuracy_reward(completion, label), format_reward(completion))


def ending_reward(completion: str, label: str) -> dict[str, float]:
    """`released_reward`, but an answer without `strict_format`, above all one that does not stop, earns nothing.

    >>> ending_reward("<think>x</think><answer> a </answer> b", "a")
    {'overall': 0.0, 'format': 0.0, 'accuracy': 0.0}
    """
    form = strict_format(completion)
    return _scores(accuracy_reward(completion, label) * form, form)


def bare_reward(completion: str, label: str) -> dict[str, float]:
    """Accuracy alone, for answers without thinking: the whole completion has to be the answer.

    So in No-Thinking-RL (arXiv 2503.16188), which asks that it equal the label; here it may hold more words.
    """
    form = strict_format(completion, think=False)
    accuracy = accuracy_reward(completion, label) * form
    return {"overall": accuracy, "format": form, "accuracy": accuracy}


def strict_accuracy(completion: str, label: str) -> float:
    """1.0 if the answer *is* the label after `normalise`, else 0.0."""
    return float(normalise(tagged_answer(completion)) == normalise(label) != "")


def loose_reward(completion: str, label: str) -> dict[str, float]:
    """`ending_reward`, but the name may be spelt otherwise (`reading.holds_name`), as in the evaluation.

    For names out of folders: a model writes "Brandt's Cormorant" where CUB has "Brandt Cormorant".
    """
    form = strict_format(completion)
    return _scores(float(holds_name(tagged_answer(completion), label)) * form, form)


def names_in(answer: str, all_labels: Iterable[str]) -> list[str]:
    """The labels that the answer names in whole words, longest first; names inside longer names do not count.

    >>> names_in("an American Goldfinch or a wren", ["Goldfinch", "American Goldfinch", "Wren", "House Wren"])
    ['American Goldfinch', 'Wren']
    """
    words = {label: " ".join(spelling(label)) for label in all_labels}
    rest, found = f" {' '.join(spelling(answer))} ", []
    for label in sorted(words, key=lambda name: (-len(words[name]), name)):
        phrase = f" {words[label]} "
        if phrase.strip() and phrase in rest:
            found.append(label)
            rest = rest.replace(phrase, " | ")
    return found


def guarded_reward(completion: str, label: str, all_labels: Iterable[str]) -> dict[str, float]:
    """`loose_reward`, but an answer that names any other class is wrong.

    That covers "A or B", and "House Wren" for "Wren". Only full names are seen: "American or European Tit" passes.
    """
    scores = loose_reward(completion, label)
    named = names_in(tagged_answer(completion), {label, *all_labels})
    others = [name for name in named if spelling(name) != spelling(label)]
    return _scores(0.0, scores["format"]) if others else scores


def look_alike_reward(completion: str, label: str, family_of: Mapping[str, str], credit: float = 0.3) -> dict:
    """`guarded_reward` with partial credit: exactly one class named, the wrong one, of the label's family.

    family_of: every class -> its family or genus. "accuracy" stays 0 for such an answer, so the group filter
    counts what the paper's counts; only "overall" gets 0.9 * credit. "look_alike" says which answers got it.
    """
    scores = guarded_reward(completion, label, family_of)
    named = names_in(tagged_answer(completion), family_of)
    close = scores["format"] and not scores["accuracy"] and len(named) == 1 and named[0] != label
    look_alike = float(close and family_of[named[0]] == family_of[label])
    overall = _scores(max(scores["accuracy"], credit * look_alike), scores["format"])["overall"]
    return scores | {"overall": overall, "look_alike": look_alike}
