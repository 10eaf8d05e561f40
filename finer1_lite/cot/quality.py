"""How good is a set of chains? Measures for made, released and sampled ones, with intervals over chains.

    python -m finer1_lite.cot.quality chains.jsonl

Each measure is a function of one chain, defined in its docstring; `chain_frame` puts them side by side, and
`quality_table` takes their means. The paper has no such measures, its reviewers asked for them.

Names are compared exactly, but for case, punctuation and brackets, or loosely (`same_class`): one holds the
other, as teachers leave out years, body styles and first names. Loosely, "Wren" is also "House Wren".
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..birds.species import by_name
from ..data.formats import read_rows
from ..data.names import normal_name
from ..rewards import extract_answer
from .chains import PARTS, Chain, ChainError, mentions_hints, names_label, read_chain, to_prose
from .concepts import split_concepts
from .released import ReleasedChain, parse_released


@dataclass(frozen=True)
class Row:
    """A completion to judge: its chain (None: it cannot be read), the label, and the answer."""

    chain: Chain | ReleasedChain | None
    label: str
    answer: str


def read_row(text: str, label: str | None = None) -> Row:
    """A completion as a row: the kit's form (tags or prose) first, else the released one.

    An answer that is not the prediction does not hinder. Without a label, as in the released file, the answer
    stands for it; a teacher's tagged text has no answer but its prediction.
    """
    thought, chain = re.search(r"<think>(.*?)</think>", text, re.DOTALL), None
    for read, part in ((read_chain, thought[1] if thought else text), (parse_released, text)):
        try:
            chain = chain or read(part)
        except ChainError:
            pass
    answer = extract_answer(text) or (chain.prediction if chain and not thought else "")
    return Row(chain, answer if label is None else label, answer)


# ---- names


def _forms(name: str) -> list[str]:
    """Ways to say a name: without brackets, without a car's year, and what is in brackets."""
    bare = re.sub(r"(?<=\w) (?:19|20)\d\d$", "", normal_name(name))
    return [form for form in (bare, *map(normal_name, re.findall(r"\(([^()]{4,})\)", name))) if form]


def same_class(a: str, b: str) -> bool:
    """Whether one name holds the other in whole words; a year is left out, a name in brackets counts.

    >>> same_class("BMW X3 SUV 2012", "BMW X3 (2012)"), same_class("Wren", "Wrentit")
    (True, False)
    """
    pairs = [(f" {x} ", f" {y} ") for x in _forms(a) for y in _forms(b)]
    return any(x in y or y in x for x, y in pairs)


def speaks_of(text: str, name: str, others: Collection[str] = ()) -> bool:
    """Whether a text says a name, or a part of it that none of the others has: "the 747-400", "Spitfire".

    Such a part is two words or more, a word with letters and digits, or one that gives the name away
    (`chains.names_label`); said of a class that is none of the others, it counts all the same.
    """
    spoken, words = f" {normal_name(text.replace('(', ' '))} ", normal_name(name).split()
    rest = [f" {normal_name(o)} " for o in others if normal_name(o) != normal_name(name)]
    runs = [words[i:j] for i in range(len(words)) for j in range(i + 2, len(words) + 1)]
    runs = [" ".join(r) for r in runs if not {"and", "of", "the"} & {r[0], r[-1]}]
    runs += [w for w in words if not w.isalpha() and not w.isdigit()]
    own = [r for r in runs if not any(f" {r} " in o for o in rest)]
    said = any(f" {form} " in spoken for form in [*_forms(name), *own])
    return said or names_label(text, name, [normal_name(o) for o in others])


# ---- measures of one chain


def recall(chain, label: str) -> bool:
    """Candidate recall: a candidate is the label, loosely."""
    return any(same_class(option, label) for option in chain.options)


def exact_recall(chain, label: str) -> bool:
    """A candidate is the label exactly."""
    return normal_name(label) in map(normal_name, chain.options)


