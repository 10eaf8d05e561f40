"""Greedy answers on seen and unseen classes, open-world and closed-world, as rows of a results file.

Open-world: the bare question. Closed-world: the question with four options, look-alikes of the label,
in an order drawn from the seed (in the released files the right one is always first). A prediction
counts as right if the label is contained in the answer, as in the released code; `strict` asks for
equality. Without an <answer>, the text after the thinking is the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from .policy.inputs import VisionCache
from .policy.load import Policy
from .policy.rollout import rollout
from .prompts import QUESTIONS, bare_question, instructed
from .rewards import extract_answer, normalise

METHODS = ("base", "sft_answers", "cot_sft", "dapo", "tapo")
COLUMNS = ("method", "split", "protocol", "metric", "value", "n", "seed")


@dataclass(frozen=True)
class Prediction:
    """One answered question about image `index` of a data set."""

    index: int
    label: str
    seen: bool
    text: str
    answer: str
    correct: bool
    strict: bool


def judge(index: int, label: str, seen: bool, text: str) -> Prediction:
    """Score one completion by containment and strictly; a chain that breaks off has no answer."""
    answer = extract_answer(text)
    if answer is None:
        answer = text.partition("</think>")[2] if "<think>" in text else text
    contained = normalise(label) in normalise(answer)
    return Prediction(index, label, seen, text, answer.strip(), contained, normalise(label) == normalise(answer))


def make_options(label: str, nearest: dict[str, list[str]], rng: np.random.Generator, k: int = 4) -> list[str]:
    """The label and its `k - 1` nearest classes, shuffled with `rng`."""
    options = [label, *nearest[label][: k - 1]]
    return [options[i] for i in rng.permutation(len(options))]


def predict(
    policy: Policy, cache: VisionCache, data, think: bool, seed: int,
    nearest: dict[str, list[str]] | None = None, progress: str = "evaluate",
    questions: Sequence[str] = QUESTIONS,
) -> list[Prediction]:  # fmt: skip
    """Greedy answers for every row of `data` (columns label and seen), in its order.

    cache: features of the images of `data`, by row number. think: ask for a chain, or for the bare
    answer. nearest: look-alikes of each class; with it the protocol is closed-world.
    """
    rng = np.random.default_rng(seed)
    labels, seen = data["label"], data["seen"]
    prompts = []
    for label in labels:
        options = None if nearest is None else make_options(label, nearest, rng)
        prompts.append(instructed(bare_question(rng, questions), think, options))
    size, made = policy.profile.eval_batch, []
    for start in tqdm(range(0, len(prompts), size), desc=progress, mininterval=5):
        rows = range(start, min(start + size, len(prompts)))
        batch = [(prompts[i], s) for i, s in zip(rows, cache.get(rows))]
        made += rollout(policy, batch, 1, generator=None, temperature=0).texts
    return [judge(i, labels[i], seen[i], text) for i, text in enumerate(made)]


def result_rows(predictions: list[Prediction], method: str, protocol: str, seed: int) -> list[dict]:
    """Accuracy, strict accuracy and answer length on seen and on unseen classes, as rows of the results file."""
    rows = []
    for split, wanted in (("seen", True), ("unseen", False)):
        part = [p for p in predictions if p.seen == wanted]
        if not part:
            continue
        figures = {
            "accuracy": np.mean([p.correct for p in part]),
            "strict_accuracy": np.mean([p.strict for p in part]),
            "words": np.mean([len(p.text.split()) for p in part]),
        }
        for metric, value in figures.items():
            cells = (method, split, protocol, metric, round(float(value), 6), len(part), seed)
            rows.append(dict(zip(COLUMNS, cells)))
    return rows


def bootstrap_difference(a: np.ndarray, b: np.ndarray, classes: list[str], seed: int = 0, draws: int = 2000):
    """Mean of `a - b` (N,) with a 95% interval; see `bootstrap_seeds`, of which this is the case of one seed."""
    return bootstrap_seeds([np.asarray(a, float) - np.asarray(b, float)], [classes], seed, draws)


def bootstrap_seeds(gaps: list[np.ndarray], classes: list[list[str]], seed: int = 0, draws: int = 2000):
    """Mean of the seeds' mean gaps with a 95% interval, as (mean, low, high).

    gaps: for each seed the differences (N,) of two methods on the same images, classes: the images'
    classes. Each draw takes seeds, then classes of each, then images of each class, all with repeats.
    """
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(gaps), size=(len(gaps), draws))  # which seed stands at each place of each draw
    drawn = [[_resampled_means(rng, g, c, draws) for g, c in zip(gaps, classes)] for _ in gaps]
    means = np.mean([np.choose(row, columns) for row, columns in zip(picked, drawn)], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([g.mean() for g in gaps])), float(low), float(high)


def _resampled_means(rng: np.random.Generator, values: np.ndarray, classes: list[str], draws: int) -> np.ndarray:
    """Means (draws,) of `values` (N,), where classes and then images of each drawn class come with repeats."""
    groups = [values[np.array(classes) == name] for name in dict.fromkeys(classes)]
    sizes = np.array([len(g) for g in groups])
    padded = np.stack([np.pad(g, (0, sizes.max() - len(g))) for g in groups])  # (G, largest)
    which = rng.integers(len(groups), size=(draws, len(groups)))
    images = (rng.random((*which.shape, sizes.max())) * sizes[which][..., None]).astype(int)
    found = padded[which[..., None], images] * (np.arange(sizes.max()) < sizes[which][..., None])
    return found.sum((1, 2)) / sizes[which].sum(1)
