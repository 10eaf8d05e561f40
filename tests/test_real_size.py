"""The GPU script's path, on a CPU: a random model of the 3B's shape made small, saved, loaded in NF4, a TAPO step."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from benchmarks import real_memory
from benchmarks.qwen import qwen_config
from benchmarks.real_size import bound, make_loop, measure, one_step, pictures, save_random
from bitsandbytes.nn import Linear4bit

from finer1_lite.config import PROFILES


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
    assert bound(h100, config, 256, "NVIDIA H100 80GB HBM3") == pytest.approx(gflop / 989_000, rel=5e-3)
    cheaper = replace(h100, loss=replace(h100.loss, negative_grad=False))
    assert bound(cheaper, config, 256, "Tesla T4") == pytest.approx(gflop * 5 / 7 / 65_000, rel=5e-3)
    assert math.isnan(bound(h100, config, 256, "another card"))
