"""The CLIP-like model beside the policy: the shipped one knows the birds, how it was made, fair probes."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from finer1_lite.birds import clip
from finer1_lite.birds.dataset import FIRST, PER_CLASS, evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species, look_alikes
from finer1_lite.config import ASSETS
from finer1_lite.evaluate.siglip import ENSEMBLE, SHIPPED, Siglip, choose, choose_probe, fit_probe


@pytest.fixture(scope="module")
def siglip():
    return Siglip()


def test_it_names_new_pictures_of_evaluated_species(siglip):
    species, names = evaluation_species()[::4], [s.name for s in all_species()]
    scores = siglip.images([draw(s, FIRST["val"] + 900) for s in species]) @ siglip.classes(names).T
    alike = [[s.name, *(x.name for x in look_alikes(s.name))] for s in species]
    closed = np.mean([a == s.name for a, s in zip(choose(scores, names, alike), species)])
    assert np.mean([a == s.name for a, s in zip(choose(scores, names), species)]) > 0.3  # chance: 0.005
    stated = json.loads((ASSETS / "siglip.json").read_text())
    assert abs(closed - stated["names among four look-alikes"]) < 0.2  # 40 pictures: three standard errors


def test_rows_are_those_of_the_plain_model_whatever_the_batch(siglip):
    model, processor = AutoModel.from_pretrained(SHIPPED, dtype=torch.float32), AutoProcessor.from_pretrained(SHIPPED)
    name, templates, rows = all_species()[5].name, ENSEMBLE[:2], []
    for template in templates:
        ids = processor(text=[template.format(name)], padding="max_length", return_tensors="pt")
        with torch.no_grad():
            row = model.get_text_features(input_ids=ids["input_ids"]).pooler_output[0]
        rows.append(row / row.norm())
    mean = (rows[0] + rows[1]) / 2  # an ensemble is the mean of unit rows
    torch.testing.assert_close(siglip.classes([name], templates)[0], mean / mean.norm(), atol=1e-5, rtol=0)
    images = [draw(s, 5) for s in all_species()[:5]]
    torch.testing.assert_close(siglip.images(images, batch=2), siglip.images(images), atol=1e-5, rtol=0)


def test_captions_come_from_the_seed_and_are_as_noisy_as_stated():
    def write(seed):
        rng = np.random.default_rng(seed)
        return [(s, clip.caption(rng, s)) for _ in range(20) for s in all_species()]

    pairs, names = write(3), [s.name for s in all_species()]
    assert pairs == write(3) and pairs != write(4)
    named = [(s, n) for s, text in pairs if (n := next((n for n in names if n in text), None))]
    assert len(named) / len(pairs) == pytest.approx(clip.NAMED, abs=0.03)
    assert np.mean([s.name != n for s, n in named]) == pytest.approx(clip.WRONG, abs=0.03)
    assert all(n == s.name or n in {x.name for x in look_alikes(s.name)} for s, n in named)
    assert {n for _, n in named} == set(names)  # it has met every species by name, as the docstring says
    assert clip.FIRST_PICTURE > max(FIRST.values()) + max(n for counts in PER_CLASS.values() for n in counts.values())


def test_training_moves_every_weight_and_repeats_itself():
    processor, images = clip.build_processor(), np.stack([[np.asarray(draw(s, 1))] for s in all_species()[:6]])

    def trained():
        torch.manual_seed(0)
        model = clip.build_model(len(processor.tokenizer), processor.tokenizer.pad_token_id)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        clip.train(model, processor, images, 3, batch=6)
        return start, dict(model.named_parameters())

    (start, once), (_, again) = trained(), trained()
    still = [name for name in once if torch.equal(start[name], once[name])]
    assert not [name for name in still if "k_proj.bias" not in name]  # softmax ignores what all keys share
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("strength", (1e-4, 10.0))
def test_the_validation_rows_alone_choose_the_strength_of_a_probe(strength):
    """Rows that a weak and a strong probe tell apart differently, labelled by either one: that one is chosen."""
    generator, labels = torch.Generator().manual_seed(1), ["a", "b"] * 6
    rows = torch.randn(12, 20, generator=generator) + torch.tensor([[2.0], [0.0]] * 6) * torch.eye(20)[0]
    val = torch.randn(200, 20, generator=generator)
    told = {s: choose(fit_probe(rows, labels, s).scores(val), ["a", "b"]) for s in (1e-4, 10.0)}
    assert told[1e-4] != told[10.0]
    probe = choose_probe(rows, labels, val, told[strength], (1e-4, 10.0))
    assert probe.strength == strength
    torch.testing.assert_close(probe.weight, fit_probe(rows, labels, strength).weight)  # trained on the other rows


def test_equal_probes_leave_the_strongest_and_a_row_without_options_has_no_answer():
    rows, labels = torch.tensor([[1.0, 0], [-1, 0]]), ["a", "b"]
    assert choose_probe(rows, labels, rows, labels, (1e-3, 1.0, 1e-2)).strength == 1.0
    with pytest.raises(KeyError, match="penguin"):
        choose(torch.tensor([[0.1, 0.2]]), ["wren", "finch"], [["wren", "penguin"]])
    assert choose(torch.tensor([[0.1, 0.2]]), ["wren", "finch"], [[]]) == [""]
