"""What lies behind one accuracy: seen and unseen, who is taken for whom, overused names, the length of chains.

Functions of predictions (`evaluate.predict`, `evaluate.load_predictions`), of any data set. Where they ask for
`family_of`, give every class that can be an answer with its family, genus or maker; for the bird world
{s.name: s.family for s in all_species()}.

The harmonic mean of seen and unseen accuracy is not in the paper. It is the usual figure for tests with seen and unseen
classes, because the plain mean of 100% and 0% looks like that of 50% and 50%.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from finer1_lite.evaluate.answers import Prediction
from finer1_lite.evaluate.statistics import drawn_means
from finer1_lite.rewards import names_in, normalise

KINDS = ("right", "same family", "other family", "no known name")
NOTHING = KINDS[-1]


def split_accuracy(
    runs: Sequence[Sequence[Prediction]], strict: bool = False, seed: int = 0, draws: int = 2000
) -> pd.DataFrame:
    """Accuracy on seen and on unseen classes and their harmonic mean: index split, columns mean, low, high, n.

    runs: one method's predictions, a list for each seed. The 95% intervals resample seeds, classes and images
    (`evaluate.bootstrap_seeds`); the harmonic mean is taken draw by draw. ValueError if a split is empty.
    """
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(runs), size=(len(runs), draws))
    means, drawn, counts = {}, {}, {}
    for split in ("seen", "unseen"):
        parts = [[p for p in run if p.seen == (split == "seen")] for run in runs]
        if not all(parts):
            raise ValueError(f"a run has no images of {split} classes; the harmonic mean needs both")
        right = [np.array([p.strict if strict else p.correct for p in part], float) for part in parts]
        means[split] = float(np.mean([r.mean() for r in right]))
        drawn[split] = drawn_means(rng, right, [[p.label for p in part] for part in parts], picked)
        counts[split] = sum(map(len, parts))
    means["harmonic"] = float(harmonic(means["seen"], means["unseen"]))
    drawn["harmonic"], counts["harmonic"] = harmonic(drawn["seen"], drawn["unseen"]), sum(counts.values())
    rows = [(means[s], *np.quantile(drawn[s], [0.025, 0.975]), counts[s]) for s in means]
    return pd.DataFrame(rows, index=pd.Index(means, name="split"), columns=["mean", "low", "high", "n"])


def harmonic(a, b):
    """2ab / (a + b) of numbers or arrays; 0 where both are 0.

    >>> round(float(harmonic(0.9, 0.3)), 3), float(harmonic(0.0, 0.0))
    (0.45, 0.0)
    """
    total = np.add(a, b)
    return np.where(total > 0, 2 * np.multiply(a, b) / np.where(total > 0, total, 1), 0.0)


# ---- who is taken for whom


def named_class(answer: str, classes: Mapping[str, str]) -> str:
    """The one class that an answer names; NOTHING where it names none or several.

    >>> named_class("A house wren.", {"Wren": "wrens", "House Wren": "wrens"})
    'House Wren'
    """
    found = names_in(answer, classes)
    return found[0] if len(found) == 1 else NOTHING


def named_classes(predictions: Sequence[Prediction], family_of: Mapping[str, str]) -> list[str]:
    """`named_class` of each prediction. ValueError for a label without a family."""
    if missing := {p.label for p in predictions} - set(family_of):
        raise ValueError(f"family_of has no family for {min(missing)!r}; give one for every class")
    exact = {normalise(name): name for name in family_of}
    found = {a: exact.get(normalise(a)) or named_class(a, family_of) for a in {p.answer for p in predictions}}
    return [found[p.answer] for p in predictions]


def family_confusion(predictions: Sequence[Prediction], family_of: Mapping[str, str]) -> pd.DataFrame:
    """Shares of the `KINDS` of answers on seen and unseen classes: index split, a column for each kind, and n.

    "no known name" is none of `family_of`, or several at once.
    """
    names, rows = named_classes(predictions, family_of), {}
    for split in ("seen", "unseen"):
        pairs = [(p, name) for p, name in zip(predictions, names) if p.seen == (split == "seen")]
        kinds = Counter(_kind(p.label, name, family_of) for p, name in pairs)
        if pairs:
            rows[split] = {kind: kinds[kind] / len(pairs) for kind in KINDS} | {"n": len(pairs)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split")


def _kind(label: str, name: str, family_of: Mapping[str, str]) -> str:
    if name == NOTHING or name == label:
        return "right" if name == label else NOTHING
    return "same family" if family_of[name] == family_of[label] else "other family"


def family_matrix(predictions: Sequence[Prediction], family_of: Mapping[str, str]) -> pd.DataFrame:
    """How many answers of each family (columns, and NOTHING) each family's images (rows) got."""
    counts = Counter((family_of[p.label], family_of.get(name, NOTHING))
                     for p, name in zip(predictions, named_classes(predictions, family_of)))  # fmt: skip
    families = sorted(set(family_of.values()))
    table = [[counts[row, column] for column in (*families, NOTHING)] for row in families]
    frame = pd.DataFrame(table, index=pd.Index(families, name="family"), columns=[*families, NOTHING])
    return frame[frame.sum(axis=1) > 0]


# ---- how often each name is said


def name_counts(predictions: Sequence[Prediction], family_of: Mapping[str, str]) -> pd.DataFrame:
    """For each class, and NOTHING, how often it is the label (`expected`), is `answered`, and is answered rightly.

    Most overused first (`excess` = answered - expected). A class that is neither label nor answer is left out.
    """
    names = named_classes(predictions, family_of)
    expected, answered = Counter(p.label for p in predictions), Counter(names)
    right = Counter(p.label for p, name in zip(predictions, names) if p.label == name)
    rows = [(name, expected[name], answered[name], right[name]) for name in (*family_of, NOTHING)]
    frame = pd.DataFrame(rows, columns=["name", "expected", "answered", "right"]).set_index("name")
    frame["excess"] = frame.answered - frame.expected
    return frame[(frame.expected > 0) | (frame.answered > 0)].sort_values("excess", ascending=False, kind="stable")


def total_variation(counts: pd.DataFrame) -> float:
    """Half the summed distance of the shares of answers and labels (of `name_counts`): the share of all answers that
    would have to be another name for each to be said as often as it is right. 0 to 1.

    >>> total_variation(pd.DataFrame({"expected": [5, 5], "answered": [9, 1]}))
    0.4
    """
    shares = counts[["expected", "answered"]] / counts[["expected", "answered"]].sum()
    return float((shares.answered - shares.expected).abs().sum() / 2)


# ---- how long chains are


def chain_lengths(predictions: Sequence[Prediction], tokenizer=None) -> pd.DataFrame:
    """One row for each prediction: split, right, words, and with a tokenizer tokens, of the whole completion.

    For a table: `.groupby(["split", "right"]).words.describe()`.
    """
    columns = {
        "split": ["seen" if p.seen else "unseen" for p in predictions],
        "right": [p.correct for p in predictions],
        "words": [len(p.text.split()) for p in predictions],
    }
    if tokenizer is not None:
        texts = [p.text for p in predictions]
        columns["tokens"] = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return pd.DataFrame(columns)
