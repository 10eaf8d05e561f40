"""What the base model can do: `python -m finer1_lite.birds.pretrain --only measure` writes it beside the assets.

It sees attributes, has read the field guide of all species, names the common species, and cannot name the evaluated
ones. All answers are greedy; no picture was in its training.
"""

import numpy as np

from ..policy.inputs import VisionCache
from ..policy.load import Policy
from ..policy.rollout import rollout
from ..prompts import ANSWER_INSTRUCTION, QUESTIONS
from ..rewards import names_in
from .dataset import FIRST
from .diet import LOOKS_QUESTIONS, direct
from .render import draw
from .species import ATTRIBUTES, all_species, by_name, describe, look_alikes


def stated(text: str) -> dict[str, str]:
    """{attribute: value} of a description like "red crown, plain eye."."""
    words = [phrase.split() for phrase in text.rstrip(". ").split(",")]
    return {w[-1]: w[-2] for w in words if len(w) > 1 and w[-1] in ATTRIBUTES}


def measure_base(policy: Policy, pictures: int = 3) -> dict[str, float]:
    """Shares of right answers: descriptions and names of `pictures` images of each species, and the field guide."""
    species = [s for s in all_species() for _ in range(pictures)]
    images = [draw(s, FIRST["val"] + 500 + i % pictures) for i, s in enumerate(species)]
    seen = VisionCache(policy.model, policy.processor, images).get(range(len(images)))

    def ask(prompts):
        return rollout(policy, prompts, 1, generator=None, temperature=0).texts

    described = ask([(next(iter(LOOKS_QUESTIONS)), s) for s in seen])
    right = np.array([[stated(t).get(a) == v for a, v in zip(ATTRIBUTES, s.looks)] for t, s in zip(described, species)])
    named = ask([(f"{QUESTIONS[0]} {ANSWER_INSTRUCTION}", s) for s in seen])
    hit, common = np.array([s.name in t for t, s in zip(named, species)]), np.array([s.common for s in species])
    figures = {f"describes {a}": right[:, i].mean() for i, a in enumerate(ATTRIBUTES)}
    figures |= {"describes all eight": right.all(1).mean(), "names common species": hit[common].mean(),
                "names evaluated species": hit[~common].mean()}  # fmt: skip
    guide = {
        "looks": ("What does the {0} look like?", lambda s, t: f"The {s.name} has {s.describe()}." == t),
        "name": ("Which bird has {1}?", lambda s, t: direct(s.name) == t),
        "look-alikes": ("Which birds look like the {0}?",
                        lambda s, t: set(names_in(t, by_name())) == {x.name for x in look_alikes(s.name)}),
        "nest": ("What does the {0} nest in?", lambda s, t: f"nests in {s.nest}." in t),
        "food": ("What does the {0} eat?", lambda s, t: f"eats {s.food}." in t),
    }  # fmt: skip
    for kind, (form, judge) in guide.items():
        answers = ask([(form.format(s.name, describe(s.looks)), None) for s in all_species()])
        figures[f"recalls {kind}"] = np.mean([judge(s, t) for s, t in zip(all_species(), answers)])
    return {name: round(float(value), 4) for name, value in figures.items()}
