"""The baselines: the tiny SigLIP loads and knows the birds, probes are chosen fairly, questions are the story's."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, SiglipModel, SiglipProcessor

from finer1_lite.birds import clip
from finer1_lite.birds.dataset import FIRST, PER_CLASS, evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species, describe, look_alikes
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.evaluate import answers as evaluate
from finer1_lite.evaluate.siglip import ENSEMBLE, SHIPPED, Siglip, choose, choose_probe, fit_probe, text_encoder
from finer1_lite.policy.rollout import rollout
from finer1_lite.prompts import instructed
from studies import baselines
from studies.ablations import VARIANTS
from studies.story import Seed


@pytest.fixture(scope="module")
def siglip():
    return Siglip()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    torch.set_num_threads(1)
    few = {"val": {True: 1, False: 1}, "test": {True: 1, False: 1}}
    return Seed(get_profile("cpu"), 0, tmp_path_factory.mktemp("seed0"), per_class=few)


# ---- the tiny SigLIP


def test_the_shipped_model_is_a_small_plain_siglip():
    assert type(AutoModel.from_pretrained(SHIPPED)) is SiglipModel
    assert type(AutoProcessor.from_pretrained(SHIPPED)) is SiglipProcessor
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 3e6
    assert {f.suffix for f in SHIPPED.iterdir()} == {".json", ".safetensors"}


def test_it_names_new_pictures_of_evaluated_species(siglip):
    species = evaluation_species()[::4]
    names = [s.name for s in all_species()]
    images = siglip.images([draw(s, FIRST["val"] + 900) for s in species])
    scores = images @ siglip.classes(names).T
    alike = [[s.name, *(x.name for x in look_alikes(s.name))] for s in species]
    closed = np.mean([a == s.name for a, s in zip(choose(scores, names, alike), species)])
    opened = np.mean([a == s.name for a, s in zip(choose(scores, names), species)])
    stated = json.loads((ASSETS / "siglip.json").read_text())
    assert closed > 0.6 and opened > 0.3  # chance: 0.25 and 0.005
    assert abs(closed - stated["names among four look-alikes"]) < 0.2  # 40 pictures: three standard errors


def test_an_ensemble_is_the_mean_of_unit_rows(siglip):
    model, processor = AutoModel.from_pretrained(SHIPPED, dtype=torch.float32), AutoProcessor.from_pretrained(SHIPPED)
    name, templates = all_species()[5].name, ENSEMBLE[:2]
    rows = []
    for template in templates:
        ids = processor(text=[template.format(name)], padding="max_length", return_tensors="pt")
        with torch.no_grad():
            row = model.get_text_features(input_ids=ids["input_ids"]).pooler_output[0]
        rows.append(row / row.norm())
    mean = (rows[0] + rows[1]) / 2
    torch.testing.assert_close(siglip.classes([name], templates)[0], mean / mean.norm(), atol=1e-5, rtol=0)
    torch.testing.assert_close(siglip.classes([name], templates[:1])[0], rows[0], atol=1e-5, rtol=0)


def test_batches_change_nothing_and_rows_have_length_one(siglip):
    images = [draw(s, 5) for s in all_species()[:5]]
    whole = siglip.images(images)
    torch.testing.assert_close(siglip.images(images, batch=2), whole, atol=1e-5, rtol=0)
    texts = text_encoder()(["red crown", "a word it never met", "tunan tarn " * 50])
    for rows in (whole, texts):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))


# ---- how it was made


def test_captions_come_from_the_seed_and_are_as_noisy_as_stated():
    def write(seed):
        rng = np.random.default_rng(seed)
        return [(s, clip.caption(rng, s)) for _ in range(20) for s in all_species()]

    pairs = write(3)
    assert pairs == write(3) and pairs != write(4)
    names = [s.name for s in all_species()]
    said = [(s, next((n for n in names if n in text), None)) for s, text in pairs]
    named = [(s, n) for s, n in said if n]
    assert len(named) / len(pairs) == pytest.approx(clip.NAMED, abs=0.03)
    assert np.mean([s.name != n for s, n in named]) == pytest.approx(clip.WRONG, abs=0.03)
    assert all(n == s.name or n in {x.name for x in look_alikes(s.name)} for s, n in named)
    assert {n for _, n in named} == set(names)  # it has met every species by name, as the docstring says
    looks = [(s, text.partition(" with ")[2]) for s, text in pairs if " with " in text]
    assert all(phrase in describe(s.looks).split(", ") for s, told in looks for phrase in told.split(", "))


def test_its_pictures_are_in_no_split():
    assert clip.FIRST_PICTURE > max(FIRST.values()) + max(n for counts in PER_CLASS.values() for n in counts.values())


def test_training_moves_every_weight_and_repeats_itself():
    processor, images = clip.build_processor(), np.stack([[np.asarray(draw(s, 1))] for s in all_species()[:6]])

    def trained(steps):
        torch.manual_seed(0)
        model = clip.build_model(len(processor.tokenizer), processor.tokenizer.pad_token_id)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        clip.train(model, processor, images, steps, batch=6)
        return start, dict(model.named_parameters())

    (start, once), (_, again) = trained(3), trained(3)
    still = [name for name in once if torch.equal(start[name], once[name])]
    assert not [name for name in still if "k_proj.bias" not in name]  # softmax ignores what all keys share
    assert all(torch.equal(once[name], again[name]) for name in once)


# ---- probes


def test_a_probe_separates_what_can_be_separated():
    generator = torch.Generator().manual_seed(0)
    labels = [name for name in "abc" for _ in range(8)]
    centres = {"a": (5.0, 0, 0), "b": (0, 5.0, 0), "c": (0, 0, 5.0)}
    rows = 100 + torch.tensor([centres[c] for c in labels]) + 0.3 * torch.randn(24, 3, generator=generator)
    probe = choose_probe(rows[::2], labels[::2], rows[1::2], labels[1::2])
    assert choose(probe.scores(rows), probe.classes) == labels


@pytest.mark.parametrize("strength", (1e-4, 10.0))
def test_the_validation_rows_alone_choose_the_strength(strength):
    """Rows that a weak and a strong probe tell apart differently, labelled by either one: that one is chosen."""
    generator = torch.Generator().manual_seed(1)
    labels = ["a", "b"] * 6
    rows = torch.randn(12, 20, generator=generator) + torch.tensor([[2.0], [0.0]] * 6) * torch.eye(20)[0]
    val = torch.randn(200, 20, generator=generator)
    told = {s: choose(fit_probe(rows, labels, s).scores(val), ["a", "b"]) for s in (1e-4, 10.0)}
    assert told[1e-4] != told[10.0]
    probe = choose_probe(rows, labels, val, told[strength], (1e-4, 10.0))
    assert probe.strength == strength
    torch.testing.assert_close(probe.weight, fit_probe(rows, labels, strength).weight)  # trained on the other rows


def test_equal_probes_leave_the_strongest():
    rows, labels = torch.tensor([[1.0, 0], [-1, 0]]), ["a", "b"]
    assert choose_probe(rows, labels, rows, labels, (1e-3, 1.0, 1e-2)).strength == 1.0


def test_unknown_names_are_refused():
    scores = torch.tensor([[0.1, 0.2]])
    with pytest.raises(ValueError, match="'penguin' is no class here"):
        choose(scores, ["wren", "finch"], [["wren", "penguin"]])
    with pytest.raises(ValueError, match="'penguin' is in the validation rows"):
        choose_probe(torch.eye(2), ["wren", "finch"], torch.eye(2), ["wren", "penguin"])
    assert choose(scores, ["wren", "finch"], [[]]) == [""]


# ---- the table


def test_every_row_says_what_its_method_had_met():
    others = {"cls_rl", "no_think_rl", "answers_rl"}
    assert set(baselines.MET) == set(baselines.OWN) | set(evaluate.METHODS) | others
    assert others <= set(VARIANTS)


def test_questions_and_options_are_the_story_s(lab):
    told = {p: [said.question for said in lab.answers("base", None, p, False)] for p in ("open", "closed")}
    for protocol, prompts in told.items():
        assert prompts == [instructed(text, False, options) for text, options in baselines.questions_of(lab, protocol)]
    assert all("Options" in prompt for prompt in told["closed"])


def test_a_classifier_knows_seen_classes_alone(lab):
    asked = baselines.questions_of(lab, "closed")
    labels, seen = lab.judged["label"], np.array(lab.judged["seen"])
    for linear in (True, False):
        said = baselines.few_shot(lab, asked, baselines.tower_rows, linear)
        right = np.array([a == b for a, b in zip(said, labels)])
        assert set(said) <= set(lab.labels) | {""}
        assert all(a in options or not set(options) & set(lab.labels) for a, (_, options) in zip(said, asked))
        assert right[seen].mean() > 0.5 and not right[~seen].any()


def test_two_calls_name_seen_and_unseen_birds_and_answers_are_kept(lab):
    made = baselines.answers_of(lab, "describe_then_name", "open")
    for split in (True, False):
        assert np.mean([p.correct for p in made if p.seen == split]) > 0.75
    path = lab.out / "baseline_describe_then_name_open.jsonl"
    path.write_text(path.read_text().replace("This is a", "I see a"))
    assert all(p.text.startswith("I see a") for p in baselines.answers_of(lab, "describe_then_name", "open")[:5])
    path.write_text(path.read_text().replace(baselines.shipped_models(), "0" * 16))
    with pytest.raises(ValueError, match="answers of other models"):
        baselines.answers_of(lab, "describe_then_name", "open")
    path.unlink()


def test_examples_stand_before_the_question_with_their_names(lab, monkeypatch):
    asked = []

    def listen(policy, prompts, *args, **how):
        asked.append([prompt for prompt, _ in prompts])
        return rollout(policy, prompts, *args, **how)

    monkeypatch.setattr(baselines, "rollout", listen)
    baselines.in_context(lab, baselines.questions_of(lab, "open")[:2])
    prompt = asked[1][0]
    names = [name for name in set(lab.labels) if name in prompt]
    assert len(asked[0]) == len(names) == baselines.EXAMPLES
    assert all(f"<answer> {name} </answer>" in prompt for name in names) and prompt.count("crown") == 4


def test_one_seed_gives_each_baseline_its_rows(lab, monkeypatch):
    """The whole of it but for what reinforcement would have to train."""
    left_out = {"cls_rl", "no_think_rl", "answers_rl"}
    monkeypatch.setattr(baselines, "lab_of", lambda seed, work: lab)
    monkeypatch.setattr(baselines, "MET", {k: v for k, v in baselines.MET.items() if k not in left_out})
    for name in ("chains.jsonl", "sft_answers", "cot_sft", "dapo", "tapo"):
        (lab.out / name).symlink_to(ASSETS / "reference" / name)
    rows = baselines.one_seed(0, lab.out.parent)
    found = {(r["baseline"], r["protocol"], r["split"]): r["value"] for r in rows}
    assert len(found) == len(rows) == 4 * len(baselines.MET) - 2  # the guide is not asked open-world
    assert {r["n"] for r in rows} == {96, 64}
    assert found["base", "open", "unseen"] < 0.05 and found["tapo", "open", "unseen"] > 0.4
    assert found["tower_probe", "open", "unseen"] == 0 < found["siglip", "open", "unseen"]
    assert found["sft_answers", "open", "seen"] > 0.7 > 0.5 > found["sft_answers", "open", "unseen"]
