"""Ways to name a bird for `studies.baselines`: SigLIP, classifiers of four pictures a class, prompts to the base."""

from collections.abc import Iterable
from functools import cache

import numpy as np
import torch

from finer1_lite.birds.dataset import PER_CLASS, load_birds
from finer1_lite.birds.diet import LOOKS_QUESTIONS
from finer1_lite.evaluate.siglip import ONE, Siglip, choose, choose_probe
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.rollout import rollout
from finer1_lite.prompts import bare_question, instructed, listing, make_options
from finer1_lite.recipes import look_alike_classes, one_per_class
from studies.study import Seed

EXAMPLES = 4
LOOKS_QUESTION = next(iter(LOOKS_QUESTIONS))
Question = tuple[str, list[str] | None]  # a bare question, and the options of a closed-world one


@cache
def questions_of(lab: Seed, protocol: str) -> list[Question]:
    """The question about each judged picture, as `evaluate.answers.prompts_for` draws them for this seed."""
    rng, labels = np.random.default_rng(lab.seed), lab.judged["label"]
    nearest = look_alike_classes(lab.judged_cache, labels) if protocol == "closed" else None
    drawn = [(make_options(label, nearest, rng) if nearest else None, bare_question(rng)) for label in labels]
    return [(text, options) for options, text in drawn]


def given(asked: list[Question], known: Iterable[str] | None = None) -> list[list[str]] | None:
    """The options of each question, those of them that are `known`; None for open-world questions."""
    return None if asked[0][1] is None else [[o for o in own if known is None or o in known] for _, own in asked]


siglip = cache(Siglip)


def towers(lab: Seed) -> dict[str, tuple[list[str], torch.Tensor]]:
    """Labels and mean image tokens (N, H) of training pictures, of two validation ones of each seen species, and of
    those that are judged."""
    data = load_birds(lab.seed, {"val": PER_CLASS["val"] | {False: 0}, "test": {True: 0, False: 0}})["val"]
    val = VisionCache(lab.base.model, lab.base.processor, data["image"])
    parts = {
        "train": (lab.labels, lab.cache), "val": (data["label"], val),
        "judged": (lab.judged["label"], lab.judged_cache),
    }  # fmt: skip
    return {part: (list(names), torch.stack([s.tokens.float().mean(0) for s in cache_of.get(range(len(names)))]))
            for part, (names, cache_of) in parts.items()}  # fmt: skip


def zero_shot(lab: Seed, asked: list[Question], templates=ONE) -> list[str]:
    """SigLIP's choice among the options, or among the names of all judged classes."""
    names = sorted(set(lab.judged["label"]))
    rows = siglip().images(lab.judged_cache.images)
    return choose(rows @ siglip().classes(names, templates).T, names, given(asked))


def linear_probe(lab: Seed, asked: list[Question]) -> list[str]:
    """A linear classifier of the tower's features of four pictures of each seen species."""
    (labels, train), (val_labels, val), (_, judged) = towers(lab).values()
    probe = choose_probe(train, labels, val, val_labels)
    return choose(probe.scores(judged), probe.classes, given(asked, set(probe.classes)))


def ask_base(lab: Seed, prompts: list[str], images: list) -> list[str]:
    """What the base says to each prompt with the features of its image, or None."""
    return rollout(lab.base, list(zip(prompts, images)), 1, generator=None, temperature=0).texts


def looks_of(lab: Seed, images: list) -> list[str]:
    """How the base describes pictures: "red crown, brown back, ..."."""
    return [text.strip().rstrip(".") for text in ask_base(lab, [LOOKS_QUESTION] * len(images), images)]


def answer(lab: Seed, asked: list[Question], before=lambda options: "", think: bool = False) -> list[str]:
    """What the base answers to the questions, each with the words `before(options)` in front."""
    prompts = [f"{before(options)}{instructed(text, think, options)}" for text, options in asked]
    return ask_base(lab, prompts, lab.judged_cache.get(range(len(asked))))


def in_context(lab: Seed, asked: list[Question]) -> list[str]:
    """Solved examples in front: EXAMPLES seen species, as the base describes one picture of each, with the name."""
    rows = np.random.default_rng(lab.seed).choice(one_per_class(lab.labels), EXAMPLES, replace=False)
    looks = looks_of(lab, lab.cache.get(rows))
    solved = "".join(f"A bird with {text}: <answer> {lab.labels[int(i)]} </answer>. " for text, i in zip(looks, rows))
    return answer(lab, asked, lambda _: solved)


def describe_then_name(lab: Seed, asked: list[Question]) -> list[str]:
    """Two calls: the looks of the picture; then, in words alone, which bird has them."""
    looks = looks_of(lab, lab.judged_cache.get(range(len(asked))))
    prompts = [listing(f"Which bird has {text}?", options) for text, (_, options) in zip(looks, asked)]
    return ask_base(lab, prompts, [None] * len(asked))
