"""Use a trained policy: name every picture of a folder, batch by batch, or watch one greedy answer being written.

`python -m finer1_lite.use FOLDER --adapter ADAPTER` names the pictures of FOLDER and writes them to a CSV file.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from PIL import Image
from transformers import TextIteratorStreamer

from . import reading
from .files import write_csv
from .images import SUFFIXES, as_rgb, read_image
from .policy.inputs import ImageFeatures, VisionCache, model_inputs, pad, prompt_ids
from .policy.load import Policy, load_policy, profile_of
from .policy.rollout import forbidden_ids, rollout
from .prompts import QUESTIONS, instructed

PROMPT, BARE_PROMPT = instructed(QUESTIONS[0]), instructed(QUESTIONS[0], think=False)  # bare: for SFT on answers


@dataclass(frozen=True)
class Classified:
    """One picture of a folder: the `answer` and the `chain` before it, or `error`, why there is no answer."""
    path: Path
    answer: str | None
    chain: str
    error: str | None = None


def prompt_of(policy: Policy, default: str = PROMPT) -> str:
    """A question as the policy's last training asked it, with its instruction; `default` where that is not known."""
    return policy.runs[-1].get("prompt", default) if policy.runs else default


def classify_batches(policy: Policy, folder: str | Path, prompt="", batch_size=0) -> Iterator[list[Classified]]:
    """Name every picture of a folder, by file name; each batch comes as soon as it is done.

    prompt: with its instruction, see `prompts.instructed`; without one, as in training. batch_size: 0 for the profile's
    `eval_batch`. A picture that cannot be read or overflows becomes a result with its `error`. ValueError for a folder
    without pictures.
    """
    visible = sorted(p for p in Path(folder).iterdir() if p.name[0] != "." and not p.is_dir())
    paths, size = [p for p in visible if p.suffix.lower() in SUFFIXES], batch_size or policy.profile.eval_batch
    if not paths:
        raise ValueError(f"no pictures in {folder} (folders inside it do not count): {', '.join(SUFFIXES)}")
    for batch in (paths[start : start + size] for start in range(0, len(paths), size)):
        found, seen = {}, {}
        for path in batch:  # one at a time: decoded, a photograph of 12 megapixels takes 36 MB
            try:
                seen[path] = see(policy, read_image(path))
            except (ValueError, FloatingPointError) as error:
                found[path] = Classified(path, None, "", str(error))
        if seen:
            asked = [(prompt or prompt_of(policy), s) for s in seen.values()]
            texts = rollout(policy, asked, 1, None, temperature=0).texts
            found |= {path: read_answer(path, text) for path, text in zip(seen, texts)}
        yield [found[path] for path in batch]


def classify_folder(policy: Policy, folder: str | Path, prompt: str = "") -> list[Classified]:
    """All of `classify_batches` in one list."""
    return sum(classify_batches(policy, folder, prompt), [])


def see(policy: Policy, picture: Image.Image) -> ImageFeatures:
    """What the vision tower makes of one RGB picture; FloatingPointError where it overflows."""
    return VisionCache(policy.model, policy.processor, [picture]).get([0])[0]


def read_answer(path: Path, text: str) -> Classified:
    """The chain and the answer of a completion, also of one that was cut off."""
    thought, answer = reading.read_answer(text)
    error = None if answer is not None else "the text has no <answer>: it was cut off, or has another form"
    return Classified(path, answer, thought, error)


def stream_answer(policy: Policy, image: Image.Image, prompt: str = PROMPT) -> Iterator[str]:
    """The greedy answer to one picture in pieces, as they are written; it stops when the caller stops reading."""
    tokenizer, stop, seen = policy.processor.tokenizer, Event(), see(policy, as_rgb(image))
    ids = pad([prompt_ids(policy.processor, prompt, seen)], tokenizer.pad_token_id, "left")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    policy.model.eval()
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(
            policy.model.generate, **model_inputs(policy.model, ids, ids.new_ones(ids.shape), [seen]),
            streamer=streamer, max_new_tokens=policy.profile.max_new_tokens, do_sample=False,
            repetition_penalty=1.0,  # Qwen's file says 1.05; the policy was trained and evaluated without
            suppress_tokens=forbidden_ids(policy.model), stopping_criteria=[lambda *_, **__: stop.is_set()],
        )  # fmt: skip
        written.add_done_callback(lambda _: streamer.end())  # also after an error: else the reader waits for ever
        try:
            yield from filter(None, streamer)  # it gives "" while a word is not complete
        finally:
            stop.set()
        written.result()


def main() -> None:
    """Name a folder's pictures with an adapter that says itself what base, limits and question it needs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="pictures, directly in it")
    parser.add_argument("--adapter", type=Path, required=True, help="the folder of an adapter")
    parser.add_argument("--model", help="the folder of its base, if that is not on the Hub or in this package")
    parser.add_argument("--out", type=Path, default=Path("names.csv"), help="the file to write: names.csv")
    args = parser.parse_args()
    policy = load_policy(profile_of(args.adapter, args.model), args.adapter, trainable=False)
    rows = []
    for batch in classify_batches(policy, args.folder):
        rows += [{"file": c.path.name, "answer": c.answer, "error": c.error, "chain": c.chain} for c in batch]
        write_csv(args.out, rows)  # what is done is kept
        print(f"{len(rows)} pictures named in {args.out}", flush=True)


if __name__ == "__main__":
    main()
