"""Where a chain goes wrong: each part of each completion held against the field guide.

A chain has four parts, and each can be checked without a model: does the analysis say what the species looks like, is
the label among the candidates, is what the comparison says of each candidate true, and does the answer follow? Reads
saved predictions (`report.load_predictions`). The paper has no such table; its reviewers asked for measures of chains.

A guide gives the looks of each class: class -> attribute -> value. Without one (photographs) the analysis and the
comparison cannot be judged: their figures are nan, and no error is laid on them.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import pandas as pd

from finer1_lite.birds.species import ATTRIBUTES, all_species
from finer1_lite.cot.quality import read_row
from finer1_lite.data.names import normal_name
from finer1_lite.evaluate.answers import Prediction

Guide = Mapping[str, Mapping[str, str]]
STAGES = ("no chain", "analysis", "candidates", "comparison", "choice")


@cache
def bird_guide() -> Guide:
    """The looks of the 200 species, by normal name."""
    return {normal_name(s.name): dict(zip(ATTRIBUTES, s.looks)) for s in all_species()}


def stated_looks(text: str, attributes: Iterable[str] = tuple(ATTRIBUTES)) -> dict[str, str]:
    """{attribute: value}, the first mention of each of the `attributes` in a text, as "<one word> <attribute>".

    >>> stated_looks("The bird has a red crown, plain eye. It is no black crown.")
    {'crown': 'red', 'eye': 'plain'}
    """
    found: dict[str, str] = {}
    for value, part in re.findall(rf"(\w+) ({'|'.join(map(re.escape, attributes))})\b", text):
        found.setdefault(part, value)
    return found


def verdicts(comparison: str) -> list[tuple[str, str]]:
    """(candidate, what is said of it) of a comparison.

    >>> verdicts("a tarn: fits. b tarn: blue back, long tail.")
    [('a tarn', 'fits'), ('b tarn', 'blue back, long tail')]
    """
    pairs = [sentence.partition(":") for sentence in re.split(r"\.(?:\s+|$)", comparison)]
    return [(name.strip(), claim.strip()) for name, colon, claim in pairs if colon]


def verdict_is_true(name: str, claim: str, seen: Mapping[str, str], guide: Guide) -> bool:
    """Whether a verdict holds of the guide, given the looks that the analysis states.

    "fits" holds of a class that looks just so. A list of differences holds if the class has each of these values and
    the analysis has another one.
    """
    looks = guide.get(normal_name(name))
    if looks is None:
        return False
    if claim == "fits":
        return all(looks.get(part) == value for part, value in seen.items())
    claimed = stated_looks(claim, looks)
    return bool(claimed) and all(looks.get(part) == value != seen.get(part) for part, value in claimed.items())


def chain_facts(prediction: Prediction, guide: Guide) -> dict:
    """What is right in one completion, part by part: 1 or 0, shares, nan where it cannot be told.

    attributes: share of the label's attributes that the analysis states rightly; analysis: all of them.
    candidates: the label is among them. verdicts: share of the comparison's verdicts that are true (0 if there is
    none). comparison: those that decide are true, on the label and on the name that is answered. first_flaw: the
    first of STAGES that is wrong, "" if none is; it may be there although the answer is right.
    """
    chain, right = read_row(prediction.text, prediction.label).chain, float(prediction.correct)
    facts = {"right": right, "chain": float(chain is not None)}
    facts |= dict.fromkeys(("attributes", "analysis", "candidates", "verdicts", "comparison"), np.nan)
    if chain is None:
        return facts | {"first_flaw": STAGES[0]}
    label = normal_name(prediction.label)
    facts["candidates"] = float(label in map(normal_name, chain.options))
    if looks := guide.get(label):
        seen = stated_looks(chain.analysis, looks)
        facts["attributes"] = float(np.mean([seen.get(part) == value for part, value in looks.items()]))
        facts["analysis"] = float(facts["attributes"] == 1)
        claims = verdicts(chain.comparison)
        said = [(normal_name(name), verdict_is_true(name, claim, seen, guide)) for name, claim in claims]
        deciding = [true for name, true in said if name in (label, normal_name(prediction.answer))]
        facts["verdicts"] = float(np.mean([true for _, true in said])) if said else 0.0
        facts["comparison"] = float(bool(deciding) and all(deciding))
    checks = ("analysis", "candidates", "comparison", "right")
    flaws = [stage for stage, check in zip(STAGES[1:], checks) if facts[check] == 0]
    return facts | {"first_flaw": flaws[0] if flaws else ""}


def fact_frame(predictions: Iterable[Prediction], guide: Guide | None = None) -> pd.DataFrame:
    """`chain_facts` of each prediction, a row each, with `seen`. guide: default the bird world's."""
    guide = bird_guide() if guide is None else guide
    return pd.DataFrame([chain_facts(p, guide) | {"seen": p.seen} for p in predictions])


def error_budget(facts: pd.DataFrame) -> pd.Series:
    """Share of all answers that are wrong, by the first flaw: sums to the error rate. Index: STAGES."""
    wrong = facts[facts.right == 0].first_flaw
    return wrong.value_counts().reindex(STAGES, fill_value=0) / len(facts)


def chain_measures(facts: pd.DataFrame) -> dict[tuple[str, str], tuple[float, int]]:
    """(measure, part) -> (value, n): how often each part is right, and accuracy where it is and where it is not."""
    made = {}
    for part in ("chain", "attributes", "analysis", "candidates", "verdicts", "comparison"):
        known = facts[facts[part].notna()]
        made["part is right", part] = (known[part].mean(), len(known))
    for part in ("analysis", "candidates", "comparison"):
        for value, name in ((1, "right"), (0, "wrong")):
            chosen = facts[facts[part] == value]
            made[f"accuracy, part {name}", part] = (chosen.right.mean(), len(chosen))
    budget = error_budget(facts)
    made |= {("error share", stage): (budget[stage], len(facts)) for stage in STAGES}
    return made
