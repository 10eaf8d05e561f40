"""Laws that the loss must obey on any batch, searched by hypothesis."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finer1_lite import logprobs as P
from finer1_lite import losses as L

F64 = torch.float64
STRONG = L.LossConfig(gamma=0.3, eta1=0.2, eta2=0.15)
CONFIGS = {
    "tapo": STRONG, "released": replace(L.RELEASED, gamma=0.3), "dapo": L.DAPO, "grpo": L.GRPO,
    "dr_grpo": replace(L.DR_GRPO, constant_length=32), "correct only": replace(STRONG, wrong_weight=0.0),
    "sequence": replace(STRONG, aggregation="sequence"), "k3": replace(STRONG, kl_form="released"),
}
laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)
configs = st.sampled_from(sorted(CONFIGS)).map(CONFIGS.get)


@st.composite
def batches(draw):
    """Rows of whole groups. Hypothesis draws the shapes, so failures shrink, and a seed for the numbers."""
    groups, size, tokens = draw(st.integers(1, 4)), draw(st.integers(2, 5)), draw(st.integers(1, 8))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = groups * size
    random = {n: -3 * torch.rand(rows, tokens, generator=g, dtype=F64) for n in ("now", "old", "neg")}
    rewards = torch.randint(0, 2, (rows,), generator=g).to(F64)
    mask = (torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1), generator=g)).long()
    return {
        "per_token_logps": random["now"].requires_grad_(), "old_per_token_logps": random["old"],
        "negative_per_token_logps": random["neg"].requires_grad_(),
        "advantages": L.group_advantages(rewards, size), "correct": rewards > 0.5,
        "completion_mask": mask, "question_tokens": mask.view(groups, -1).sum(1).repeat_interleave(size),
    }


def evaluate(batch, config):
    """(loss, gradient of log pi, gradient of log pi_neg or zeros, metrics)."""
    loss, metrics = L.tapo_loss(**batch, config=config)
    leaves = (batch["per_token_logps"], batch["negative_per_token_logps"])
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)), metrics


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@laws
@given(batches(), configs.filter(lambda config: config.aggregation != "micro_batch"), st.data())
def test_the_cut_into_micro_batches_does_not_matter(batch, config, data):
    rows = batch["advantages"].numel()
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1), max_size=4)))
    mask, questions = batch["completion_mask"], batch["question_tokens"]
    items = L.count_items(mask, config.aggregation, 1)
    if config.aggregation == "question":
        items = round(float((mask.sum(1) / questions).sum()))
    whole, total, sums = evaluate(batch, config), 0.0, {}
    for start, end in zip([0, *cuts], [*cuts, rows]):
        part, metrics = L.tapo_loss(**{n: v[start:end] for n, v in batch.items()}, config=config, num_items=items)
        total = total + part
        sums = {n: sums.get(n, 0.0) + v for n, v in metrics.items()}
    same(total.detach(), whole[0])
    same(torch.autograd.grad(total, batch["per_token_logps"])[0], whole[1])
    assert sums == pytest.approx(whole[3], rel=1e-10, abs=1e-10)


@laws
@given(batches(), st.sampled_from(["paper", "released"]))
def test_kl_is_zero_iff_equal_and_never_negative(batch, form):
    logps, negative = batch["per_token_logps"], batch["negative_per_token_logps"]
    kl = L.inter_class_kl(logps, negative, form)
    assert (kl >= 0).all()
    assert ((kl > 0) == ((logps - negative).abs() > 0)).logical_or((logps - negative).abs() < 1e-7).all()
    assert (L.inter_class_kl(logps, logps, form) == 0).all()


@laws
@given(st.integers(0, 2**31), st.sampled_from([1.0, 1e2, 1e4]), configs, st.sampled_from([torch.float32, F64]))
def test_clamps_bound_every_term(seed, scale, config, dtype):
    g = torch.Generator().manual_seed(seed)
    logits = scale * (2 * torch.rand(3, 6, 4, 5, generator=g, dtype=dtype) - 1)
    ids = torch.randint(0, 5, (6, 4), generator=g)
    now, old, negative = (P.selective_log_softmax(x, ids).requires_grad_() for x in logits)
    advantages = torch.tensor([2.0, -2.0] * 3, dtype=dtype)
    batch = {"per_token_logps": now, "old_per_token_logps": old, "negative_per_token_logps": negative,
             "advantages": advantages, "completion_mask": torch.ones(6, 4), "correct": advantages > 0}
    loss, *gradients, metrics = evaluate(batch, config)
    assert torch.isfinite(loss) and all(torch.isfinite(x).all() for x in gradients)
    assert all(abs(value) < float("inf") for value in metrics.values())
    ceiling = torch.e**20 * 1.001
    assert L.policy_loss_terms(now, old, advantages).abs().max() <= 2 * ceiling
    dual = L.policy_loss_terms(now, old, advantages, dual_clip=3.0)
    assert dual.max() <= 6 and dual.min() >= -2 * 1.28001
    assert L.inter_class_kl(now, negative, "paper").abs().max() <= ceiling
    assert L.inter_class_kl(now, negative, "released").abs().max() <= 10
    assert L.inter_class_kl(now, negative, "paper", cap=0.5).abs().max() <= 0.5
