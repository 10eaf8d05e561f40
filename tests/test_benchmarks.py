"""What the benchmarks count, beside a plain loop; the GPU script's path on a CPU, with a random model made small."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from benchmarks import real_memory
from benchmarks.measure import Meter, PeakMemory, together
from benchmarks.qwen import qwen_config
from benchmarks.real_size import bound, make_loop, measure, one_step, pictures, save_random
from benchmarks.setting import PATCHES, OurSide, Step, TheirSide, fixed_length, their_rows
from bitsandbytes.nn import Linear4bit
from torch.utils.flop_counter import FlopCounterMode

from finer1_lite.config import PROFILES
from finer1_lite.logprobs import selective_log_softmax
from finer1_lite.policy.inputs import prompt_ids
from finer1_lite.policy.load import load_policy
from finer1_lite.policy.rollout import forbidden_ids
from finer1_lite.prompts import messages

# In fp32: the 4-bit products of bitsandbytes are not counted.
STEP = Step(questions=2, num_generations=8, max_new_tokens=24, micro_batch=16, quantize=False)


@pytest.fixture(scope="module")
def plain_operations():
    """Of the plain way with the step's first prompts: generate, score, go back."""
    policy, length = load_policy(STEP.profile(), seed=STEP.seed), STEP.max_new_tokens
    rows = [row for row in their_rows(STEP, 1) for _ in range(STEP.num_generations)]
    asked = [messages(row["prompt"][0]["content"]) for row in rows]
    inputs = policy.processor(
        text=policy.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True),
        images=[row["image"] for row in rows], padding=True, padding_side="left", return_tensors="pt",
    )  # fmt: skip
    tokens = {"max_new_tokens": length, "min_new_tokens": length, "suppress_tokens": forbidden_ids(policy.model)}
    with FlopCounterMode(display=False) as flops:
        whole = policy.model.generate(**inputs, **tokens, do_sample=True)
        completions = whole[:, -length:]
        inputs["input_ids"], ones = whole, torch.ones_like(completions)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], ones], 1)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], 0 * ones], 1)
        logits = policy.model(**inputs, logits_to_keep=length + 1).logits[:, :-1]
        selective_log_softmax(logits, completions).sum().backward()
    return flops.get_total_flops()


@pytest.mark.parametrize("name, share", [("dapo", 0.30), ("tapo", 0.47)])
def test_a_step_encodes_each_image_once_and_takes_this_share_of_the_plain_operations(name, share, plain_operations):
    side, flops = OurSide(STEP, name), FlopCounterMode(display=False)
    meter = Meter(side.visual)
    with fixed_length():
        figures = side.take(together(meter, flops))
    assert figures["length"] == STEP.max_new_tokens and figures["groups_kept"] == STEP.questions
    assert meter.patches == side.distinct_images() * PATCHES
    extra = side.distinct_images() - STEP.questions
    assert extra == 0 if name == "dapo" else extra > 0
    assert flops.get_total_flops() / plain_operations < share


def test_prompts_are_read_once_and_finished_rows_are_not_decoded():
    loop, rows = OurSide(STEP, "dapo").loop, []  # rows and length of each forward pass
    note = lambda module, args, kwargs: rows.append(tuple(kwargs["inputs_embeds"].shape[:2]))  # noqa: E731
    loop.policy.backbone.language_model.register_forward_pre_hook(note, with_kwargs=True)
    groups = loop.roll_out(loop.sampler.next(STEP.questions))
    assert rows[0][0] == STEP.questions  # not questions x rollouts
    tokens = sum(int(g.completion_mask.sum()) for g in groups)
    decoded = sum(batch for batch, length in rows[1:] if length == 1)
    assert all(length == 1 for _, length in rows[1:]) and decoded <= tokens


