"""Greedy answers of a policy to "which class is this?", open-world and closed-world, and whether they are right.

Closed-world lists four options, the label and its look-alikes, in an order drawn from the seed. An answer is right if
it contains the label in any spelling (`reading.holds_name`; `protocols` has the released rule), strictly if it is it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..files import JsonLines, read_jsonl
from ..policy.inputs import VisionCache
from ..policy.load import Policy, fingerprint
from ..policy.rollout import rollout
from ..prompts import QUESTIONS, bare_question, instructed, make_options
from ..reading import holds_name, normalise, read_answer
from ..samplers import check_names

METHODS = ("base", "sft_answers", "cot_sft", "dapo", "tapo")
WITHOUT_CHAIN = ("base", "sft_answers")  # asked for the bare name; the others think first


@dataclass(frozen=True)
class Prediction:
    """One answered question, the whole prompt, about image `index`.

    ended: not cut off at the limit of tokens. asked: a digest of model, image and question.
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
    ended: bool = True


def judge(
    index: int, label: str, seen: bool, text: str, question: str = "", asked: str = "", ended: bool = True
) -> Prediction:
    """Score one completion by `reading.read_answer`: right if the answer holds the label's name, in any spelling."""
    answer = read_answer(text)[1] or ""
    right, strict = holds_name(answer, label), normalise(answer) == normalise(label) != ""
    return Prediction(index, label, seen, text, answer, right, strict, question, asked, ended)


def load_predictions(path: str | Path) -> list[Prediction]:
    """The predictions of a file of `ask`, in the order of their images."""
    return sorted((Prediction(**row) for _, row in read_jsonl(path)), key=lambda p: p.index)


def prompts_for(
    labels: Sequence[str], think: bool, seed: int, nearest: Mapping[str, list[str]] | None = None,
    questions: Sequence[str] = QUESTIONS,
) -> list[str]:  # fmt: skip
    """A full prompt for each label; with `nearest`, the look-alikes of each class, closed-world."""
    rng, prompts = np.random.default_rng(seed), []
    for label in labels:
        options = None if nearest is None else make_options(label, nearest, rng)
        prompts.append(instructed(bare_question(rng, questions), think, options))
    return prompts


def predict(
    policy: Policy, cache: VisionCache, data, think: bool, seed: int,
    nearest: Mapping[str, list[str]] | None = None, progress: str = "evaluate",
    questions: Sequence[str] = QUESTIONS, path: str | Path | None = None,
) -> list[Prediction]:  # fmt: skip
    """Greedy answers for every row of `data` (columns label and seen), in its order: `ask` with `prompts_for`.

    cache: features of the images of `data`, by row number. think: ask for a chain, or for the bare answer.
    """
    prompts = prompts_for(data["label"][:], think, seed, nearest, questions)
    return ask(policy, cache, data, prompts, progress, path)


def ask(
    policy: Policy, cache: VisionCache, data, prompts: Sequence[str], progress: str = "evaluate",
    path: str | Path | None = None,
) -> list[Prediction]:  # fmt: skip
    """The greedy answer to each prompt about the image of the same row of `data`, in that order.

    The longest prompts are asked first, in batches of about one length: little is padded, and what does not fit into
    memory shows at once. path: a file that gets the answers as they come; after a kill the same call goes on from
    there, with the same answers. ValueError where it holds answers to other questions, images, labels, or models.
    """
    labels, seen, number = data["label"][:], data["seen"][:], len(prompts)
    check_names(labels)
    if not number == len(labels) == len(cache.images):
        raise ValueError(f"{number} prompts, {len(labels)} labels and {len(cache.images)} images: not one of each")
    keys, found, store = [""] * number, {}, None
    if path is not None:
        model, rows = fingerprint(policy), list(zip(labels, seen, prompts))  # all that a prediction depends on
        whole = (json.dumps([model, i, *row]).encode() + cache.about(i)[1] for i, row in enumerate(rows))
        keys = [hashlib.sha256(text).hexdigest()[:16] for text in whole]
        store = JsonLines(path, [f.name for f in fields(Prediction)])
        found = {row["index"]: Prediction(**row) for row in store.rows}
        if other := [i for i, p in found.items() if i >= number or p.asked != keys[i]]:
            other = f"{path} holds answers to other questions, images or labels, or of another model (row {other[0]})"
            raise ValueError(f"{other}. Move the file away, or give another path")
    with tqdm(total=number, initial=len(found), desc=progress, unit="image", mininterval=5) as bar:
        for batch in _batches(policy, cache, prompts):
            missing = [i for i in batch if i not in found]
            if not missing:
                continue
            # The whole batch, also where some of it is known: another batch would round differently.
            made = rollout(policy, [(prompts[i], s) for i, s in zip(batch, cache.get(batch))], 1, None, 0)
            said = dict(zip(batch, zip(made.texts, made.ended)))
            made = [judge(i, labels[i], seen[i], said[i][0], prompts[i], keys[i], said[i][1]) for i in missing]
            found |= {p.index: p for p in made}
            if store:
                store.append(*map(asdict, made))
            bar.update(len(missing))
    return [found[i] for i in range(number)]


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
