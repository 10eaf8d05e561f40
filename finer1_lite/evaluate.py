"""Greedy answers on seen and unseen classes, open-world and closed-world, as rows of a results file.

Open-world: the bare question. Closed-world: the question with four options, look-alikes of the label,
in an order drawn from the seed (in the released files the right one is always first). A prediction
counts as right if the label is contained in the answer, as in the released code; `strict` asks for
equality. Without an <answer>, the text after the thinking is the answer. `evidence.protocols` holds the
same answers against the released rules.

A large test set takes hours on a card: with `path=` answers are kept as they come, and `subset_of` draws a smaller
set whose error `subset_error` tells.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from scipy.stats import t
from tqdm.auto import tqdm

from .checkpoint import digest
from .policy.inputs import VisionCache
from .policy.load import Policy
from .policy.rollout import rollout
from .prompts import QUESTIONS, bare_question, instructed
from .rewards import extract_answer, normalise

METHODS = ("base", "sft_answers", "cot_sft", "dapo", "tapo")
WITHOUT_CHAIN = ("base", "sft_answers")  # asked for the bare name; the others think first
COLUMNS = ("method", "split", "protocol", "metric", "value", "n", "seed")


@dataclass(frozen=True)
class Prediction:
    """One answered question about image `index` of a data set.

    question: the whole prompt. asked: 16 hex digits that name the model, the image and the question; "" where the
    answers were not kept in a file.
    """

    index: int
    label: str
    seen: bool
    text: str
    answer: str
    correct: bool
    strict: bool
    question: str = ""
    asked: str = ""


def judge(index: int, label: str, seen: bool, text: str, question: str = "", asked: str = "") -> Prediction:
    """Score one completion by containment and strictly; a chain that breaks off has no answer."""
    answer = extract_answer(text)
    if answer is None:
        answer = text.partition("</think>")[2] if "<think>" in text else text
    contained, strict = normalise(label) in normalise(answer), normalise(label) == normalise(answer)
    return Prediction(index, label, seen, text, answer.strip(), contained, strict, question, asked)


def save_predictions(path: Path, predictions: list[Prediction]) -> None:
    """One JSON line for each prediction; the whole file or none."""
    part = path.with_suffix(".part")
    part.write_text("".join(_line(p) for p in predictions))
    part.replace(path)


def load_predictions(path: Path) -> list[Prediction]:
    """What `save_predictions` wrote."""
    return [Prediction(**json.loads(line)) for line in path.read_text().splitlines()]


def _line(prediction: Prediction) -> str:
    return json.dumps(asdict(prediction)) + "\n"


# ---- asking


def make_options(label: str, nearest: dict[str, list[str]], rng: np.random.Generator, k: int = 4) -> list[str]:
    """The label and its `k - 1` nearest classes, shuffled with `rng`."""
    options = [label, *nearest[label][: k - 1]]
    return [options[i] for i in rng.permutation(len(options))]


def prompts_for(
    labels: Sequence[str], think: bool, seed: int, nearest: Mapping[str, list[str]] | None = None,
    questions: Sequence[str] = QUESTIONS, official: bool = False,
) -> list[str]:  # fmt: skip
    """A full prompt for each label; with `nearest`, the look-alikes of each class, closed-world.

    official: the right option stands first, as in the released files. Phrasings and options are the same either way.
    """
    rng, prompts = np.random.default_rng(seed), []
    for label in labels:
        options = None if nearest is None else make_options(label, nearest, rng)
        if official and options:
            options = sorted(options, key=lambda option: option != label)
        prompts.append(instructed(bare_question(rng, questions), think, options))
    return prompts


def predict(
    policy: Policy, cache: VisionCache, data, think: bool, seed: int,
    nearest: Mapping[str, list[str]] | None = None, progress: str = "evaluate",
    questions: Sequence[str] = QUESTIONS, official: bool = False, path: Path | None = None,
) -> list[Prediction]:  # fmt: skip
    """Greedy answers for every row of `data` (columns label and seen), in its order: `ask` with `prompts_for`.

    cache: features of the images of `data`, by row number. think: ask for a chain, or for the bare
    answer. nearest: look-alikes of each class; with it the protocol is closed-world.
    """
    prompts = prompts_for(data["label"][:], think, seed, nearest, questions, official)
    return ask(policy, cache, data, prompts, progress, path)


def ask(
    policy: Policy, cache: VisionCache, data, prompts: Sequence[str], progress: str = "evaluate",
    path: Path | None = None,
) -> list[Prediction]:
    """The greedy answer to each prompt about the image of the same row of `data`, in that order.

    The longest prompts (image tokens and text) are asked first, in batches of about one length: little is padded,
    and what does not fit into memory shows at once.

    path: where the answers are kept, in the order of `data`, once there are all of them. Until then they lie in
    `path`.part, one line each, written as they come; after a kill the same call goes on from there, with the same
    answers as without it. ValueError for a file of other questions, images or labels, or of another model.
    """
    labels, seen, number = data["label"][:], data["seen"][:], len(prompts)
    if not number == len(labels) == len(cache.images):
        found = f"{number} prompts, {len(labels)} labels and {len(cache.images)} images"
        raise ValueError(f"{found}; each row needs one of each")
    keys, found, file = [""] * number, {}, nullcontext()
    if path is not None:
        path, part = Path(path), Path(f"{path}.part")
        keys = _keys(policy, cache, labels, seen, prompts)
        found = _kept(path if path.exists() else part, keys, labels, prompts)
        if path.exists() and len(found) == number:
            return [found[i] for i in range(number)]
        if path.exists():
            raise ValueError(f"{path} ends after {len(found)} of {number} answers; move it away to ask all of them")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("a", buffering=1)  # a line is written when it ends
    with file as out, tqdm(total=number, initial=len(found), desc=progress, unit="image", mininterval=5) as bar:
        for batch in _batches(policy, cache, prompts):
            missing = [i for i in batch if i not in found]
            if not missing:
                continue
            # The whole batch, also where some of it is known: another batch would round differently.
            texts = rollout(policy, [(prompts[i], s) for i, s in zip(batch, cache.get(batch))], 1, None, 0).texts
            said = dict(zip(batch, texts))
            for i in missing:
                found[i] = judge(i, labels[i], seen[i], said[i], prompts[i], keys[i])
                if out:
                    out.write(_line(found[i]))
            bar.update(len(missing))
    predictions = [found[i] for i in range(number)]
    if path is not None:
        save_predictions(path, predictions)
        part.unlink(missing_ok=True)  # gone already, if `path` has no suffix
    return predictions


def _batches(policy: Policy, cache: VisionCache, prompts: Sequence[str]) -> list[list[int]]:
    """Row numbers by the length of their prompts in tokens, longest first, `eval_batch` at a time."""
    pictures, read = policy.processor.image_processor, policy.processor.tokenizer
    words = {text: len(read(text)["input_ids"]) for text in set(prompts)}
    tokens = []
    for i in range(len(prompts)):
        (width, height), _ = cache.about(i)
        tokens.append(pictures.get_number_of_image_patches(height, width) // pictures.merge_size**2)
    order = sorted(range(len(prompts)), key=lambda i: -tokens[i] - words[prompts[i]])
    size = policy.profile.eval_batch
    return [order[start : start + size] for start in range(0, len(order), size)]


def _keys(policy: Policy, cache: VisionCache, labels, seen, prompts) -> list[str]:
    """For each row, a digest of all that its prediction depends on."""
    model = fingerprint(policy)
    rows = zip(labels, seen, prompts)
    return [
        hashlib.sha256(json.dumps([model, i, *row]).encode() + cache.about(i)[1]).hexdigest()[:16]
        for i, row in enumerate(tqdm(rows, total=len(labels), desc="look at the pictures", leave=False, delay=5))
    ]


def fingerprint(policy: Policy) -> str:
    """A digest of what decides greedy answers: the adapter's weights, the base's last layer, precision and limits."""
    profile = policy.profile
    limits = (profile.dtype, profile.quantize, profile.max_pixels, profile.max_new_tokens)
    weights = dict(policy.backbone.language_model.layers[-1].named_parameters())  # merged or trained on, all layers differ
    if isinstance(policy.model, PeftModel):
        weights |= get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    return hashlib.sha256(f"{limits} {digest(weights)}".encode()).hexdigest()


def _kept(file: Path, keys: list[str], labels: list[str], prompts: Sequence[str]) -> dict[int, Prediction]:
    """The answers that a file holds, by row; a last line that was cut off is removed from it."""
    if not file.exists():
        return {}
    written = file.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        with file.open("r+b") as out:
            out.truncate(len(whole))
    found = {}
    for number, line in enumerate(whole.decode().splitlines(), 1):
        try:
            p = Prediction(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}, line {number}, is no prediction ({error}); move the file away") from None
        if p.index >= len(keys) or p.asked != keys[p.index]:
            raise ValueError(
                f"{file} holds answers to {_other(p, labels, prompts)}. Move the file away, or give another path"
            )
        found[p.index] = p
    return found


def _other(p: Prediction, labels: list[str], prompts: Sequence[str]) -> str:
    if p.index >= len(labels):
        return f"more questions: row {p.index} of {len(labels)}"
    for what, was, now in (("label", p.label, labels[p.index]), ("question", p.question, prompts[p.index])):
        if was != now:
            return f"other questions: row {p.index} has the {what} {was!r} there and {now!r} here"
    return f"the same questions about other images, or of another model (row {p.index}: adapter, precision, limits)"


# ---- a smaller test set


def subset_of(data: Dataset, n: int, seed: int) -> Dataset:
    """`n` rows of `data`, in its order: of each class (column label) its share, to within one row, drawn with `seed`.

    With fewer rows than classes some classes have none. ValueError unless 1 <= n <= len(data).
    """
    if not 1 <= n <= len(data):
        raise ValueError(f"{n} of {len(data)} images cannot be drawn; ask for 1 to {len(data)}")
    rng, labels = np.random.default_rng(seed), np.array(data["label"][:])
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)  # evenly spread, from a random start
    return data.select(np.sort(np.argsort(place, kind="stable")[:n]))


def subset_error(labels: Sequence[str], chosen: Sequence[str], right: Sequence[float] | None = None) -> float:
    r"""Standard error of a subset's accuracy (0-1) as an estimate of the whole set's: what asking all would change.

    labels: classes of the whole set's N images; chosen: of the subset's n. right: 1 or 0 for each of the subset,
    once it was asked; without it the answer is the largest error that can be. Outcomes are p + class + image, of
    variances $\rho p(1-p)$ and $(1-\rho)p(1-p)$ with $\rho$ the correlation within a class, so with k_c of N_c images

    $$ Var = p(1-p) [ \rho \sum_c (k_c/n - N_c/N)^2 + (1-\rho) (1/n - 1/N) ] $$

    which is 0 for n = N. It does not hold what another draw of classes and images into the *whole* set would change:
    that is `bootstrap_difference`.

    >>> round(subset_error(["a", "b"] * 500, ["a", "b"] * 50), 3), subset_error(["a", "b"], ["a", "b"])
    (0.047, 0.0)
    """
    labels, chosen = list(labels), list(chosen)
    whole, part, n = Counter(labels), Counter(chosen), len(chosen)
    if not n or part - whole:
        raise ValueError("the chosen labels are not a part of all labels; give both from the same data")
    between = sum((part[c] / n - whole[c] / len(labels)) ** 2 for c in whole)
    within = 1 / n - 1 / len(labels)
    if right is None:
        return float(np.sqrt(0.25 * max(between, within)))
    p, alike = float(np.mean(right)), _alike(np.asarray(right, float), chosen)
    return float(np.sqrt(p * (1 - p) * (alike * between + (1 - alike) * within)))


def _alike(right: np.ndarray, classes: list[str]) -> float:
    """Correlation of two outcomes of one class, from the analysis of variance; 0 where no class has two images."""
    groups = [right[np.array(classes) == name] for name in dict.fromkeys(classes)]
    n, sizes = len(right), np.array([len(g) for g in groups])
    if len(groups) in (1, n):
        return 0.0
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (n - len(groups))
    between = sum(len(g) * (g.mean() - right.mean()) ** 2 for g in groups) / (len(groups) - 1)
    size = (n - (sizes**2).sum() / n) / (len(groups) - 1)
    total = between + (size - 1) * within
    return float(np.clip((between - within) / total, 0, 1)) if total > 0 else 0.0


# ---- figures


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


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one figure of each seed with its 95% t-interval, as (mean, low, high); NaN ends for one seed, and where
    seeds do not differ: that is no certainty (but nothing, of nothing but zeros, is).

    It is about new seeds, with all that a seed draws. A bootstrap of a few seeds would be too narrow.

    >>> [round(x, 2) for x in interval([0.5, 0.6, 0.7])]
    [0.6, 0.35, 0.85]
    """
    values = np.asarray(values, float)
    mean, n = values.mean(), len(values)
    told = n > 1 and (np.ptp(values) > 1e-12 or not values.any())
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if told else np.nan
    return float(mean), float(mean - half), float(mean + half)


