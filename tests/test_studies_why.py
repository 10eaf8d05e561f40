"""Probes and changed pictures: cases whose answer is known, and the shipped models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.measure import last_states
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, look_alikes
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.evaluate.answers import judge
from finer1_lite.policy.inputs import VisionCache, model_inputs, prompt_ids
from finer1_lite.policy.load import load_base, load_policy
from studies import why
from studies.looking import VIEWS, bird_pixels, box_around, box_elsewhere, changed_pixels, views
from studies.probes import analysis_right, folds_of, linear_probe, recalled, recognised, separability


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base():
    return load_base(get_profile("cpu"))


def test_states_are_those_of_one_unpadded_row(base):
    cache = VisionCache(base.model, base.processor, [draw(evaluation_species()[i], 3000) for i in range(3)])
    texts = "Which bird is this?", "Describe the bird, all of it, from head to tail.", "What?"
    image, last = last_states(base, list(zip(texts, cache.get(range(3)))))
    assert image.shape == last.shape == (3, 128)
    for i, (text, s) in enumerate(zip(texts, cache.get(range(3)))):
        ids = torch.tensor([prompt_ids(base.processor, text, s)])
        with torch.no_grad():
            hidden = base.backbone(**model_inputs(base.model, ids, torch.ones_like(ids), [s])).last_hidden_state[0]
        assert torch.allclose(last[i], hidden[-1], atol=2e-3)
        assert torch.allclose(image[i], hidden[ids[0] == base.model.config.image_token_id].mean(0), atol=2e-3)


def test_the_penalty_is_chosen_without_the_test_rows():
    x, y = noise(240, 30), torch.arange(240) % 4
    x[:, :4] += 2.5 * torch.eye(4)[y]
    train, val, test = ((x[a : a + 80], y[a : a + 80]) for a in (0, 80, 160))
    weak, strong = (linear_probe(train, val, test, (penalty,)) for penalty in (1e-4, 1.0))
    assert 0.6 < linear_probe(train, val, test, (1e-4, 1.0)) < 1 and weak != strong
    for turned in (False, True):  # with validation labels that only the weak or the strong probe gives, it is chosen
        given = (val[0], (val[1] + turned) % 4)
        by_val = [linear_probe(train, given, given, (penalty,)) for penalty in (1e-4, 1.0)]
        assert linear_probe(train, given, test, (1e-4, 1.0)) == (strong if by_val[1] >= by_val[0] else weak)


def pairs(strength, by_species=False):
    """Right and wrong (200, 16) of 20 species in 5 folds; the difference is common, or each species has its own."""
    species = torch.arange(200) // 10
    own = noise(20, 16, seed=1)[species] if by_species else noise(1, 16, seed=1).expand(200, 16)
    pictures = 3 * noise(200, 16, seed=2)
    return pictures + strength * own, pictures - strength * own + 0.1 * noise(200, 16, seed=3), species // 4


def test_separable_pairs_are_told_apart_and_what_is_known_of_a_species_does_not_help_with_another():
    assert separability(*pairs(3.0)) > 0.95 and abs(separability(*pairs(0.0)) - 0.5) < 0.1
    right, wrong, fold = pairs(3.0, by_species=True)
    leaking = torch.arange(200) % 5  # each species in every fold
    assert separability(right, wrong, fold) < min(0.7, separability(right, wrong, leaking) - 0.1)
    family = {f"{f}{i}": f for f in "abcdefgh" for i in range(5)}
    folds = folds_of(family, 4, seed=0)
    assert sorted(np.bincount(list(folds.values()))) == [10] * 4
    assert all(len({folds[c] for c in family if family[c] == f}) == 1 for f in "abcdefgh")


def test_the_base_knows_the_guide(base):
    some = evaluation_species()[::16]
    false = [replace(s, looks=look_alikes(s.name)[0].looks) for s in some]
    assert np.mean(recalled(base, some)) >= 0.9 and np.mean(recognised(base, some)) >= 0.9
    assert np.mean(recalled(base, false)) < 0.2 and np.mean(recognised(base, false)) < 0.5


def test_an_analysis_is_right_if_all_of_it_is():
    bird = evaluation_species()[0]
    wrong = bird.describe().replace(bird.looks[0], next(v for v in ATTRIBUTES["crown"] if v != bird.looks[0]), 1)

    def said(looks):
        end, name = f"<answer> {bird.name} </answer>", bird.name
        chain = f"Analysis: {looks}.\nCandidates: {name}; heron.\nComparison: {name}: fits.\nPrediction: {name}."
        return judge(0, name, True, f"<think>\n{chain}\n</think>\n{end}" if looks else end)

    bare = said("")
    assert analysis_right([said(bird.describe()), said(wrong), bare]) == [True, False, False]


def test_the_mask_is_exactly_what_changes_and_the_control_box_lies_beside_it():
    species, number = evaluation_species()[0], 3001
    looks = (next(v for v in ATTRIBUTES["crown"] if v != species.looks[0]), *species.looks[1:])
    mask = changed_pixels(species, looks, number)
    assert 20 < mask.sum() < 1500 and not changed_pixels(species, species.looks, number).any()
    assert (mask & bird_pixels(species, number)).sum() == mask.sum()
    top, left, bottom, right = box_around(mask)
    assert mask[[top, bottom - 1]].any(1).all() and mask[:, [left, right - 1]].any(0).all()
    assert mask[top:bottom, left:right].sum() == mask.sum()
    bird = np.zeros((40, 50), bool)
    bird[10:30, 5:45] = True
    box = box_elsewhere((12, 20, 20, 30), bird)
    assert (box[2] - box[0], box[3] - box[1]) == (8, 10) and bird[box[0] : box[2], box[1] : box[3]].all()
    assert box[2] <= 12 or box[0] >= 20 or box[3] <= 20 or box[1] >= 30
    assert box_elsewhere((10, 5, 30, 44), bird) is None  # nowhere is half of such a box on the rest


def test_views_change_what_they_say():
    made = [(s, *found) for s in evaluation_species()[:6] if (found := views(s, 3000))]
    assert len(made) > 2
    for species, other, images in made:
        first, redrawn, *hidden = (np.asarray(images[view]) for view in VIEWS)
        marks = changed_pixels(species, other.looks, 3000)
        assert ((first != redrawn).any(-1) == marks).all() and not other.common and other != species
        at, beside = ((first != picture).any(-1) for picture in hidden)
        assert at[marks].mean() > 0.95 and not (beside & marks).any() and beside.any()


@pytest.mark.slow
def test_a_small_world_gives_every_row_of_the_study_once(base):
    tapo = load_policy(get_profile("cpu"), ASSETS / "reference" / "tapo", trainable=False)
    species = evaluation_species()[:40:4]  # two of each of five families
    world = why.World(base, species, frozenset(s.name for s in species[:6]), 3000, (2, 1, 1))
    rows = [*why.sees(tapo, world), *why.knows(tapo, world), *why.uses(tapo, world, 0)]
    rows += why.looks(tapo, world, True, 0)
    value = {(r["measure"], r["part"]): r["value"] for r in rows}
    assert len(value) == len(rows) == 2 + 4 + 1 + 8
    assert value["describes", "all eight"] > 0.5 and value["says the label", "picture"] > 0.4
    assert {r["n"] for r in rows if r["measure"] == "recalls"} == {6, 4}
