"""Why it works: what the five methods see, know and use, seed by seed. `python -m studies.why`

Writes `why.csv`: seed, method, measure, part (of the bird or the chain, a kind of question, a layer; ", seen" or
", unseen" behind it where the two are apart), value, n (pictures, species or pairs). A few minutes of one core for
each seed. The measures:

    H1 perception   probe, probe best on test (species; chance 1/160), attribute probe, describes
    H2 knowledge    name gap with its p and the p of its change from the base, recalls, recognises (chance 1/4)
    H3 use          separable, same direction (chance 1/2 for both), named by two calls (base)
    the chain       part is right, accuracy where it is right and where it is wrong, error share
    what moved      CKA to the base, weight move
    looking         says the label, says the look-alike, answer changed, falls on marks, area of marks

All pictures but the chain's are drawn for this study: no training and no other evaluation has shown them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, Species
from finer1_lite.evaluate.answers import METHODS, prompts_for
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.prompts import QUESTIONS
from finer1_lite.recipes import look_alike_classes
from studies.budget import chain_measures, fact_frame
from studies.looking import VIEWS, Viewed, answer_scorer, answers_to, look_measures, mass_on, occlusion_map, views
from studies.probes import (
    GUIDE_QUESTIONS,
    IS_IT,
    cka,
    cosines,
    described,
    folds_of,
    layer_states,
    linear_probe,
    lora_moves,
    name_states,
    named_by_text,
    permutation_test,
    recalled,
    recognised,
    same_direction,
    separability,
    wrong_names,
)  # fmt: skip
from studies.seeds import command, lab_of
from studies.transfer import own_form

COLUMNS = ("seed", "method", "measure", "part", "value", "n")
TRAIN, VAL, TEST = 4, 2, 2  # pictures of each species for the probes
ASKED = 2  # pictures of each species that H3 asks about
FOLDS = 5
DEALS = 500  # of the permutation test
MAPS = 6  # occlusion maps for each method
FIRST_NEW, EACH_SEED = 3000, 100  # picture numbers


@dataclass(frozen=True)
class World:
    """One seed's pictures: `counts` (train, val, test) of each of `species`, from number `first` on."""

    base: Policy
    species: tuple[Species, ...]
    seen: frozenset[str]
    first: int
    counts: tuple[int, int, int] = (TRAIN, VAL, TEST)

    @cached_property
    def cache(self) -> VisionCache:
        """Features of all pictures, species by species."""
        shown = [draw(s, self.first + i) for s in self.species for i in range(sum(self.counts))]
        return VisionCache(self.base.model, self.base.processor, shown)

    @cached_property
    def of(self) -> torch.Tensor:
        """The species' place in `species` of each picture (N)."""
        return torch.arange(len(self.species)).repeat_interleave(sum(self.counts))

    @cached_property
    def known(self) -> np.ndarray:
        """Whether each of `species` is a seen one."""
        return np.array([s.name in self.seen for s in self.species])

    def parts(self, features: torch.Tensor, numbers: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """train, val and test of `linear_probe`: features (N, H) and class numbers (N) of the pictures."""
        train, val, _ = self.counts
        slot = torch.arange(len(self.of)) % sum(self.counts)
        masks = slot < train, (slot >= train) & (slot < train + val), slot >= train + val
        return [(features[mask], numbers[mask]) for mask in masks]

    def rows(self, each: int) -> list[int]:
        """Picture rows: the first `each` of each species."""
        per = sum(self.counts)
        return [place * per + i for place in range(len(self.species)) for i in range(each)]

    @cached_property
    def viewed(self) -> list[Viewed]:
        """A picture of each species in the VIEWS, where there is room for a control."""
        found = (views(s, self.first) for s in self.species)
        return [v for v in found if v]

    def states(self, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
        """`layer_states` of all pictures with the first question."""
        return layer_states(policy, [(QUESTIONS[0], s) for s in self.cache.get(range(len(self.of)))])


def row(measure: str, part: str, value: float, n: int) -> dict:
    """One figure."""
    return {"measure": measure, "part": part, "value": round(float(value), 5), "n": int(n)}


def perception(policy: Policy, world: World, image: torch.Tensor, layers: dict[str, int]) -> Iterator[dict]:
    """H1. image: mean image tokens (L + 1, N, H); layers: which of them to probe for the species."""
    for name, layer in layers.items():
        parts = world.parts(image[layer], world.of)
        found, n = linear_probe(*parts), len(parts[-1][0])
        yield row("probe", name, found["test"], n)
        yield row("probe best on test", name, found["best_on_test"], n)
    for place, (attribute, values) in enumerate(ATTRIBUTES.items()):
        numbers = torch.tensor([values.index(s.looks[place]) for s in world.species])[world.of]
        parts = world.parts(image[-1], numbers)
        yield row("attribute probe", attribute, linear_probe(*parts)["test"], len(parts[-1][0]))
    shares, _ = described(policy, world.cache.get(world.rows(1)), world.species)
    yield row("describes", "one attribute", np.mean(shares), len(shares))
    yield row("describes", "all eight", np.mean([s == 1 for s in shares]), len(shares))


def similarities(policy: Policy, species) -> dict[str, torch.Tensor]:
    """Cosines (N, N) of names as the model holds them: of their last tokens, and of their first words alone.

    The last word of a name is its family's noun, which members share; the first word alone says nothing of it.
    """
    words = {"names": [s.name for s in species], "first words": [s.name.split()[0] for s in species]}
    return {kind: cosines(name_states(policy, names)) for kind, names in words.items()}


def knowledge(policy: Policy, world: World, before: dict[str, torch.Tensor] | None) -> Iterator[dict]:
    """H2. before: `similarities` of the base, None if the policy is the base."""
    families = [s.family for s in world.species]
    for kind, similarity in similarities(policy, world.species).items():
        gap, p = permutation_test(similarity, families, DEALS, 0)
        yield row("name gap", kind, gap, len(families))
        yield row("name gap p", kind, p, len(families))
        if before is not None:
            _, p = permutation_test(similarity - before[kind], families, DEALS, 0)
            yield row("name gap change p", kind, p, len(families))
    said = {("recalls", kind): recalled(policy, world.species, kind)[0] for kind in GUIDE_QUESTIONS}
    said |= {("recognises", kind): hits for kind, hits in recognised(policy, world.species).items()}
    for (measure, kind), scores in said.items():
        for split, mask in (("seen", world.known), ("unseen", ~world.known)):
            if mask.any():
                yield row(measure, f"{kind}, {split}", np.array(scores)[mask].mean(), mask.sum())


def asked_states(policy: Policy, world: World, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """H3's states before the answer to `IS_IT`, (N, H) for each kind of name, and the fold (N) of each picture.

    Folds hold whole families, so neither a pictured nor a named species is ever in two.
    """
    rows = world.rows(ASKED)
    labels, seen = [world.species[world.of[i]].name for i in rows], world.cache.get(rows)
    fold = folds_of({s.name: s.family for s in world.species}, FOLDS, seed)
    every = [world.species[i].name for i in world.of]
    alike, other = wrong_names(labels, fold, look_alike_classes(world.cache, every), seed)
    named = {"right": labels, "look-alike": alike, "random": other}
    states = {
        kind: layer_states(policy, [(IS_IT.format(name), s) for name, s in zip(names, seen)])[1][-1]
        for kind, names in named.items()
    }  # fmt: skip
    return states, torch.tensor([fold[label] for label in labels])


def use(policy: Policy, world: World, seed: int) -> Iterator[dict]:
    """H3."""
    states, fold = asked_states(policy, world, seed)
    for kind in ("look-alike", "random"):
        yield row("separable", kind, separability(states["right"], states[kind], fold), len(fold))
        yield row("same direction", kind, same_direction(states["right"], states[kind], fold), len(fold))


def two_calls(policy: Policy, world: World) -> dict:
    """How often the policy's own description of a picture, asked about in text, leads it to the name."""
    _, texts = described(policy, world.cache.get(world.rows(1)), world.species)
    named = named_by_text(policy, texts, world.species)
    return row("named by two calls", "all species", np.mean(named), len(named))


def moved(policy: Policy, before, after) -> Iterator[dict]:
    """CKA of each layer between `layer_states` before and after, and the move of each linear."""
    for kind, a, b in zip(("image tokens", "before the answer"), before, after):
        for layer in range(1, len(a)):  # what enters layer 1 is the frozen tower's, or one and the same token
            yield row("CKA to the base", f"{kind}, layer {layer}", cka(a[layer], b[layer]), a.shape[1])
    for name, share in lora_moves(policy).items():
        yield row("weight move", name, share, 1)


def looking(policy: Policy, world: World, think: bool, seed: int) -> Iterator[dict]:
    """Answers to the VIEWS, and occlusion maps of the first MAPS birds whose redrawn picture is answered otherwise."""
    viewed, labels = world.viewed, [v.species.name for v in world.viewed]
    made = answers_to(policy, {k: [v.images[k] for v in viewed] for k in VIEWS}, labels, think, seed)
    for (measure, view), value in look_measures(made, [v.other.name for v in viewed]).items():
        yield row(measure, view, value, len(viewed))
    shares, questions = [], prompts_for(labels, think, seed)
    for view, question, first, other in zip(viewed, questions, made["picture"], made["redrawn"]):
        if len(shares) < MAPS and first.answer != other.answer:
            score = answer_scorer(policy, question, first.text, other.text)
            shares.append(mass_on(occlusion_map(score, view.images["picture"]), view.marks, view.bird))
    if shares:
        fall, area = np.nanmean(shares, axis=0)
        yield row("falls on marks", "mean of the maps", fall, len(shares))
        yield row("area of marks", "mean of the maps", area, len(shares))


def chain(predictions) -> Iterator[dict]:
    """Each part of saved open-world answers, on seen and on unseen species."""
    facts = fact_frame(predictions)
    for split, mask in (("seen", facts.seen), ("unseen", ~facts.seen)):
        for (measure, part), (value, n) in chain_measures(facts[mask]).items():
            if n:
                yield row(measure, f"{part}, {split}", value, n)


def one_seed(seed: int, work: Path) -> list[dict]:
    """All measures of one seed's five methods."""
    lab = lab_of(seed, work)
    world = World(lab.base, evaluation_species(), frozenset(lab.labels), FIRST_NEW + EACH_SEED * seed)
    before, names, rows = None, None, []
    for method in METHODS:
        adapter = lab.adapter(method)
        policy = lab.base if adapter is None else load_policy(lab.profile, adapter, trainable=False)
        think, states = own_form(method) == "think", world.states(policy)
        layers = {"last layer": -1} | ({"vision tower": 0} if adapter is None else {})
        found = [*perception(policy, world, states[0], layers), *knowledge(policy, world, names)]
        found += [*use(policy, world, seed), *looking(policy, world, think, seed)]
        if adapter is None:
            before, names = states, similarities(policy, world.species)
            found.append(two_calls(policy, world))
        else:
            found += moved(policy, before, states)
        if think:
            found += chain(lab.answers(method, adapter))
        rows += [{"seed": seed, "method": method} | r for r in found]
        print(f"[seed {seed}] {method} done", flush=True)
    return rows


if __name__ == "__main__":
    command("why", one_seed, __doc__.splitlines()[0])
