"""A teacher that is a policy of this kit: the base itself, or the bird world's own teacher."""

import hashlib
from itertools import count
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..cot.build import Sampler
from ..files import JsonLines
from ..policy.inputs import VisionCache
from ..policy.load import Policy, fingerprint
from ..policy.rollout import rollout


def sampler_of(policy: Policy, cache: VisionCache, seed: int, temperature=1.0, kept: Path | None = None) -> Sampler:
    """The policy as a sampler: (image index, prompt) pairs to texts, a batch at a time; each call draws anew. kept: a
    file for its answers, where a killed run that asks again finds them; each batch then has draws of its own."""
    generator = torch.Generator(policy.device).manual_seed(seed)
    size = policy.profile.rollout_batch  # as it is now: a batch that did not fit would cut the next ones otherwise
    if kept:
        store, who, numbers = JsonLines(kept, ("key", "texts")), fingerprint(policy), count(1)
        known = {row["key"]: row["texts"] for row in store.rows}

    def write(part: list[tuple[int, str]]) -> list[str]:
        prompts = [(prompt, features) for (_, prompt), features in zip(part, cache.get(i for i, _ in part))]
        return rollout(policy, prompts, 1, generator, temperature).texts

    def write_once(part: list[tuple[int, str]]) -> list[str]:
        number, pixels = next(numbers), [cache.about(i)[1] for i, _ in part]
        key = hashlib.sha256(repr((who, seed, temperature, number, part, pixels)).encode()).hexdigest()[:32]
        if key not in known:
            generator.manual_seed(seed + 1_000_003 * number)
            known[key] = write(part)
            store.append({"key": key, "texts": known[key]})
        return known[key]

    def sample(asked: list[tuple[int, str]]) -> list[str]:
        starts = tqdm(range(0, len(asked), size), desc="write", mininterval=5, disable=len(asked) <= size)
        return [text for start in starts for text in (write_once if kept else write)(asked[start : start + size])]

    return sample
