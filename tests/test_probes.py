"""Probes, error budget, looking: cases whose answer is known, and the shipped models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.diet import chain_parts, chain_prose
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, look_alikes
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.evaluate.answers import judge
from finer1_lite.policy.inputs import VisionCache, model_inputs, prompt_ids
from finer1_lite.policy.load import load_base, load_policy
from studies import why
from studies.budget import STAGES, bird_guide, chain_facts, chain_measures, error_budget, fact_frame
from studies.looking import (
    bird_pixels,
    box_around,
    box_elsewhere,
    changed_pixels,
    hide,
    look_measures,
    mass_on,
    occlusion_map,
    views,
)  # fmt: skip
from studies.probes import (
    cka,
    cosines,
    folds_of,
    image_token_features,
    layer_states,
    linear_probe,
    lora_moves,
    name_states,
    permutation_test,
    recalled,
    recognised,
    same_direction,
    separability,
    wrong_names,
)  # fmt: skip


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base():
    return load_base(get_profile("cpu"))


@pytest.fixture(scope="module")
def tapo():
    return load_policy(get_profile("cpu"), ASSETS / "reference" / "tapo", trainable=False)


# ---- features


def test_states_are_those_of_one_unpadded_row_and_images_have_not_read_the_question(base):
    cache = VisionCache(base.model, base.processor, [draw(evaluation_species()[i], 3000) for i in range(3)])
    seen = cache.get(range(3))
    asked = list(zip(("Which bird is this?", "Describe the bird, all of it, from head to tail.", "What?"), seen))
    image, last = layer_states(base, asked)
    assert image.shape == last.shape == (6, 3, 128)
    for i, (text, s) in enumerate(asked):
        ids = torch.tensor([prompt_ids(base.processor, text, s)])
        with torch.no_grad():
            hidden = base.backbone(**model_inputs(base.model, ids, torch.ones_like(ids), [s])).last_hidden_state[0]
        assert torch.allclose(last[-1, i], hidden[-1], atol=2e-3)
        assert torch.allclose(image[-1, i], hidden[ids[0] == base.model.config.image_token_id].mean(0), atol=2e-3)
    assert torch.allclose(image_token_features(base, cache, range(3), "Why?"), image[-1], atol=2e-3)
    assert torch.allclose(image[0], torch.stack([s.tokens.mean(0) for s in seen]), atol=1e-4)  # the tower's own
    with pytest.raises(ValueError, match="no image"):
        layer_states(base, [("Why?", None)])


def test_a_name_is_read_at_its_last_token(base):
    names = [s.name for s in evaluation_species()[:4]]
    states = name_states(base, names)
    before = base.processor.tokenizer.apply_chat_template([{"role": "user", "content": "The X"}], tokenize=False)
    for name, state in zip(names, states):
        text = before.split("X")[0] + name
        ids = torch.tensor([base.processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            hidden = base.backbone(**model_inputs(base.model, ids, torch.ones_like(ids), [None])).last_hidden_state
        assert torch.allclose(state, hidden[0, -1], atol=2e-3)


# ---- linear probes


def test_the_penalty_is_chosen_without_the_test_rows():
    x, y = noise(240, 30), torch.arange(240) % 4
    x[:, :4] += 2.5 * torch.eye(4)[y]
    train, val, test = ((x[a : a + 80], y[a : a + 80]) for a in (0, 80, 160))
    found = linear_probe(train, val, test)
    assert 0.6 < found["test"] < 1 and found["best_on_test"] >= found["test"]
    turned = linear_probe(train, val, (test[0] * 50 + 3, (test[1] + 1) % 4))
    assert (turned["l2"], turned["val"]) == (found["l2"], found["val"]) and turned["test"] < 0.3
    gaps = []
    for seed in range(12):  # labels by chance: the best on the test pictures is above what validation chooses
        rows = [(noise(40, 30, seed=100 * seed + part), torch.arange(40) % 4) for part in range(3)]
        made = linear_probe(*rows)
        gaps.append(made["best_on_test"] - made["test"])
    assert min(gaps) >= 0 and max(gaps) > 0.02


def pairs(strength, by_species=False):
    """Right and wrong (200, 16) of 20 species in 5 folds; the difference is common, or each species has its own."""
    species = torch.arange(200) // 10
    own = noise(20, 16, seed=1)[species] if by_species else noise(1, 16, seed=1).expand(200, 16)
    pictures = 3 * noise(200, 16, seed=2)
    return pictures + strength * own, pictures - strength * own + 0.1 * noise(200, 16, seed=3), species // 4


def test_separable_pairs_are_told_apart_and_others_are_not():
    right, wrong, fold = pairs(3.0)
    assert separability(right, wrong, fold) > 0.95 and same_direction(right, wrong, fold) == 1
    right, wrong, fold = pairs(0.0)
    assert abs(separability(right, wrong, fold) - 0.5) < 0.1 and abs(same_direction(right, wrong, fold) - 0.5) < 0.12
    right, wrong, fold = pairs(0.5)  # the picture drowns it, but it cancels within a pair
    assert separability(right, wrong, fold) < 0.8 and same_direction(right, wrong, fold) > 0.98


def test_what_is_known_of_a_species_does_not_help_with_another():
    right, wrong, fold = pairs(3.0, by_species=True)
    assert same_direction(right, wrong, fold) < 0.7 and separability(right, wrong, fold) < 0.7
    leaking = torch.arange(200) % 5  # each species in every fold
    assert separability(right, wrong, leaking) > separability(right, wrong, fold) + 0.1  # so grouping the folds matters


def test_wrong_names_stay_in_the_fold_and_families_together():
    family = {f"{f}{i}": f for f in "abcdefgh" for i in range(5)}
    fold = folds_of(family, 4, seed=0)
    assert sorted(np.bincount(list(fold.values()))) == [10] * 4
    assert all(len({fold[c] for c in family if family[c] == f}) == 1 for f in "abcdefgh")
    labels, nearest = list(family), {c: [o for o in sorted(family) if o != c] for c in family}
    alike, other = wrong_names(labels, fold, nearest, seed=0)
    assert all(fold[a] == fold[l] == fold[o] and l not in (a, o) for l, a, o in zip(labels, alike, other))
    assert alike[0] == "a1" and len(set(other)) > 15
    with pytest.raises(ValueError, match="9 groups"):
        folds_of(family, 9, seed=0)


# ---- names, CKA, weights


def test_permutation_test_finds_groups_and_the_change_that_goes_with_them():
    groups = [f"g{i // 6}" for i in range(48)]
    plain = noise(48, 20)
    grouped = plain + 0.8 * noise(8, 20, seed=1).repeat_interleave(6, 0)
    gap, p = permutation_test(cosines(grouped), groups, 199, 0)
    assert gap > 0.15 and p == 1 / 200
    gap, p = permutation_test(cosines(plain), groups, 199, 0)
    assert abs(gap) < 0.06 and p > 0.05
    assert permutation_test(cosines(grouped) - cosines(plain), groups, 199, 0)[1] == 1 / 200
    turn = torch.linalg.qr(noise(20, 20, seed=2)).Q
    assert abs(permutation_test(cosines(grouped @ turn) - cosines(grouped), groups, 199, 0)[0]) < 1e-6
    with pytest.raises(ValueError, match="48 names of 48 groups"):
        permutation_test(cosines(plain), [str(i) for i in range(48)], 9, 0)


def test_cka_of_rotated_features_is_one_and_of_independent_ones_zero():
    x, turn = noise(200, 32), torch.linalg.qr(noise(32, 32, seed=1)).Q
    assert cka(x, 3 * x @ turn + 5) == pytest.approx(1, abs=1e-5)
    independent = [cka(noise(60, 32, seed=s), noise(60, 32, seed=50 + s)) for s in range(20)]
    assert abs(np.mean(independent)) < 0.02  # without the debiasing it is 0.35
    assert 0.3 < cka(x, x + 1.5 * noise(200, 32, seed=2)) < 0.7
    with pytest.raises(ValueError, match="at least 4"):
        cka(x[:3], x[:3])


def test_a_fresh_adapter_has_not_moved_and_the_shipped_one_has(base, tapo):
    fresh = load_policy(get_profile("cpu"))
    assert set(lora_moves(fresh).values()) == {0.0} and len(lora_moves(fresh)) == 35
    moves = lora_moves(tapo)
    assert set(moves) == set(lora_moves(fresh)) and all(0.01 < m < 1 for m in moves.values())
    layer = tapo.backbone.language_model.layers[2].mlp.up_proj
    x = noise(400, 128)
    with torch.no_grad():
        whole, without = layer(x), layer.get_base_layer()(x)
    assert moves["2 up_proj"] == pytest.approx(((whole - without).norm() / without.norm()).item(), rel=0.1)
    with pytest.raises(ValueError, match="no adapter"):
        lora_moves(base)


# ---- what is known


def test_the_base_knows_the_guide_and_chains_take_over_its_answers(base, tapo):
    some = evaluation_species()[::16]
    for kind in ("name to looks", "nest"):
        shares, texts = recalled(base, some, kind)
        assert len(texts) == len(some) and np.mean(shares) > 0.85
    assert all(np.mean(hits) >= 0.9 for hits in recognised(base, some).values())
    false = [replace(s, nest="nowhere", looks=look_alikes(s.name)[0].looks) for s in some]
    assert np.mean(recalled(base, false, "nest")[0]) == 0
    assert np.mean([share == 1 for share in recalled(base, false, "name to looks")[0]]) < 0.2
    assert np.mean(recalled(tapo, some, "nest, told to think")[0]) < 0.5
    assert np.mean(recalled(tapo, some, "name to looks")[0]) > 0.8


# ---- the chain's error budget

LABEL = evaluation_species()[0]
OTHERS = [s for s in look_alikes(LABEL.name, 6) if s.looks != LABEL.looks]


def said(looks=LABEL.looks, options=(LABEL, *OTHERS[:3]), name=LABEL.name, change=lambda text: text):
    """A prediction about LABEL whose chain was written from these looks and candidates."""
    prose = change(chain_prose(chain_parts(looks, list(options), name)))
    return judge(0, LABEL.name, True, f"<think>\n{prose}\n</think>\n<answer> {name} </answer>")


def test_each_kind_of_error_is_found_and_the_shares_sum_to_the_error_rate():
    fits, false = f"{LABEL.name}: fits", f"{LABEL.name}: blue back, red crown, forked tail"
    cases = {
        "": said(),
        "no chain": judge(0, LABEL.name, True, f"<answer> {OTHERS[0].name} </answer>"),
        "analysis": said(OTHERS[0].looks, name=OTHERS[0].name),
        "candidates": said(options=OTHERS[:4], name=OTHERS[0].name),
        "comparison": said(name=OTHERS[1].name, change=lambda text: text.replace(fits, false)),
        "choice": said(name=OTHERS[1].name),
    }  # fmt: skip
    facts = fact_frame(cases.values())
    assert facts.first_flaw.tolist() == list(cases)
    assert facts.right.tolist() == [1, 0, 0, 0, 0, 0]
    budget = error_budget(facts)
    assert budget.to_dict() == {stage: pytest.approx(1 / 6) for stage in STAGES}
    assert budget.sum() == pytest.approx(1 - facts.right.mean())
    share = chain_facts(cases["analysis"], bird_guide())["attributes"]
    assert share == np.mean([a == b for a, b in zip(LABEL.looks, OTHERS[0].looks)])


def test_a_flaw_without_an_error_costs_nothing_and_accuracies_are_conditional():
    lucky = said(OTHERS[0].looks)  # misread, and yet the right name
    rows = [said(), said(), said(name=OTHERS[1].name), lucky, said(OTHERS[0].looks, name=OTHERS[0].name)]
    found = chain_measures(fact_frame(rows))
    assert found["part is right", "analysis"] == (pytest.approx(0.6), 5)
    assert found["accuracy, part right", "analysis"] == (pytest.approx(2 / 3), 3)
    assert found["accuracy, part wrong", "analysis"] == (pytest.approx(1 / 2), 2)
    assert sum(found["error share", stage][0] for stage in STAGES) == pytest.approx(2 / 5)
    assert chain_facts(lucky, bird_guide())["first_flaw"] == "analysis"


def test_verdicts_must_be_true_and_differences():
    other = OTHERS[0]
    name, fits = other.name, said(other.looks, name=other.name)
    assert chain_facts(fits, bird_guide())["verdicts"] == 1
    same = LABEL.describe(["crown"])  # true of the guide, but no difference to what is seen
    assert chain_facts(said(change=lambda t: t.replace("fits", same)), bird_guide())["comparison"] == 0
    wrong = said(change=lambda t: t.replace("fits", f"{(set(ATTRIBUTES['crown']) - {LABEL.looks[0]}).pop()} crown"))
    assert chain_facts(wrong, bird_guide())["verdicts"] == pytest.approx(3 / 4)
    elsewhere = said(change=lambda t: t.replace(f"{name}: ", f"{name}: fits. {name}: "))
    assert chain_facts(elsewhere, bird_guide())["comparison"] == 1  # neither the label nor the answer
    assert chain_facts(elsewhere, bird_guide())["verdicts"] == pytest.approx(4 / 5)


def test_a_guide_of_other_things_is_read_in_its_own_attributes():
    guide = {"pike": {"side": "striped", "tail": "forked"}, "perch": {"side": "plain", "tail": "forked"}}
    text = (
        "<think>\nAnalysis: striped side, forked tail, red crown.\nCandidates: pike; perch.\n"
        "Comparison: pike: fits. perch: plain side.\nPrediction: pike.\n</think>\n<answer> pike </answer>"
    )
    facts = chain_facts(judge(0, "pike", True, text), guide)
    assert facts["attributes"] == facts["verdicts"] == facts["comparison"] == 1 and facts["first_flaw"] == ""
    assert chain_facts(judge(0, "pike", True, text), {"pike": {"side": "striped"}, "perch": {}})["verdicts"] == 0.5


def test_without_a_guide_nothing_is_laid_on_the_parts_that_need_one():
    facts = fact_frame([said(), said(name=OTHERS[1].name), said(options=OTHERS[:4], name=OTHERS[0].name)], {})
    assert facts.first_flaw.tolist() == ["", "choice", "candidates"]
    assert facts.analysis.isna().all() and facts.comparison.isna().all()


# ---- looking


def test_the_mask_is_exactly_what_changes():
    species, number = LABEL, 3001
    crown = next(v for v in ATTRIBUTES["crown"] if v != species.looks[0])
    looks = (crown, *species.looks[1:])
    mask = changed_pixels(species, looks, number)
    there, other = (np.asarray(draw(s, number)) for s in (species, replace(species, looks=looks)))
    assert (there[~mask] == other[~mask]).all() and (there[mask] != other[mask]).any(-1).all()
    assert 20 < mask.sum() < 1500 and not changed_pixels(species, species.looks, number).any()
    assert (mask & bird_pixels(species, number)).sum() == mask.sum()
    top, left, bottom, right = box = box_around(mask)
    assert not np.delete(mask, range(top, bottom), 0).any() and not np.delete(mask, range(left, right), 1).any()
    assert mask[[top, bottom - 1]].any(1).all() and mask[:, [left, right - 1]].any(0).all()
    changed = (np.asarray(hide(draw(species, number), box)) != there).any(-1)
    changed[top:bottom, left:right] = False
    assert not changed.any()
    with pytest.raises(ValueError, match="empty"):
        box_around(mask & False)


def test_the_control_box_is_as_large_beside_it_and_on_the_bird():
    bird = np.zeros((40, 50), bool)
    bird[10:30, 5:45] = True
    box = box_elsewhere((12, 20, 20, 30), bird)
    assert (box[2] - box[0], box[3] - box[1]) == (8, 10) and bird[box[0] : box[2], box[1] : box[3]].all()
    assert box[2] <= 12 or box[0] >= 20 or box[3] <= 20 or box[1] >= 30
    assert box_elsewhere((10, 5, 30, 44), bird) is None  # nowhere is half of such a box on the rest


def test_views_change_what_they_say():
    made = [v for s in evaluation_species()[:6] if (v := views(s, 3000))]
    assert len(made) > 2
    for v in made:
        pixels = {name: np.asarray(image) for name, image in v.images.items()}
        assert ((pixels["picture"] != pixels["redrawn"]).any(-1) == v.marks).all() and v.marks.any()
        assert len(np.unique(pixels["blank"])) == 1
        hidden = [(pixels["picture"] != pixels[f"{where} hidden"]).any(-1) for where in ("marks", "elsewhere")]
        assert hidden[0][v.marks].mean() > 0.95 and not (hidden[1] & v.marks).any()
        assert not v.other.common and v.other != v.species


def test_look_measures_count_labels_look_alikes_and_changes():
    def answers(*names):
        return [judge(i, "a", True, f"<answer> {name} </answer>") for i, name in enumerate(names)]

    found = look_measures({"picture": answers("a", "a", "c", "a"), "redrawn": answers("b", "a", "c", "d")}, ["b"] * 4)
    measures = ("says the label", "says the look-alike", "answer changed")
    assert [found[m, "redrawn"] for m in measures] == [0.25, 0.25, 0.5]
    assert [found[m, "picture"] for m in measures] == [0.75, 0, 0]


def test_occlusion_map_peaks_on_the_part_that_a_score_reads():
    image = Image.fromarray(np.full((80, 96, 3), 250, np.uint8))

    def brightness(images):  # of one patch alone
        return torch.tensor([float(np.asarray(i)[30:40, 60:70].mean()) for i in images])

    drops = occlusion_map(brightness, image)
    marks, bird = np.zeros((80, 96), bool), np.zeros((80, 96), bool)
    marks[30:40, 60:70], bird[10:70, 10:90] = True, True
    y, x = np.unravel_index(drops.argmax(), drops.shape)
    assert 25 <= y < 45 and 55 <= x < 75 and drops.max() > 60 and (drops[:, :40] == 0).all()
    share, area = mass_on(drops, marks, bird)
    assert area == pytest.approx(100 / 4800) and share > 3 * area
    assert mass_on(np.ones((80, 96)), marks, bird) == (pytest.approx(area), pytest.approx(area))
    assert np.isnan(mass_on(-drops, marks, bird)[0])


# ---- the study


def test_a_small_world_gives_every_row_of_the_study_once(base, tapo):
    species = evaluation_species()[:40:4]  # two of each of five families
    world = why.World(base, species, frozenset(s.name for s in species[:6]), 3000, (2, 1, 1))
    numbers = [len(numbers) for _, numbers in world.parts(torch.zeros(40, 2), world.of)]
    assert numbers == [20, 10, 10]
    before, after = world.states(base), world.states(tapo)
    rows = [*why.perception(tapo, world, after[0], {"last layer": -1})]
    rows += [*why.knowledge(tapo, world, why.similarities(base, species)), *why.use(tapo, world, 0)]
    rows += [*why.moved(tapo, before, after)]
    keys = [(r["measure"], r["part"]) for r in rows]
    assert len(set(keys)) == len(keys) and all(("seed", "method", *r) == why.COLUMNS for r in rows)
    value = {key: r["value"] for key, r in zip(keys, rows)}
    assert value["describes", "one attribute"] > 0.8
    assert value["CKA to the base", "image tokens, layer 1"] > 0.9
    assert value["CKA to the base", "before the answer, layer 5"] < 0.95
    assert {r["n"] for r in rows if r["measure"] == "recalls"} == {6, 4}
