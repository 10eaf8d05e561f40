"""A teacher that is a policy of this kit: the base, or the bird world's own teacher."""

import hashlib
from itertools import count
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..cot.build import Sampler
from ..evaluate.answers import fingerprint
from ..policy.inputs import VisionCache
from ..policy.load import Policy
from ..policy.rollout import rollout
from .endpoint import Answers


def sampler_of(
    policy: Policy, cache: VisionCache, seed: int, temperature: float = 1.0, kept: Path | None = None
) -> Sampler:
    """A teacher's voice: (image index, prompt) pairs to sampled texts.

    kept: a file for its answers. A run that was killed asks again from the start and gets the same, from the file as
    far as it goes; each batch then has draws of its own.
    """
    generator, store = torch.Generator(policy.device).manual_seed(seed), Answers(kept) if kept else None
    voice, batches = fingerprint(policy) if kept else "", count()
    size = policy.profile.rollout_batch  # as it is now: a batch that did not fit would cut the next ones otherwise

    def write(part: list[tuple[int, str]]) -> list[str]:
        prompts = [(prompt, seen) for (_, prompt), seen in zip(part, cache.get(i for i, _ in part))]
        return rollout(policy, prompts, 1, generator, temperature).texts

    def write_once(part: list[tuple[int, str]]) -> list[str]:
        number = next(batches)
        said = repr((voice, seed, temperature, number, part, [cache.about(i)[1] for i, _ in part])).encode()
        keys = [f"{hashlib.sha256(said).hexdigest()[:32]} {row}" for row in range(len(part))]
        if any(key not in store.rows for key in keys):
            generator.manual_seed(seed + 1_000_003 * (number + 1))
            for key, text in zip(keys, write(part)):
                store.add({"key": key, "text": text, "unusable": None})
        return [store.rows[key]["text"] for key in keys]

    def sample(asked: list[tuple[int, str]]) -> list[str]:
        texts = []
        for start in tqdm(range(0, len(asked), size), desc="write", mininterval=5, disable=len(asked) <= size):
            texts += (write_once if kept else write)(asked[start : start + size])
        return texts

    return sample
