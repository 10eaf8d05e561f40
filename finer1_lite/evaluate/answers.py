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
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peft import PeftModel, get_peft_model_state_dict
from tqdm.auto import tqdm

from ..loop import digest
from ..policy.inputs import VisionCache
from ..policy.load import Policy
from ..policy.rollout import rollout
from ..prompts import QUESTIONS, bare_question, instructed, make_options
from ..rewards import extract_answer, normalise

METHODS = ("base", "sft_answers", "cot_sft", "dapo", "tapo")
WITHOUT_CHAIN = ("base", "sft_answers")  # asked for the bare name; the others think first


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
