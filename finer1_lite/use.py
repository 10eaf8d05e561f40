"""Use a trained policy: name every picture of a folder, batch by batch, or watch one answer being written.

Answers are greedy and in the form that the policy was trained on: a chain, then a name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from PIL import Image
from transformers import TextIteratorStreamer

from .images import SUFFIXES, as_rgb, read_image
from .policy.inputs import ImageFeatures, VisionCache, model_inputs, pad, prompt_ids, tower_on_device
from .policy.load import Policy
from .policy.rollout import forbidden_ids, rollout
from .prompts import QUESTIONS, instructed
from .rewards import extract_answer

PROMPT = instructed(QUESTIONS[0])
BARE_PROMPT = instructed(QUESTIONS[0], think=False)  # for SFT on answers, which has learnt no chains
OPEN_AT_ONCE = 16  # decoded, a photograph of 12 megapixels takes 36 MB


@dataclass(frozen=True)
class Classified:
    """One picture of a folder: the `answer` and the `chain` before it, or `error`, why there is no answer."""

    path: Path
    answer: str | None
    chain: str
    error: str | None = None


def images_in(folder: str | Path) -> list[Path]:
    """The picture files of a folder, by name; folders inside it and hidden files are left out.

    Raises NotADirectoryError, and ValueError if there is no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; give the one that holds the pictures")
    paths = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    paths = [p for p in paths if not p.is_dir()]
    if not paths:
        raise ValueError(f"no pictures in {folder} (folders inside it do not count): {', '.join(SUFFIXES)}")
    return sorted(paths)


def classify_batches(
    policy: Policy, folder: str | Path, prompt: str = PROMPT, batch_size: int | None = None
) -> Iterator[list[Classified]]:
    """Every picture of a folder, by name; each batch comes as soon as it is done.

    prompt: the whole question with its instruction, see `prompts.instructed`. batch_size: the profile's
    `eval_batch` if not given. A file that cannot be read, or overflows, becomes a result with its `error`. Raises as
    `images_in`.
    """
    paths, size = images_in(folder), batch_size or policy.profile.eval_batch
    for start in range(0, len(paths), size):
        yield _classify(policy, paths[start : start + size], prompt)


def classify_folder(
    policy: Policy, folder: str | Path, prompt: str = PROMPT, batch_size: int | None = None
) -> list[Classified]:
    """All of `classify_batches` in one list."""
    return [found for batch in classify_batches(policy, folder, prompt, batch_size) for found in batch]


def _classify(policy: Policy, paths: list[Path], prompt: str) -> list[Classified]:
    found, seen = {}, {}
    for start in range(0, len(paths), OPEN_AT_ONCE):
        pictures = {}
        for path in paths[start : start + OPEN_AT_ONCE]:
            try:
                pictures[path] = read_image(path)
            except ValueError as error:
                found[path] = Classified(path, None, "", str(error))
        try:
            seen |= zip(pictures, see(policy, list(pictures.values())))
        except FloatingPointError:  # one of them overflows: find it
            for path, picture in pictures.items():
                try:
                    seen[path] = see(policy, [picture])[0]
                except FloatingPointError as error:
                    found[path] = Classified(path, None, "", str(error))
    if seen:
        texts = rollout(policy, [(prompt, s) for s in seen.values()], 1, None, temperature=0).texts
        found |= {path: read_answer(path, text) for path, text in zip(seen, texts)}
    return [found[path] for path in paths]


def see(policy: Policy, pictures: list[Image.Image]) -> list[ImageFeatures]:
    """What the vision tower makes of RGB pictures."""
    return VisionCache(policy.model, policy.processor, pictures).get(range(len(pictures)))


def read_answer(path: Path, text: str) -> Classified:
    """The chain and the answer of a completion.

    >>> found = read_answer(Path("a.png"), "<think> red crown </think> <answer> tarn </answer>")
    >>> found.answer, found.chain
    ('tarn', 'red crown')
    """
    thought = re.search(r"<think>(.*?)(?:</think>|<answer>|\Z)", text, re.DOTALL)
    answer = extract_answer(text)
    error = None if answer is not None else "the text has no <answer>: it was cut off, or has another form"
    return Classified(path, answer, thought.group(1).strip() if thought else "", error)


def stream_answer(policy: Policy, image: Image.Image, prompt: str = PROMPT) -> Iterator[str]:
    """The greedy answer to one picture in pieces, as they are written; joined, they are the whole text.

    `generate` runs in a thread of its own. It stops when the caller stops reading, and what it raises is
    raised here.
    """
    tokenizer = policy.processor.tokenizer
    seen = see(policy, [as_rgb(image)])
    ids = pad([prompt_ids(policy.processor, prompt, seen[0])], tokenizer.pad_token_id, "left")
    inputs = model_inputs(policy.model, ids, ids.new_ones(ids.shape), seen)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, failed = Event(), []

    def write():
        try:
            policy.model.generate(
                **inputs, streamer=streamer, max_new_tokens=policy.profile.max_new_tokens, do_sample=False,
                repetition_penalty=1.0,  # Qwen's file says 1.05; the policy was trained and judged without
                suppress_tokens=forbidden_ids(policy.model),
                stopping_criteria=[lambda *_, **__: stop.is_set()],
            )  # fmt: skip
        except Exception as error:
            failed.append(error)
            streamer.end()  # else the reader would wait for ever

    policy.model.eval()
    writer = Thread(target=write)
    with tower_on_device(policy.model):
        writer.start()
        try:
            yield from filter(None, streamer)  # it gives "" while a word is not complete
        finally:
            stop.set()
            writer.join()
    if failed:
        raise failed[0]