def label_leak(chain, label: str) -> bool:
    """The analysis names the label (a car's year need not be said): it was known before the candidates."""
    return names_label(chain.analysis, label)


def hint_leak(chain) -> bool:
    """Anything in the thought speaks of what only the teacher's prompt held (`chains.HINTS`)."""
    return mentions_hints(chain.text if isinstance(chain, ReleasedChain) else to_prose(chain))


def coverage(chain) -> float:
    """Share of the candidates that the comparison speaks of; nan without candidates."""
    said = [speaks_of(chain.comparison, option, chain.options) for option in chain.options]
    return sum(said) / len(said) if said else math.nan


def _predicts(chain, name: str, others: Collection[str]) -> bool:
    """A chain predicts a name; a released one has a sentence for it, after whatever leads to it."""
    if isinstance(chain, Chain):
        return same_class(chain.prediction, name)
    stated = re.split("the prediction is:?", chain.prediction, maxsplit=1, flags=re.IGNORECASE)[-1]
    return speaks_of(stated, name, others)


def predicts_candidate(chain) -> bool:
    """The prediction is one of the candidates, loosely, or (released) speaks of one."""
    return any(_predicts(chain, option, chain.options) for option in chain.options)


def predicts_answer(chain, answer: str) -> bool:
    """The prediction is the answer, loosely, or (released) speaks of it or of a candidate that is it loosely."""
    same = [o for o in chain.options if same_class(o, answer)]
    others = [o for o in chain.options if o not in same]
    return any(_predicts(chain, name, others) for name in filter(None, [answer, *same]))


def attribute_counts(analysis: str, truth: Collection[str]) -> tuple[int, int, int]:
    """How many of the analysis' phrases are true, false, and neither.

    truth: true phrases, "<value> <part>". A phrase is true if it holds one of them, false if it gives the same
    part another value in as many words; else it cannot be verified.

    >>> attribute_counts("a red crown, blue back, long tail.", ["red crown", "brown back"])
    (1, 1, 1)
    """
    true, found = [normal_name(t) for t in truth], Counter()
    shapes = {(t.split()[-1], len(t.split())) for t in true}
    for phrase in split_concepts(analysis):
        words = re.sub(r"^(?:(?:and|with|an?|the|its) )+", "", normal_name(phrase)).split()
        if any(f" {t} " in f" {' '.join(words)} " for t in true):
            found["true"] += 1
        else:
            found["false" if words and (words[-1], len(words)) in shapes else "neither"] += 1
    return found["true"], found["false"], found["neither"]


def word_counts(chain) -> dict[str, int]:
    """Words of each part, and of all."""
    options = chain.options_text if isinstance(chain, ReleasedChain) else "; ".join(chain.options)
    texts = (chain.analysis, options, chain.comparison, chain.prediction)
    counts = {f"words_{part}": len(text.split()) for part, text in zip(PARTS, texts)}
    return counts | {"words": sum(counts.values())}


# ---- measures of a set


def distinctness(texts: Sequence[str]) -> tuple[list[float], list[float]]:
    """Two lists: 1 / the number of texts that are this one (their mean is the share of different texts), and the
    mean similarity to the others, near 1 in a templated set: the cosine of their sets of three words in a row.

    >>> distinctness(["a red crown", "A red  crown", "a long blue tail"])
    ([0.5, 0.5, 1.0], [0.5, 0.5, 0.0])
    """
    rows = [tuple(text.casefold().split()) for text in texts]
    grams = [set(zip(r, r[1:], r[2:])) or {r} for r in rows]
    same, total = Counter(rows), Counter()
    for g in grams:
        total.update(dict.fromkeys(g, 1 / math.sqrt(len(g))))
    sums = [sum(total[x] for x in g) / math.sqrt(len(g)) - 1 for g in grams]  # without itself
    others = len(rows) - 1
    return [1 / same[r] for r in rows], [max(0.0, round(s / others, 12)) if others else math.nan for s in sums]