def test_both_sides_get_the_same_prompts_and_lengths():
    """And TRL's trainer encodes an image for every rollout, in sampling and again in scoring."""
    pytest.importorskip("trl")
    theirs, side = TheirSide(STEP, 1), OurSide(STEP, "dapo")
    with fixed_length():
        theirs.take_all([meter := Meter(theirs.visual)])
        side.take(nullcontext())
    groups, rows = side.groups, theirs.trainer.train_dataset
    assert rows["prompt"][:2] == [[{"role": "user", "content": g.question}] for g in groups]
    pictures = [side.loop.cache.images[g.triplet.anchor] for g in groups]
    assert [row["image"].tobytes() for row in rows] == [p.tobytes() for p in pictures]
    seen = side.loop.cache.get([g.triplet.anchor for g in groups])
    read = [len(prompt_ids(side.loop.policy.processor, g.question, s)) for g, s in zip(groups, seen)]
    ours = sum(len(g.texts) * (tokens + STEP.max_new_tokens) for g, tokens in zip(groups, read))
    assert theirs.trainer.state.num_input_tokens_seen == ours
    assert meter.patches == 2 * STEP.rollouts * PATCHES


def test_peak_memory_counts_what_is_alive_and_no_weights():
    layer = torch.nn.Linear(1000, 1000, bias=False)
    with PeakMemory() as memory:
        x = torch.randn(1000, 1000)
        y = layer(x)
        del x, y
        layer(torch.ones(10, 1000))
    assert memory.peak == 2 * 4 * 1000**2 and memory.alive < 0.1 * memory.peak


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The L4 profile on a CPU, in fp32, on a model with few narrow layers."""
    config, folder = qwen_config("3B"), tmp_path_factory.mktemp("small") / "model"
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = 2, 256, 512
    text.num_attention_heads, text.layer_types = 2, text.layer_types[:2]
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 2, 64, 128, 4
    vision.out_hidden_size, vision.fullatt_block_indexes = 256, [1]
    save_random(config, folder, "cpu")
    l4 = PROFILES["l4"]
    l4 = replace(l4, tapo=replace(l4.tapo, questions=2, num_anchor=2, num_positive=2), max_pixels=12 * 784)
    return replace(l4, device="cpu", dtype="float32", model_id=str(folder), max_new_tokens=5)


def test_the_loaded_model_is_the_profiles(profile):
    loop = make_loop(profile, 12)
    assert {len(s.tokens) for s in loop.cache.get(range(3))} == {12} and pictures(256, 1)[0].size == (448, 448)
    quantised = [n for n, m in loop.policy.model.named_modules() if isinstance(m, Linear4bit)]
    assert len(quantised) == 2 * 7 and loop.policy.head.shape == (151_936, 256)
    before = [p.clone() for p in loop.policy.trainable()]
    one_step(loop), one_step(loop)
    assert all(p.isfinite().all() for p in loop.policy.trainable())
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.policy.trainable()))


@pytest.mark.parametrize("trl", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_row_of_results(profile, trl):
    if trl:
        pytest.importorskip("trl")
    row = measure(profile, 12, steps=1, warm_up=1, trl=trl)
    assert row["side"] == ("trl" if trl else "tapo") and row["step_s"] > 0
    assert row["tokens_per_s"] == pytest.approx(2 * 4 * 5 / row["step_s"])
    assert trl or row["step_s"] == pytest.approx(row["rollout_s"] + row["update_s"])
    assert trl or row["decode_ms"] == pytest.approx(1000 * row["rollout_s"] / 5)


@pytest.mark.slow
def test_rows_of_counted_memory(profile, tmp_path):
    small = replace(profile, dtype="bfloat16", sft=replace(profile.sft, micro_batch=1))  # slow without 16-bit units
    real_memory.measure(small, 12, chain=10, path=tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("phase")["counted_gib"] * 2**30
    assert set(rows.index) == {"encode", "prefill", "decode", "update", "SFT"} and len(rows) == 5
    assert rows.min() > 151_936 * 256 * 2 and rows["decode"] >= rows["prefill"]  # the embedding alone


def test_the_bound_by_hand():
    """16 prompts of 316 tokens and 80 x 400 completion tokens are 37,056: read once, trained on twice (3 each)."""
    h100, config = replace(PROFILES["h100"], max_new_tokens=400), qwen_config("3B")
    gflop = 5.55 * 37_056 * (1 + 3 + 3) + 0.62 * 32_000 * (1 + 3 + 3)
    dear = replace(h100, loss=replace(h100.loss, negative_grad=True))
    assert bound(dear, config, 256, "NVIDIA H100 80GB HBM3") == pytest.approx(gflop / 989_000, rel=5e-3)
    assert bound(h100, config, 256, "Tesla T4") == pytest.approx(gflop * 5 / 7 / 65_000, rel=5e-3)
    assert math.isnan(bound(h100, config, 256, "another card"))
