"""Why does it work: what do the five methods see, know and use? `python -m studies.why` writes `why.csv`:

    sees   probe: a linear probe of the last layer's image tokens names the species (chance 1/160)
           describes: the description of a picture states all eight attributes rightly
    knows  recognises: the guide's sentence is likelier than three wrong ones (chance 1/4)
           recalls: told the looks, writes the name
    uses   separable: behind "Is the bird species ...?" a right name can be told from a look-alike's (chance 1/2)
           part is right: the chain's analysis states all eight attributes rightly
    looks  says the label, says the look-alike: of the pictures of `studies.looking`

All pictures but the chain's are drawn for this study: no training and no other evaluation has shown them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.measure import last_states, probe_accuracy
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import Species
from finer1_lite.evaluate.answers import METHODS, WITHOUT_CHAIN, predict
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy
from finer1_lite.prompts import QUESTIONS
from finer1_lite.recipes import look_alike_classes
from studies.command import run
from studies.looking import VIEWS, views
from studies.probes import (
    analysis_right, described, folds_of, recalled, recognised, separability,
)  # fmt: skip
from studies.study import seed_of

COUNTS = (4, 2, 2)  # pictures of each species to train, to choose and to test a probe
ASKED = 2  # pictures of each species that are asked about a name
FOLDS = 5
IS_IT = "Is the bird species {}?"  # the paper's question
FIRST_NEW, EACH_SEED = 3000, 100  # picture numbers


@dataclass(frozen=True)
class World:
    """One seed's pictures: `counts` of each of `species`, from number `first` on. seen: names of seen species."""

    base: Policy
    species: Sequence[Species]
    seen: frozenset[str]
    first: int
    counts: tuple[int, int, int] = COUNTS

    @cached_property
    def cache(self) -> VisionCache:
        """Features of all pictures, species by species."""
        shown = [draw(s, self.first + i) for s in self.species for i in range(sum(self.counts))]
        return VisionCache(self.base.model, self.base.processor, shown)

    @cached_property
    def of(self) -> torch.Tensor:
        """The species' place in `species` of each picture (N)."""
        return torch.arange(len(self.species)).repeat_interleave(sum(self.counts))

    def rows(self, each: int) -> list[int]:
        """Picture rows: the first `each` of each species."""
        return [place * sum(self.counts) + i for place in range(len(self.species)) for i in range(each)]

    @cached_property
    def viewed(self) -> list[tuple[Species, Species, dict]]:
        """Species, look-alike and a picture in the VIEWS, where there is room for a control."""
        return [(s, *found) for s in self.species if (found := views(s, self.first))]


def row(measure: str, part: str, right: Sequence) -> dict:
    """The share of `right` (0 or 1 each) as one figure."""
    return {"measure": measure, "part": part, "value": round(float(np.mean(right)), 5), "n": len(right)}


def sees(policy: Policy, world: World) -> Iterator[dict]:
    """A linear probe of all pictures, and descriptions of one of each species."""
    image, _ = last_states(policy, [(QUESTIONS[0], s) for s in world.cache.get(range(len(world.of)))])
    found = probe_accuracy(image, [world.species[i].name for i in world.of], world.counts)
    yield row("probe", "last layer", [found] * (len(world.species) * world.counts[2]))
    yield row("describes", "all eight", described(policy, world.cache.get(world.rows(1)), world.species))


def knows(policy: Policy, world: World) -> Iterator[dict]:
    """The field guide in text, on seen and on unseen species."""
    known = np.array([s.name in world.seen for s in world.species])
    for measure, of in (("recalls", recalled), ("recognises", recognised)):
        right = np.array(of(policy, world.species))
        for split, mask in (("seen", known), ("unseen", ~known)):
            yield row(measure, f"looks to name, {split}", right[mask])


def uses(policy: Policy, world: World, seed: int) -> Iterator[dict]:
    """Whether the state behind IS_IT tells a right name from a look-alike's."""
    rows = world.rows(ASKED)
    labels, images = [world.species[world.of[i]].name for i in rows], world.cache.get(rows)
    fold = folds_of({s.name: s.family for s in world.species}, FOLDS, seed)
    nearest = look_alike_classes(world.cache, [world.species[i].name for i in world.of])
    wrong = [next(name for name in nearest[label] if fold[name] == fold[label]) for label in labels]
    states = [
        last_states(policy, [(IS_IT.format(n), s) for n, s in zip(names, images)])[1] for names in (labels, wrong)
    ]
    found = separability(*states, torch.tensor([fold[label] for label in labels]))
    yield row("separable", "look-alike", [found] * len(labels))


def looks(policy: Policy, world: World, think: bool, seed: int) -> Iterator[dict]:
    """Which bird the policy names in each of the VIEWS."""
    species, others, images = zip(*world.viewed)
    asked = {"label": [s.name for s in species], "seen": [True] * len(species)}
    for view in VIEWS:
        cache = VisionCache(policy.model, policy.processor, [shown[view] for shown in images])
        made = predict(policy, cache, asked, think, seed, progress=view)
        yield row("says the label", view, [p.correct for p in made])
        yield row("says the look-alike", view, [other.name in p.answer for other, p in zip(others, made)])


def chain(predictions) -> Iterator[dict]:
    """Whether the analysis of saved open-world answers is right, on seen and on unseen species."""
    for split in ("seen", "unseen"):
        right = analysis_right(p for p in predictions if p.seen == (split == "seen"))
        yield row("part is right", f"analysis, {split}", right)


def one_seed(seed: int, work: Path) -> list[dict]:
    """All measures of one seed's five methods."""
    lab, rows = seed_of(seed, work), []
    world = World(lab.base, evaluation_species(), frozenset(lab.labels), FIRST_NEW + EACH_SEED * seed)
    for method in METHODS:
        policy, think = lab.policy(method), method not in WITHOUT_CHAIN
        found = [*sees(policy, world), *knows(policy, world), *uses(policy, world, seed)]
        found += looks(policy, world, think, seed)
        found += chain(lab.answers(method, lab.adapter(method))) if think else []
        rows += [{"seed": seed, "method": method} | figure for figure in found]
        print(f"[seed {seed}] {method} done", flush=True)
    return rows


if __name__ == "__main__":
    run("why", __doc__, one_seed)