def chain_frame(rows: Sequence[Row], truth: Sequence[Collection[str]] | None = None) -> pd.DataFrame:
    """The measures of each chain, a row a chain, nan where one has no meaning; 0 and 1 for no and yes.

    truth: for each row the true phrases of its class or picture, for the shares of attributes; see
    `attribute_counts`. ValueError without rows, or if there is not one truth for each.
    """
    if not rows:
        raise ValueError("there are no chains to judge")
    if truth is not None and len(truth) != len(rows):
        raise ValueError(f"{len(rows)} chains and {len(truth)} truths: each chain needs one")
    frame = pd.DataFrame([_measures(row, None if truth is None else truth[i]) for i, row in enumerate(rows)])
    read = [i for i, row in enumerate(rows) if row.chain]
    pairs = distinctness([rows[i].chain.analysis for i in read])
    for name, values in zip(("distinct_analysis", "similar_analyses"), pairs):
        frame[name] = pd.Series(values, index=read, dtype=float)
    return frame.astype(float)


def _measures(row: Row, truth: Collection[str] | None) -> dict:
    chain, label, answer = row.chain, row.label, row.answer
    found = {"readable": chain is not None, "kit_form": isinstance(chain, Chain)}
    found["answer_is_label"] = normal_name(answer) == normal_name(label)
    if chain is None:
        return found
    found |= {
        "candidates": len(chain.options), "four_candidates": len(chain.options) == 4,
        "recall": recall(chain, label), "exact_recall": exact_recall(chain, label),
        "label_leak": label_leak(chain, label), "hint_leak": hint_leak(chain), "coverage": coverage(chain),
        "predicts_candidate": predicts_candidate(chain), "predicts_answer": predicts_answer(chain, answer),
    }  # fmt: skip
    if truth is not None:
        true, false, neither = attribute_counts(chain.analysis, truth)
        found["true_attributes"] = true / (true + false) if true + false else math.nan
        found["unverifiable"] = neither / (true + false + neither) if true + false + neither else math.nan
    return found | word_counts(chain)


def quality_table(
    rows: Sequence[Row], truth: Sequence[Collection[str]] | None = None, seed: int = 0, draws: int = 2000
) -> pd.DataFrame:
    """Mean of each measure over the n chains that have it, with a 95% bootstrap interval over chains.

    Columns metric, value, n, low, high. Raises as `chain_frame`.
    """
    found = []
    for metric, column in chain_frame(rows, truth).items():
        values, rng = column.dropna().to_numpy(), np.random.default_rng(seed)
        n = len(values)
        means = [values[rng.integers(n, size=n)].mean() for _ in range(draws)] if n else [math.nan]
        mean = values.mean() if n else math.nan
        found.append((metric, mean, n, *np.quantile(means, [0.025, 0.975])))
    return pd.DataFrame(found, columns=["metric", "value", "n", "low", "high"])


def load_rows(path) -> list[Row]:
    """A file of chats (own or released) or of predictions (`report.save_predictions`), JSON or JSONL.

    FileNotFoundError; ValueError for broken JSON and for a row with no completion.
    """
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            text = row["text"] if "text" in row else row["messages"][-1]["content"]
            rows.append(read_row(text, row.get("label")))
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{path}, row {number}: no completion in 'messages' or 'text'") from None
    return rows


def bird_truth(rows: Sequence[Row]) -> list[list[str]] | None:
    """The looks of the rows' species, for `truth`; None if a label is no species of the bird world."""
    if not all(row.label in by_name() for row in rows):
        return None
    return [by_name()[row.label].describe().split(", ") for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a file; chains of drawn birds are also held against what their species looks like."""
    parser = argparse.ArgumentParser(prog="python -m finer1_lite.cot.quality", description=main.__doc__)
    parser.add_argument("path", help="JSON or JSONL of chains (own or released) or of predictions")
    rows = load_rows(parser.parse_args(arguments).path)
    print(quality_table(rows, bird_truth(rows)).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
