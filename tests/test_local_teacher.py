"""A teacher with the library's own `generate` says what our decoding says, and draws as its seed says."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species
from finer1_lite.config import ASSETS, PROFILES
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_base
from finer1_lite.policy.rollout import forbidden_ids, rollout
from finer1_lite.prompts import QUESTIONS, instructed
from finer1_lite.teachers.local import LocalTeacher

# prompts of different length, so that all rows but one are padded
ASKED = [(0, "Describe the bird."), (1, instructed(QUESTIONS[0])), (2, "Describe the wing and the tail of the bird.")]
IMAGES = [draw(s, 7) for s in all_species()[3:90:30]]


@pytest.fixture(scope="module")
def policy():
    return load_base(replace(PROFILES["cpu"], quantize=False))


@pytest.fixture
def teacher(policy):

    def make(images=IMAGES, seed=0, **settings):
        return LocalTeacher(policy.model, policy.processor, images, seed, **{"max_new_tokens": 32} | settings)

    return make


def test_greedy_texts_are_those_of_our_own_decoding_in_any_batch(policy, teacher):
    cache = VisionCache(policy.model, policy.processor, IMAGES)
    prompts = [(question, cache.get([i])[0]) for i, question in ASKED]
    ours = rollout(policy, prompts, 1, None, temperature=0, max_new_tokens=32).texts
    assert teacher(temperature=0)(ASKED) == ours == teacher(temperature=0, batch_size=1)(ASKED) and "crown" in ours[0]
    assert teacher()([]) == []


def test_the_seed_decides_the_texts_and_leaves_other_draws_alone(teacher):
    first, again, other = (teacher(seed=seed, temperature=2.0, batch_size=2) for seed in (5, 5, 6))
    before = torch.get_rng_state()
    texts = first(ASKED), first(ASKED)
    assert texts == (again(ASKED), again(ASKED)) and texts[0] not in (texts[1], other(ASKED))
    assert torch.equal(before, torch.get_rng_state())


def test_only_temperature_and_top_p_decide_the_draw(policy, teacher, monkeypatch):
    """Qwen2.5-VL's own file takes the likeliest token whatever is drawn, and punishes repeated words."""
    drawn, greedy = teacher(temperature=2.0)(ASKED), teacher(temperature=0)(ASKED)
    assert drawn != greedy == teacher(temperature=2.0, top_p=1e-6)(ASKED) == teacher(temperature=1e-4)(ASKED)
    for name, value in {"top_k": 1, "top_p": 0.001, "repetition_penalty": 1.5, "temperature": 0.1}.items():
        monkeypatch.setattr(policy.model.generation_config, name, value)
    assert (teacher(temperature=2.0)(ASKED), teacher(temperature=0)(ASKED)) == (drawn, greedy)


def test_no_token_that_stands_for_an_image_is_drawn(policy, teacher, monkeypatch):
    made, generate = [], policy.model.generate
    monkeypatch.setattr(policy.model, "generate", lambda **how: made.append(generate(**how)) or made[-1])
    asked = ASKED[:1] * 16  # prompts of one length: what is new begins where they end
    teacher(temperature=1e4, max_new_tokens=100, batch_size=16)(asked)  # all tokens alike likely
    new = made[0][:, -100:]
    assert new.unique().numel() > 600 and not set(forbidden_ids(policy.model)) & set(new.unique().tolist())


def test_a_batch_that_does_not_fit_is_halved(policy, teacher, monkeypatch):
    generate = policy.model.generate

    def full(**inputs):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    expected = teacher(temperature=0)(ASKED)
    monkeypatch.setattr(policy.model, "generate", full)
    small = teacher(temperature=0, batch_size=4)
    with pytest.warns(RuntimeWarning, match="batch_size"):
        assert small(ASKED) == expected
    assert small.batch_size == 1


@pytest.mark.parametrize("four_bit, dtype", [(False, "float16"), (True, "float32")])
def test_a_model_is_loaded_from_a_folder(four_bit, dtype):
    """The vision tower is not packed, and computes in fp32 where the rest is in fp16."""
    how = {"four_bit": four_bit, "dtype": dtype, "temperature": 0, "max_new_tokens": 24}
    teacher = LocalTeacher.from_pretrained(ASSETS / "base", IMAGES, **how)
    assert "crown" in teacher(ASKED[:1])[0]
    model = teacher.model.model
    assert model.visual.dtype == torch.float32 and model.language_model.norm.weight.dtype == getattr(torch, dtype)
    packed = [name for name, layer in teacher.model.named_modules() if isinstance(layer, Linear4bit)]
    assert bool(packed) == four_bit and all(name.startswith("model.language_model.") for name in packed)
