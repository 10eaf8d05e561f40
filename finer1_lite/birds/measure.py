"""What the base can do before any fine-tuning, beside what it should: the figures of `base.json`.

The targets put it where Qwen2.5-VL-3B stands among real birds (arXiv 2602.07605: 77% and 72% of the closed-world
questions on what will be seen and unseen classes, 36% open-world). All pictures are new: no training and no
evaluation shows them.
"""

from collections.abc import Callable

import numpy as np
import torch

from ..evaluate.answers import judge
from ..evaluate.siglip import choose, choose_probe
from ..policy.inputs import ImageFeatures, Prompt, VisionCache, model_inputs, pad, prompt_ids
from ..policy.load import Policy
from ..policy.lora import decoding
from ..policy.rollout import rollout
from ..prompts import QUESTIONS, bare_question, instructed, listing, make_options
from ..recipes import look_alike_classes
from ..rewards import names_in
from .dataset import FIRST
from .diet import LOOKS_QUESTIONS, direct
from .render import draw
from .species import ATTRIBUTES, all_species, by_name, look_alikes

TARGETS = {  # lowest and highest share
    "names, open-world": (0.30, 0.45),
    "names, closed-world": (0.68, 0.80),
    "thinking adds, closed-world": (-0.06, 0.06),
    "describes all eight": (0.85, 0.95),
    "recalls the guide": (0.95, 1.0),
    "linear probe": (0.75, 0.88),
    "describes, then names": (0.88, 1.0),
}
FIRST_PICTURE, PROBED = FIRST["val"] + 500, (4, 2, 2)  # pictures of a species to fit, to choose and to test the probe
GUIDE: dict[str, tuple[str, Callable]] = {  # a question on the name {0} or the looks {1}; whether a text is right
    "looks": ("What does the {0} look like?", lambda s, t: f"The {s.name} has {s.describe()}." == t),
    "name": ("Which bird has {1}?", lambda s, t: direct(s.name) == t),
    "look-alikes": ("Which birds look like the {0}?",
                    lambda s, t: set(names_in(t, by_name())) == {x.name for x in look_alikes(s.name)}),
    "nest": ("What does the {0} nest in?", lambda s, t: f"nests in {s.nest}." in t),
    "food": ("What does the {0} eat?", lambda s, t: f"eats {s.food}." in t),
}  # fmt: skip


@torch.no_grad()
def last_states(policy: Policy, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layer's mean over each prompt's image tokens, and its state before the answer: two (N, H)."""
    policy.model.eval()
    image, last, size = [], [], policy.profile.eval_batch
    with decoding(policy):
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            rows = [prompt_ids(policy.processor, text, seen) for text, seen in part]
            ids = pad(rows, policy.processor.tokenizer.pad_token_id, "right")
            mask = pad([[1] * len(r) for r in rows], 0, "right")
            inputs = model_inputs(policy.model, ids, mask, [seen for _, seen in part])
            states = policy.backbone(**inputs, use_cache=False).last_hidden_state.float().cpu()
            mine = (ids == policy.model.config.image_token_id).float()[..., None]  # (B, P, 1)
            image.append((states * mine).sum(1) / mine.sum(1))
            last.append(states[torch.arange(len(ids)), mask.sum(1) - 1])
    return torch.cat(image), torch.cat(last)


def probe_accuracy(states: torch.Tensor, labels: list[str], counts: tuple[int, int, int] = PROBED) -> float:
    """Share of right names of a linear probe of states (N, H): `counts` rows of each label to fit, choose, test."""
    slot, (fit, val, _) = torch.arange(len(labels)) % sum(counts), counts
    parts = [torch.nonzero(mask)[:, 0] for mask in (slot < fit, (slot >= fit) & (slot < fit + val), slot >= fit + val)]
    (x, y), (val_x, val_y), (z, truth) = ((states[rows], [labels[i] for i in rows]) for rows in parts)
    probe = choose_probe(x, y, val_x, val_y)
    return float(np.mean(np.array(choose(probe.scores(z), probe.classes)) == truth))


def measure_base(policy: Policy, pictures: int = 3) -> dict[str, dict]:
    """Name -> {"measured", and "target" for those of TARGETS}; greedy answers on `pictures` of each species."""
    species = [s for s in all_species() for _ in range(pictures)]
    images = [draw(s, FIRST_PICTURE + i % pictures) for i, s in enumerate(species)]
    cache, labels = VisionCache(policy.model, policy.processor, images), [s.name for s in species]
    seen, known, rng = cache.get(range(len(images))), np.array([s.common for s in species]), np.random.default_rng(0)
    nearest = look_alike_classes(cache, labels)
    options = [make_options(label, nearest, rng) for label in labels]
    questions = [bare_question(rng) for _ in labels]

    def ask(texts: list[str], shown: list[ImageFeatures | None]) -> list[str]:
        return rollout(policy, list(zip(texts, shown)), 1, generator=None, temperature=0).texts

    def right(texts: list[str], shown=seen) -> np.ndarray:
        return np.array([judge(0, label, True, text).correct for label, text in zip(labels, ask(texts, shown))])

    described = [text.strip().rstrip(".") for text in ask([next(iter(LOOKS_QUESTIONS))] * len(seen), seen)]
    told = np.array([[s.describe([a]) in text.split(", ") for a in ATTRIBUTES] for s, text in zip(species, described)])
    bare = right([instructed(q, False) for q in questions])
    closed, thought = (
        right([instructed(q, think, o) for q, o in zip(questions, options)])[~known] for think in (False, True)
    )
    two_calls = [f"Which bird has {looks}?" for looks in described]
    nothing = [None] * len(seen)
    figures = {f"describes {a}": told[:, i].mean() for i, a in enumerate(ATTRIBUTES)} | {
        "describes all eight": told.all(1).mean(),
        "names common species, open-world": bare[known].mean(),
        "names, open-world": bare[~known].mean(),
        "names after thinking, open-world": right([instructed(q) for q in questions])[~known].mean(),
        "names, closed-world": closed.mean(),
        "thinking adds, closed-world": thought.mean() - closed.mean(),
        "describes, then names": right(two_calls, nothing)[~known].mean(),
        "describes, then chooses": right([listing(*pair) for pair in zip(two_calls, options)], nothing)[~known].mean(),
    }
    for kind, (form, is_right) in GUIDE.items():
        answers = ask([form.format(s.name, s.describe()) for s in all_species()], [None] * len(all_species()))
        figures[f"recalls {kind}"] = np.mean([is_right(s, t) for s, t in zip(all_species(), answers)])
    figures["recalls the guide"] = np.mean([figures[f"recalls {kind}"] for kind in GUIDE])
    figures["linear probe"] = _probe(policy)
    return {name: {"measured": round(float(value), 4)} | ({"target": TARGETS[name]} if name in TARGETS else {})
            for name, value in figures.items()}  # fmt: skip


def _probe(policy: Policy) -> float:
    """The paper's probe, of new pictures of the evaluated species."""
    species = [s for s in all_species() if not s.common for _ in range(sum(PROBED))]
    images = [draw(s, FIRST_PICTURE + 100 + i % sum(PROBED)) for i, s in enumerate(species)]
    seen = VisionCache(policy.model, policy.processor, images).get(range(len(images)))
    states, _ = last_states(policy, [(QUESTIONS[0], s) for s in seen])
    return probe_accuracy(states, [s.name for s in species])