def bootstrap_difference(a: np.ndarray, b: np.ndarray, classes: list[str], seed: int = 0, draws: int = 2000):
    """Mean of `a - b` (N,) with a 95% interval; see `bootstrap_seeds`, of which this is the case of one seed."""
    return bootstrap_seeds([np.asarray(a, float) - np.asarray(b, float)], [classes], seed, draws)


def bootstrap_seeds(gaps: list[np.ndarray], classes: list[list[str]], seed: int = 0, draws: int = 2000):
    """Mean of the seeds' mean gaps with a 95% interval, as (mean, low, high).

    gaps: for each seed the differences (N,) of two methods on the same images, classes: the images'
    classes. Each draw takes seeds, then classes of each, then images of each class, all with repeats.
    """
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(gaps), size=(len(gaps), draws))
    low, high = np.quantile(drawn_means(rng, gaps, classes, picked), [0.025, 0.975])
    return float(np.mean([g.mean() for g in gaps])), float(low), float(high)


def drawn_means(
    rng: np.random.Generator, values: list[np.ndarray], classes: list[list[str]], picked: np.ndarray
) -> np.ndarray:
    """Means (draws,) of resampled seeds, classes and images; see `bootstrap_seeds`.

    picked: (seeds, draws), which seed stands at each place of each draw. Two figures that are drawn with the same
    `picked` belong together, draw by draw.
    """
    draws = picked.shape[1]
    drawn = [[_resampled_means(rng, v, c, draws) for v, c in zip(values, classes)] for _ in values]
    return np.mean([np.choose(row, columns) for row, columns in zip(picked, drawn)], axis=0)


def _resampled_means(rng: np.random.Generator, values: np.ndarray, classes: list[str], draws: int) -> np.ndarray:
    """Means (draws,) of `values` (N,), where classes and then images of each drawn class come with repeats."""
    groups = [values[np.array(classes) == name] for name in dict.fromkeys(classes)]
    sizes = np.array([len(g) for g in groups])
    padded = np.stack([np.pad(g, (0, sizes.max() - len(g))) for g in groups])  # (G, largest)
    which = rng.integers(len(groups), size=(draws, len(groups)))
    images = (rng.random((*which.shape, sizes.max())) * sizes[which][..., None]).astype(int)
    found = padded[which[..., None], images] * (np.arange(sizes.max()) < sizes[which][..., None])
    return found.sum((1, 2)) / sizes[which].sum(1)
