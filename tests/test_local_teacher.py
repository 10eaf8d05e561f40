"""A teacher with the library's own `generate` says what our decoding says, and draws as its seed says."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from PIL import Image

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_base
from finer1_lite.policy.rollout import forbidden_ids, rollout
from finer1_lite.prompts import QUESTIONS, instructed
from finer1_lite.teachers.local import LocalTeacher

# prompts of different length, so that all rows but one are padded
ASKED = [(0, "Describe the bird."), (1, instructed(QUESTIONS[0])), (2, "Describe the wing and the tail of the bird.")]


@pytest.fixture(scope="module")
def images():
    return [draw(s, 7) for s in all_species()[3:90:30]]


@pytest.fixture(scope="module")
def policy():
    return load_base(replace(get_profile("cpu"), quantize=False, dtype="float32"))


@pytest.fixture
def teacher(policy, images):
    """Makes teachers of the tiny base."""

    def make(images=images, seed=0, **settings):
        return LocalTeacher(policy.model, policy.processor, images, seed, **{"max_new_tokens": 48} | settings)

    return make


def test_greedy_texts_are_those_of_our_own_decoding(policy, images, teacher):
    cache = VisionCache(policy.model, policy.processor, images)
    ours = rollout(policy, [(q, cache.get([i])[0]) for i, q in ASKED], 1, None, temperature=0, max_new_tokens=48).texts
    assert teacher(temperature=0)(ASKED) == ours and "crown" in ours[0] and "tail" in ours[2]


def test_greedy_texts_do_not_depend_on_the_batch(teacher):
    texts = teacher(temperature=0, batch_size=1)(ASKED)
    assert texts == teacher(temperature=0, batch_size=2)(ASKED) == teacher(temperature=0)(ASKED)
    assert teacher(temperature=0)(ASKED[::-1]) == texts[::-1] and teacher()([]) == []


def test_the_seed_decides_the_texts_and_leaves_other_draws_alone(teacher):
    first, again, other = (teacher(seed=seed, temperature=2.0, batch_size=2) for seed in (5, 5, 6))
    torch.manual_seed(0)
    texts = first(ASKED), first(ASKED)
    after = torch.rand(3)
    assert texts == (again(ASKED), again(ASKED))
    assert texts[0] != texts[1] and texts[0] != other(ASKED)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))


def test_top_p_and_temperature_reach_the_draw(teacher):
    greedy = teacher(temperature=0)(ASKED)
    assert teacher(temperature=2.0)(ASKED) != greedy
    assert teacher(temperature=2.0, top_p=1e-6)(ASKED) == greedy
    assert teacher(temperature=1e-4)(ASKED) == greedy


def test_what_the_models_file_asks_for_is_not_done(policy, teacher, monkeypatch):
    """Qwen2.5-VL's own file takes the likeliest token whatever is drawn, and punishes repeated words."""
    texts = teacher(temperature=2.0)(ASKED), teacher(temperature=0)(ASKED)
    for name, value in {"top_k": 1, "top_p": 0.001, "repetition_penalty": 1.5, "temperature": 0.1}.items():
        monkeypatch.setattr(policy.model.generation_config, name, value)
    assert (teacher(temperature=2.0)(ASKED), teacher(temperature=0)(ASKED)) == texts


def test_no_token_that_stands_for_an_image_is_drawn(policy, teacher, monkeypatch):
    made, generate = [], policy.model.generate
    monkeypatch.setattr(policy.model, "generate", lambda **how: made.append(generate(**how)) or made[-1])
    asked = ASKED[:1] * 16  # prompts of one length: what is new begins where they end
    teacher(temperature=1e4, max_new_tokens=100, batch_size=16)(asked)  # all tokens alike likely
    new = made[0][:, -100:]
    assert new.unique().numel() > 600 and not set(forbidden_ids(policy.model)) & set(new.unique().tolist())


def test_pictures_are_turned_upright_flattened_and_bounded(images, teacher):
    turned, glass = images[0].rotate(90, expand=True), images[1].convert("RGBA")
    turned.getexif()[0x0112] = 6  # the camera was held upright
    asked = [(0, ASKED[0][1]), (1, ASKED[0][1])]
    assert teacher([turned, glass], temperature=0)(asked) == teacher(images, temperature=0)(asked)
    small = [image.resize((14, 14), Image.Resampling.BICUBIC) for image in images]
    bounded = teacher(images, temperature=0, max_pixels=14 * 14)(asked)
    assert bounded == teacher(small, temperature=0)(asked) != teacher(images, temperature=0)(asked)


def test_a_batch_that_does_not_fit_is_halved(policy, teacher, monkeypatch):
    generate = policy.model.generate

    def full(**inputs):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    expected = teacher(temperature=0)(ASKED)
    monkeypatch.setattr(policy.model, "generate", full)
    small = teacher(temperature=0, batch_size=4)
    with pytest.warns(RuntimeWarning, match="batch_size"):
        assert small(ASKED) == expected
    assert small.batch_size == 1


def test_a_model_is_loaded_from_a_folder(images, teacher):
    loaded = LocalTeacher.from_pretrained(
        ASSETS / "base", images, dtype="float32", temperature=0, max_new_tokens=48
    )
    assert loaded.model.dtype == torch.float32 and loaded(ASKED) == teacher(temperature=0)(ASKED)
    with pytest.raises(OSError, match="no-such-model"):
        LocalTeacher.from_pretrained(ASSETS / "no-such-model", images)


def test_in_fp16_the_tower_computes_in_fp32(images):
    teacher = LocalTeacher.from_pretrained(ASSETS / "base", images, dtype="float16", temperature=0, max_new_tokens=24)
    model = teacher.model.model
    assert model.visual.dtype == torch.float32 and model.language_model.dtype == torch.float16
    assert "crown" in teacher(ASKED[:1])[0]


def test_four_bit_leaves_the_vision_tower_as_it_is(images):
    teacher = LocalTeacher.from_pretrained(
        ASSETS / "base", images, four_bit=True, dtype="float32", temperature=0, max_new_tokens=24
    )
    packed = [name for name, layer in teacher.model.named_modules() if isinstance(layer, Linear4bit)]
    assert packed and all(name.startswith("model.language_model.") for name in packed)
    assert "crown" in teacher(ASKED[:1])[0]


@pytest.mark.parametrize("setting", [
    {"max_new_tokens": 0}, {"batch_size": 0}, {"max_pixels": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1},
])  # fmt: skip
def test_bad_settings_are_refused_at_once(teacher, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}.*(positive|or more|in )"):
        teacher(**setting)
