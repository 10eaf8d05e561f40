"""What the benchmark counts, beside a plain loop: pixels of every rollout's image, one padded row for each."""

from contextlib import nullcontext

import pytest
import torch
from benchmarks.measure import Meter, PeakMemory, together
from benchmarks.setting import PATCHES, OurSide, Step, TheirSide, fixed_length, their_rows
from torch.utils.flop_counter import FlopCounterMode

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
