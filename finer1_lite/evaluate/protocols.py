"""The same answers under every protocol, as the released evaluation counts and corrected.

The rules of eval/evaluation.py of github.com/PKU-ICST-MIPL/FineR1_ICLR2026 are here with their faults; each corrected
rule changes one thing, and `RULES` says which and why. One departure: an empty text has similarity 0.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..data.formats import ClosedWorld
from ..prompts import instructed
from ..reading import holds_name, tagged_answer
from ..rewards import strict_accuracy
from .answers import Prediction
from .statistics import bootstrap_difference

Encoder = Callable[[list[str]], np.ndarray]  # texts (N) to unit rows (N, D), an array or a CPU tensor
SUPER_CATEGORIES = ("aircraft", "bird", "car", "flower")  # the released code's own; all else is an "object"
SAME = 1e-6  # cosines that differ by less are equal


def answer_span(text: str) -> str:
    """Text from the first <answer> to the last </answer>; "" if there is none. As released.

    >>> answer_span("<answer> Wren </answer> or <answer> Tit </answer>")
    'Wren </answer> or <answer> Tit'
    """
    found = re.search("<answer>(.*)</answer>", text, re.DOTALL)
    return found.group(1).strip() if found else ""


def _lower(label: str) -> str:
    return label.lower().replace("_", " ")


def shuffled(questions: ClosedWorld, seed: int) -> ClosedWorld:
    """The same questions with the options of each in an order drawn with `seed`."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(row["options"])) for row in questions.rows]
    rows = [row | {"options": [row["options"][i] for i in order]} for row, order in zip(questions.rows, orders)]
    return ClosedWorld(rows)


def closed_prompts(questions: ClosedWorld, think: bool = True) -> list[str]:
    """A full prompt for each question, for `answers.ask`, with the options in the order of the file."""
    return [instructed(row["question"], think, row["options"]) for row in questions.rows]


def inclusion_key(label: str, domain: str) -> str:
    """What an answer must contain. Of a car's label the last two words (body and year) are dropped, as released.

    ValueError where nothing is left: every text contains "".

    >>> inclusion_key("Jeep Compass SUV 2012", "car"), inclusion_key("House_Wren", "bird")
    ('jeep compass', 'house wren')
    """
    key = " ".join(label.lower().split()[:-2]) if domain == "car" else _lower(label)
    if not key.strip():
        raise ValueError(f"nothing is left of the label {label!r} as a {domain}; every answer would contain it")
    return key


def relative_similarity(
    texts: Sequence[str], labels: Sequence[str], super_category: str, encode: Encoder
) -> np.ndarray:
    r"""How much nearer to the label than the mere super-category is what was said; (N,) in [0, 1].

    $\max(0, \frac{Sim(c, c^*) - Sim(s, c^*)}{1 - Sim(s, c^*)})$ with c the text, c* the label, s the super-category,
    Sim the cosine of `encode`'s rows. A label that means the super-category itself leaves 0/0: there 1 for a text
    that means it too, else 0. ValueError for rows that are not of unit length.
    """
    words = list(dict.fromkeys([*texts, *labels, super_category]))
    rows = np.asarray(encode(words), float)
    if rows.shape[:1] != (len(words),) or not np.allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-3):
        raise ValueError(f"the encoder should give {len(words)} unit rows, one for each text; got shape {rows.shape}")
    place = {word: i for i, word in enumerate(words)}
    said, right = (rows[[place[word] for word in column]] for column in (texts, labels))
    near, base = (said * right).sum(1), right @ rows[place[super_category]]
    room = 1 - base
    score = np.where(room > SAME, (near - base) / np.maximum(room, SAME), near > 1 - SAME)
    return np.clip(score, 0, 1) * [bool(text.strip()) for text in texts]


