"""The steps that chapters and studies share: from labels to chains, rows and look-alikes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from .config import ASSETS, Profile
from .cot.build import Built, Task
from .cot.chains import chat_row, question_and_completion, spelt, to_completion
from .policy.inputs import VisionCache, answer_ids
from .prompts import bare_question, instructed, question
from .samplers import nearest_classes
from .sft import Row

TEACHER = ASSETS / "teacher"
DESCRIPTIONS_PER_QUESTION = 2


def one_per_class(labels: list[str]) -> list[int]:
    """The first image of each class: Stage 1 uses one image per seen class."""
    return [labels.index(c) for c in sorted(set(labels))]


def tasks_of(labels: list[str], seed: int) -> list[Task]:
    """One image of each class with a question."""
    rng = np.random.default_rng(seed)
    return [Task(i, labels[i], bare_question(rng)) for i in one_per_class(labels)]


def chain_rows(tasks: list[Task], built: Built, cache: VisionCache) -> list[dict]:
    """Accepted chains as chat rows, with the student's prompt and completion. cache: of the images of `tasks`."""
    pairs = [(tasks[attempt.task], attempt.chain) for attempt in built.accepted]
    return [chat_row(t.image_index, t.label, instructed(t.question), to_completion(spelt(chain, t.label)),
                     pixels=cache.about(t.image_index)[1].hex()[:16]) for t, chain in pairs]  # fmt: skip


def sft_rows(rows: list[dict], cache: VisionCache, labels: Sequence[str]) -> list[Row]:
    """Chat rows as (question, seen, answer) rows for `train_sft`.

    labels: of the images of `cache`. ValueError for a chain of another image or label than the data have at its place:
    then the data have changed since the chains were written.
    """
    for number, row in enumerate(rows, 1):
        place = row["image_index"]
        here = cache.about(place)[1].hex()[:16] if place < len(labels) else "no image"
        if place >= len(labels) or labels[place] != row["label"] or row.get("pixels", here) != here:
            now = f"a picture of {labels[place]!r}" if place < len(labels) else "no picture"
            raise ValueError(
                f"chain {number} is about a picture of {row['label']!r}, number {place} of the data, which is {now} "
                "today and perhaps another one: the data have changed; write the chains anew"
            )
    pairs = [question_and_completion(row) for row in rows]
    return [(q, s, a) for (q, a), s in zip(pairs, cache.get([row["image_index"] for row in rows]))]


def answer_rows(labels: list[str], cache: VisionCache, seed: int) -> list[Row]:
    """The baseline's rows: every training image with its bare name."""
    rng, seen = np.random.default_rng(seed), cache.get(range(len(labels)))
    return [(question(rng, False), s, f"<answer> {label} </answer>") for label, s in zip(labels, seen)]


def room_for(profile: Profile, processor, completions: Sequence[str]) -> Profile:
    """The profile with a quarter more `max_new_tokens` than the longest of the completions has, if it had fewer."""
    longest = max(len(answer_ids(processor, text)) for text in completions)
    return replace(profile, max_new_tokens=max(profile.max_new_tokens, math.ceil(1.25 * longest)))


def look_alike_classes(cache: VisionCache, labels: list[str]) -> dict[str, list[str]]:
    """Every class's other classes, most similar first, by the mean image tokens of the policy's own tower."""
    parts = (range(len(labels))[start : start + 64] for start in range(0, len(labels), 64))  # not all at once
    means = torch.stack([s.tokens.float().mean(0) for part in parts for s in cache.get(part)])
    return nearest_classes(labels, means - means.mean(0))


def dapo_setting(profile: Profile):
    """DAPO at TAPO's cost in rollouts: all from the anchor, no triplet terms; as config and loss."""
    anchors = profile.tapo.num_anchor + profile.tapo.num_positive
    config = replace(profile.tapo, num_anchor=anchors, num_positive=0)
    return config, replace(profile.loss, gamma=0.0, eta1=0.0, eta2=0.0)
