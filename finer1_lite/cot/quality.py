"""How good is a set of chains? Measures of each chain, which the paper's reviewers asked for; means with intervals.

    readable          it has the four parts (1 or 0, as are all that ask yes or no); else it has none of what follows
    answer_is_label   the answer is the label
    candidates        how many
    recall            a candidate is the label
    label_leak        the analysis names the label (a car's year need not be said): it was known from the start
    hint_leak         it speaks of what only the teacher's prompt held (`chains.HINTS`)
    coverage          share of the candidates that the comparison names, if only by a word that no other one has
    predicts_answer   the prediction is the answer
    true_attributes   share of the analysis' phrases that are true of the picture, see `true_share`
    similar_analyses  mean similarity of the analysis to the others, near 1 in a templated set, see `similarity`
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..data.names import normal_name
from ..reading import read_answer, same_name
from .chains import HINTS, Chain, ChainError, names_label, read_chain, to_prose
from .concepts import split_concepts


class Row(NamedTuple):
    """A completion to measure: its chain (None: it cannot be read), the label, and the answer."""

    chain: Chain | None
    label: str
    answer: str


def read_row(text: str, label: str) -> Row:
    """A completion, or a teacher's tagged text, as a row. An answer that is not the prediction does not hinder."""
    thought, answer = read_answer(text)
    try:
        chain = read_chain(thought or text)
    except ChainError:
        return Row(None, label, answer or "")
    return Row(chain, label, (answer or "") if thought else chain.prediction)


def true_share(analysis: str, truth: Collection[str]) -> float:
    """Share of the analysis' phrases that are true, of those that `truth` can tell; NaN if it can tell none.

    truth: true phrases, "<value> <part>". A phrase is true if it holds one of them, false if it gives the same part
    another value in as many words."""
    true, verdicts = [normal_name(t) for t in truth], []
    shapes = {(t.split()[-1], len(t.split())) for t in true}
    for phrase in split_concepts(analysis):
        words = re.sub(r"^(?:(?:and|with|an?|the|its) )+", "", normal_name(phrase)).split()
        right = any(f" {t} " in f" {' '.join(words)} " for t in true)
        if right or (words and (words[-1], len(words)) in shapes):
            verdicts.append(right)
    return sum(verdicts) / len(verdicts) if verdicts else math.nan


def similarity(texts: Sequence[str]) -> list[float]:
    """For each text the mean similarity to the others: the cosine of their sets of three words in a row."""
    rows = [tuple(text.casefold().split()) for text in texts]
    grams = [set(zip(r, r[1:], r[2:])) or {r} for r in rows]
    total, others = Counter(), len(rows) - 1
    for g in grams:
        total.update(dict.fromkeys(g, 1 / math.sqrt(len(g))))
    sums = [sum(total[x] for x in g) / math.sqrt(len(g)) - 1 for g in grams]  # without itself
    return [max(0.0, round(s / others, 12)) if others else math.nan for s in sums]


def chain_frame(rows: Sequence[Row], truth: Sequence[Collection[str]] | None = None) -> pd.DataFrame:
    """The measures of each chain (see the module), a row a chain, NaN where one has no meaning. truth: for each row
    the true phrases of its class or picture; without it there is no `true_attributes`."""
    found = []
    for i, (chain, label, answer) in enumerate(rows):
        found.append({"readable": chain is not None, "answer_is_label": same_name(answer, label)})
        if chain is None:
            continue
        named = [names_label(chain.comparison, option, chain.options) for option in chain.options]
        found[i] |= {
            "candidates": len(chain.options),
            "recall": any(same_name(option, label) for option in chain.options),
            "label_leak": names_label(chain.analysis, label),
            "hint_leak": bool(HINTS.search(to_prose(chain))),
            "coverage": sum(named) / len(named),
            "predicts_answer": same_name(chain.prediction, answer),
        }
        if truth is not None:
            found[i]["true_attributes"] = true_share(chain.analysis, truth[i])
    read = [i for i, row in enumerate(rows) if row.chain]
    alike = similarity([rows[i].chain.analysis for i in read])
    return pd.DataFrame(found).astype(float).assign(similar_analyses=pd.Series(alike, index=read, dtype=float))


def intervals(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean of each column over the n rows that have it, with a 95% bootstrap interval over rows (2,000 draws)."""
    found = []
    for metric, column in frame.items():
        values, rng = column.dropna().to_numpy(), np.random.default_rng(seed)
        n = len(values)
        means = [values[rng.integers(n, size=n)].mean() for _ in range(2000)] if n else [math.nan]
        found.append((metric, values.mean() if n else math.nan, n, *np.quantile(means, [0.025, 0.975])))
    return pd.DataFrame(found, columns=["metric", "value", "n", "low", "high"])


def quality_table(rows: Sequence[Row], truth: Sequence[Collection[str]] | None = None, seed: int = 0) -> pd.DataFrame:
    """The means of the measures with 95% intervals: columns metric, value, n (chains that have it), low, high."""
    return intervals(chain_frame(rows, truth), seed)