def released_similarity(texts, labels, domain: str, encode: Encoder) -> np.ndarray:
    """`relative_similarity` of the answer, or without one of the whole text; of dogs and pets beside "object"."""
    category = domain if domain in SUPER_CATEGORIES else "object"
    return relative_similarity([answer_span(t) or t for t in texts], labels, category, encode)


def answered_similarity(texts, labels, domain: str, encode: Encoder) -> np.ndarray:
    """`relative_similarity` of the first answer and the domain's own word; 0 without an answer."""
    return relative_similarity([tagged_answer(t) for t in texts], labels, domain, encode)


RIGHT = {  # whether a text is right, by the label and the domain
    "label": lambda text, label, domain: _lower(label) in _lower(answer_span(text)),
    "label or text": lambda text, label, domain: _lower(label) in _lower(answer_span(text) or text),
    "key": lambda text, label, domain: inclusion_key(label, domain) in answer_span(text).lower(),
    "key or text": lambda text, label, domain: inclusion_key(label, domain) in (answer_span(text) or text).lower(),
    "whole label": lambda text, label, domain: holds_name(tagged_answer(text), label),
    "is label": lambda text, label, domain: strict_accuracy(text, label),
}
RULES: dict[str, dict[str, Callable | str]] = {  # protocol -> rule -> how it scores: of `RIGHT`, or for all texts
    "open, inclusion": {
        "as released": "key or text",  # a broken-off chain that lists the label is right
        "answer only": "key",
        "corrected": "whole label",  # cars of another body or year differ
        "strict": "is label",  # several names, or a longer name around it, are wrong
    },
    "open, similarity": {"as released": released_similarity, "corrected": answered_similarity},
    # "with fall-back" counts the whole text without an <answer>, as released for the open world: it names every option.
    "closed, official order": {"as released": "label", "with fall-back": "label or text", "strict": "is label"},
    # In an order drawn anew "the first one" is right one time in four.
    "closed, shuffled": {"contained": "label", "with fall-back": "label or text", "corrected": "is label"},
}


def scores(
    protocol: str, said: Sequence[Prediction], domain: str, encode: Encoder | None = None
) -> dict[str, np.ndarray]:
    """For each rule of a protocol of `RULES` the score (N,) of each prediction. Similarity needs `encode`."""
    texts, labels = [p.text for p in said], [p.label for p in said]
    if protocol == "open, similarity":
        return {rule: how(texts, labels, domain, encode) for rule, how in RULES[protocol].items()}
    pairs, rules = list(zip(texts, labels)), RULES[protocol].items()
    return {rule: np.array([RIGHT[how](*pair, domain) for pair in pairs], float) for rule, how in rules}


def protocol_frame(
    answers: Mapping[str, Sequence[Prediction]], domain: str = "bird", encode: Encoder | None = None, seed: int = 0,
    draws: int = 1000,
) -> pd.DataFrame:  # fmt: skip
    """Every rule on seen and unseen classes: protocol, rule, split, accuracy, low, high, n.

    answers: one model's predictions, "open", "official" (the right option first) and "closed" (shuffled), or some of
    them. encode: where given, similarity too. accuracy: in [0, 1], with a 95% interval over classes and images.
    """
    asked = {"open, inclusion": "open", "closed, official order": "official", "closed, shuffled": "closed"}
    asked |= {"open, similarity": "open"} if encode else {}
    rows = []
    for protocol in (p for p in RULES if asked.get(p) in answers):
        said = answers[asked[protocol]]
        labels, seen = np.array([p.label for p in said]), np.array([p.seen for p in said])
        for rule, score in scores(protocol, said, domain, encode).items():
            for split, chosen in (("seen", seen), ("unseen", ~seen)):
                if chosen.any():
                    figures = bootstrap_difference(score[chosen], 0, labels[chosen], seed, draws)
                    rows.append((protocol, rule, split, *figures, int(chosen.sum())))
    return pd.DataFrame(rows, columns=["protocol", "rule", "split", "accuracy", "low", "high", "n"])
