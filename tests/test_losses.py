"""losses.py and logprobs.py against values worked out by hand, loops from the equations, finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from finer1_lite import logprobs as P
from finer1_lite import losses as L

F64 = torch.float64
LOG2, LOG4 = math.log(2.0), math.log(4.0)
STRONG = {"gamma": 0.3, "eta1": 0.2, "eta2": 0.15}  # weights large enough that an error in any term shows
X = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0], [4.0, 6.0, 99.0]], dtype=F64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])


def close(actual, expected, tolerance=1e-6):
    actual = torch.as_tensor(actual, dtype=F64).detach()
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=tolerance, atol=tolerance)


def random_batch(seed=0, rows=6, tokens=5, group=3, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(rows, tokens, generator=g, dtype=dtype)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=g)
    rewards = torch.randint(0, 2, (rows,), generator=g) + 0.1 * torch.rand(rows, generator=g, dtype=dtype)
    return {
        "per_token_logps": logps,
        "old_per_token_logps": logps + 0.6 * torch.randn(rows, tokens, generator=g, dtype=dtype),
        "negative_per_token_logps": -3 * torch.rand(rows, tokens, generator=g, dtype=dtype),
        "completion_mask": (torch.arange(tokens) < lengths).long(),
        "advantages": L.group_advantages(rewards, group),
        "correct": rewards > 1,
    }


def test_group_advantages_by_hand():
    # group 1: mean 1/2, deviations +-1/2, unbiased std sqrt(4 * 1/4 / 3); group 2: mean 1/4, std 1/2
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=F64)
    a, b = 0.5 / (math.sqrt(1 / 3) + 1e-6), 1 / (0.5 + 1e-6)
    close(L.group_advantages(rewards, 4), [a, -a, a, -a, 0.75 * b, -0.25 * b, -0.25 * b, -0.25 * b], 1e-12)
    close(L.group_advantages(rewards, 4, "none"), [0.5, -0.5, 0.5, -0.5, 0.75, -0.25, -0.25, -0.25], 1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        L.group_advantages(rewards, 1)


def test_group_advantages_eps_is_outside_the_root():
    rewards = torch.tensor([0.0, 1e-6], dtype=F64)  # std 7.07e-7 is smaller than eps
    half = 0.5e-6 / (1e-6 / math.sqrt(2) + 1e-6)
    close(L.group_advantages(rewards, 2), [-half, half], 1e-12)
    assert torch.equal(L.group_advantages(torch.zeros(4), 2), torch.zeros(4))  # no eps: 0 / 0


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, 1.0])
def test_rounding_of_the_mean_is_no_signal(reward, scale):
    """In fp32 the mean of twelve times 0.7 is not 0.7; over std + 1e-6 that grew to an advantage of 0.1."""
    rewards = torch.tensor([reward] * 12 + [0.0, 0.0, 1.0, 1.0] * 3)
    advantages = L.group_advantages(rewards, 12, scale).view(2, 12)
    assert torch.equal(advantages[0], torch.zeros(12)) and advantages[1].abs().min() > 0.4


def test_keep_groups():
    accuracies = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0]).float()
    assert L.keep_groups(accuracies, 3).tolist() == [False, False, True, True]
    assert L.keep_groups(torch.zeros(6), 3).tolist() == [False, False]
    assert L.keep_groups(torch.tensor([1.0, 0.0, 0.0, 0.0]), 2, rule="none").tolist() == [True, True]


def test_keep_groups_released_rule():
    few = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert L.keep_groups(few, 2, rule="released").tolist() == [False, False, True]
    assert L.keep_groups(few[:4], 2, rule="released").tolist() == [True, True]
    # 1 of 100 right: a mean of 0.01 is not above the released bound, while the paper's rule keeps the group
    wide = torch.tensor([1.0] + [0.0] * 99 + [0.0] + [1.0] * 99)
    assert L.keep_groups(wide, 100, rule="paper").tolist() == [True, True]
    mixed = torch.cat([wide, torch.tensor([1.0, 0.0] * 50)])
    assert L.keep_groups(mixed, 100, rule="released").tolist() == [False, False, True]


def test_completion_mask_by_hand():
    ids = torch.tensor([[5, 6, 2, 7], [2, 2, 2, 2], [5, 6, 7, 8], [5, 2, 9, 2], [9, 9, 9, 2]])
    expected = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert P.completion_mask(ids, eos_id=2).tolist() == expected


def test_selective_log_softmax_by_hand_and_by_loop():
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(9.0), 0.0]]], dtype=F64)
    close(P.selective_log_softmax(logits, torch.tensor([[1, 1]])), [[math.log(0.75), math.log(0.1)]], 1e-12)
    g = torch.Generator().manual_seed(1)
    logits, ids = torch.randn(2, 3, 7, generator=g, dtype=F64), torch.randint(0, 7, (2, 3), generator=g)
    for b in range(2):
        for t in range(3):
            p = logits[b, t].exp() / logits[b, t].exp().sum()
            close(P.selective_log_softmax(logits, ids)[b, t], p[ids[b, t]].log().item(), 1e-12)
    huge = torch.tensor([[[1e4, -1e4, 0.0]] * 2])
    close(P.selective_log_softmax(huge, torch.tensor([[0, 1]])), [[0.0, -2e4]])


def test_entropy_terms_by_hand():
    close(L.entropy_terms(torch.tensor([[0.25, 1.0]], dtype=F64).log()), [[math.log(4.0), 0.0]], 1e-12)
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=F64)
    close(L.entropy_terms(logits=p.log() + 5.0), [1.5 * math.log(2.0), math.log(3.0)], 1e-12)
    expected_sample = (p[0] * L.entropy_terms(p[:1].log())[0]).sum()
    close(expected_sample, L.entropy_terms(logits=p[0].log()), 1e-12)  # the sampled one is right on average


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logps_equal_the_naive_ones(chunk_size, temperature):
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(11, 4, generator=g, dtype=F64, requires_grad=True)
    weight = torch.randn(13, 4, generator=g, dtype=F64, requires_grad=True)
    ids, upstream = torch.randint(0, 13, (11,), generator=g), torch.randn(11, generator=g, dtype=F64)
    naive = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)[torch.arange(11), ids]
    ours = P.chunked_logps(hidden, weight, ids, chunk_size, temperature)
    results = [(x, *torch.autograd.grad((upstream * x).sum(), (hidden, weight))) for x in (ours, naive)]
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_chunked_logps_never_hold_the_full_logits():
    rows, width, vocabulary, chunk = 64, 4, 1000, 8
    hidden = torch.randn(rows, width, requires_grad=True)
    weight, ids = torch.randn(vocabulary, width), torch.zeros(rows, dtype=torch.long)
    saved = []
    with _LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            loss = P.chunked_logps(hidden, weight, ids, chunk_size=chunk).sum()
        loss.backward()
    assert largest.numel == chunk * vocabulary  # at any moment, forward or backward
    assert max(saved, default=0) <= vocabulary * width  # kept between the two: inputs, never logits
    with _LargestTensor() as naive:
        P.selective_log_softmax(hidden @ weight.T, ids)
    assert naive.numel == rows * vocabulary  # the measure does see what the naive version makes


@pytest.mark.parametrize("update, old, expected", [
    ("anchor", "anchor", (1.0, 1.0)), ("anchor", "own", (1.0, 2.0)), ("own", "own", (2.0, 2.0)),
])
def test_condition_logps(update, old, expected):
    anchor, own = torch.full((1, 1), 1.0, requires_grad=True), torch.full((1, 1), 2.0, requires_grad=True)
    current, before = L.condition_logps(anchor, own, update, old)
    assert (current.item(), before.item()) == expected
    assert current.requires_grad and not before.requires_grad


@pytest.mark.parametrize("ratio, advantage, loss, gradient, bound", [  # to minimise; with respect to log pi; active
    (1.0, 2.0, -2.0, -2.0, None), (1.2, 1.0, -1.2, -1.2, None), (1.27, 1.0, -1.27, -1.27, None),
    (1.5, 1.0, -1.28, 0.0, "high"), (0.5, 1.0, -0.5, -0.5, None), (1.5, -1.0, 1.5, 1.5, None),
    (0.5, -1.0, 0.8, 0.0, "low"), (0.9, -2.0, 1.8, 1.8, None), (5.0, -1.0, 3.0, 0.0, "dual"),
    (2.9, -1.0, 2.9, 2.9, None), (5.0, 1.0, -1.28, 0.0, "high"), (5.0, 0.0, 0.0, 0.0, None),
])
def test_policy_loss_by_hand(ratio, advantage, loss, gradient, bound):
    logps = torch.tensor([[math.log(ratio) - 1.0]], dtype=F64, requires_grad=True)
    arguments = (torch.full((1, 1), -1.0, dtype=F64), torch.tensor([advantage], dtype=F64), 0.2, 0.28, 3.0)
    value = L.policy_loss_terms(logps, *arguments)
    value.sum().backward()
    close(value, [[loss]], 1e-12)
    close(logps.grad, [[gradient]], 1e-12)
    flags = L.clip_indicators(logps, *arguments)
    assert {name for name, flag in flags.items() if flag.item()} == ({bound} if bound else set())


def test_policy_loss_is_bounded_by_the_clamp():
    logps = torch.tensor([[50.0, 3.0]], dtype=F64, requires_grad=True)
    arguments = (torch.zeros(1, 2, dtype=F64), torch.tensor([-1.0]))
    value = L.policy_loss_terms(logps, *arguments)
    value.sum().backward()
    close(value, [[math.exp(20.0), math.exp(3.0)]], 1e-12)
    close(logps.grad, [[0.0, math.exp(3.0)]], 1e-12)
    assert not L.clip_indicators(logps, *arguments)["dual"].any()


@pytest.mark.parametrize("form, x, value, slope", [  # x = log pi - log pi_neg, value, d/d log pi
    ("paper", LOG2, 1 - LOG2, 1.0), ("paper", -LOG2, -0.5 + LOG2, -0.5), ("paper", LOG4, 3 - LOG4, 3.0),
    ("released", LOG2, -0.5 + LOG2, 0.5), ("released", -LOG2, 1 - LOG2, -1.0),
    ("released", -5.0, 10.0, 0.0), ("released", 30.0, 10.0, 0.0),
    ("paper", 30.0, math.exp(20.0) - 21, 0.0), ("paper", -30.0, math.exp(-20.0) + 19, 0.0),
])
def test_inter_class_kl_by_hand(form, x, value, slope):
    logps = torch.tensor([[x - 1.0]], dtype=F64, requires_grad=True)
    negative = torch.full((1, 1), -1.0, dtype=F64, requires_grad=True)
    kl = L.inter_class_kl(logps, negative, form)
    kl.sum().backward()
    close(kl, [[value]], 1e-9)
    close(logps.grad, [[slope]], 1e-9)
    close(negative.grad, [[-slope]], 1e-9)
    negative.grad = None
    constant = L.inter_class_kl(logps, negative, form, negative_grad=False)
    constant.sum().backward()
    assert negative.grad is None and torch.equal(constant, kl)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_kl_of_nearly_equal_branches_in_fp32(form):
    """x^2 / 2, where e^x - x - 1 would return rounding noise of either sign."""
    x = torch.tensor([[1e-4, -1e-4, 3e-5, -2e-5]])
    torch.testing.assert_close(L.inter_class_kl(x, torch.zeros(1, 4), form), x.square() / 2, rtol=1e-2, atol=0.0)


def test_kl_cap():
    logps, negative = torch.tensor([[3.0, -2.0, -12.0]], dtype=F64), torch.zeros(1, 3, dtype=F64)
    close(L.inter_class_kl(logps, negative, "paper", cap=2.0), [[2.0, math.exp(-2.0) + 1, 2.0]])
    released = [[math.exp(-3) + 2, math.exp(2) - 3, math.exp(12) - 13]]
    close(L.inter_class_kl(logps, negative, "released", cap=math.inf), released)


def test_kl_weight_of_wrong_rollouts():
    logps, negative = torch.full((3, 2), LOG2, dtype=F64), torch.zeros(3, 2, dtype=F64)
    correct, full = torch.tensor([True, False, True]), 1 - LOG2
    for weight in (0.0, -0.5, 1.0):
        kl = L.inter_class_kl(logps, negative, correct=correct, wrong_weight=weight)
        close(kl, [[full] * 2, [weight * full] * 2, [full] * 2])


@pytest.mark.parametrize("how, value, larger, items", [  # `larger`: the value with a larger step's num_items
    ("token", 26 / 6, 26 / 13, 13), ("micro_batch", 26 / 6, 26 / 12, 2), ("sequence", (2 + 10 + 5) / 3, 1.0, 17),
    ("constant", 26 / (3 * 8), 26 / (8 * 13), 13), ("question", 26 / 6, 26 / 12, 2),
])
def test_aggregate_by_hand(how, value, larger, items):
    close(L.aggregate(X, MASK, how, constant_length=8), value, 1e-12)
    close(L.aggregate(X, MASK, how, num_items=items, constant_length=8), larger, 1e-12)
    assert L.aggregate(X, torch.zeros_like(MASK), how, constant_length=8).item() == 0  # of nothing: zero


def test_the_mean_of_a_question_and_then_over_questions():
    """Eq. 4: the first row is a question, the other two are another, whose tokens weigh less."""
    tokens = torch.tensor([int(MASK[0].sum()), *2 * [int(MASK[1:].sum())]])
    value = (2 + 20 / 3) / 2
    assert L.count_items(torch.ones(6, 4), "question", 3) == 2
    close(L.aggregate(X, MASK, "question", question_tokens=tokens), value)
    parts = [(X[i : i + 1], MASK[i : i + 1], tokens[i : i + 1]) for i in range(3)]  # also where a question is cut
    close(sum(L.aggregate(x, m, "question", 2, question_tokens=t) for x, m, t in parts), value)


def test_micro_batch_mean_depends_on_the_cut():  # that no other does: test_losses_properties.py
    assert [L.count_items(MASK, how) for how in ("token", "sequence", "constant")] == [6, 3, 3]
    assert [L.count_items(MASK, "micro_batch", size) for size in (1, 2, 3, 4)] == [3, 2, 1, 1]
    close(L.aggregate(X, MASK * torch.tensor([[1], [0], [1]]), "sequence"), (2 + 0 + 5) / 3)  # an empty row counts

    for sizes, value in (([1, 2], (2 + 20 / 3) / 2), ([2, 1], (4 + 5) / 2)):
        parts = zip(X.split(sizes), MASK.split(sizes))
        close(sum(L.aggregate(x, m, "micro_batch", num_items=2) for x, m in parts), value)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_masked_infinities_leave_no_trace(form):
    config, batch = L.LossConfig(**STRONG, kl_form=form), random_batch(8)
    hidden, results = batch["completion_mask"] == 0, []
    for junk in (0.0, -torch.inf, torch.nan):
        logps = {n: batch[n].masked_fill(hidden, junk) for n in batch if n.endswith("logps")}
        leaves = [logps[n].requires_grad_() for n in ("per_token_logps", "negative_per_token_logps")]
        loss, _ = L.tapo_loss(**(batch | logps), config=config)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_fp32(half):
    logits = torch.linspace(-20, 20, 24).view(2, 3, 4).to(half)
    ids = torch.tensor([[0, 1, 2], [3, 0, 1]])
    for function in (lambda x: P.selective_log_softmax(x, ids), lambda x: L.entropy_terms(logits=x)):
        assert function(logits).dtype == torch.float32
        assert torch.equal(function(logits), function(logits.float()))
    batch = random_batch(3, dtype=torch.float32)
    low = {n: v.to(half) if v.is_floating_point() else v for n, v in batch.items()}
    up = {n: v.float() if v.is_floating_point() else v for n, v in low.items()}
    assert torch.equal(L.tapo_loss(**low)[0], L.tapo_loss(**up)[0])


def slow_loss(batch, c):
    """Equation 4 with every switch, token by token, on Python floats. Shares nothing with losses.py."""
    rows = []
    for i, mask in enumerate(batch["completion_mask"].tolist()):
        row = []
        for t in (t for t, m in enumerate(mask) if m):
            lp, old, neg = (batch[k][i, t].item() for k in (
                "per_token_logps", "old_per_token_logps", "negative_per_token_logps"))
            a = batch["advantages"][i].item()
            rho = math.exp(max(-20.0, min(20.0, lp - old)))
            clipped = max(1 - c.epsilon_low, min(1 + c.epsilon_high, rho))
            gain = min(rho * a, clipped * a)
            if c.dual_clip is not None and a < 0:
                gain = max(gain, c.dual_clip * a)
            g = math.exp(lp - neg)
            kl = {"paper": g - math.log(g) - 1, "released": 1 / g + math.log(g) - 1}[c.kl_form]
            bound = 10.0 if c.kl_form == "released" and c.kl_cap is None else c.kl_cap
            kl = kl if bound is None else max(-bound, min(bound, kl))
            weight = 1.0 if batch["correct"][i] else c.wrong_weight
            sign = 1 if c.entropy_sign == "entropy" else -1
            objective = gain + c.gamma * weight * kl + sign * (c.eta1 * lp + c.eta2 * neg)
            row.append(-objective)
        rows.append(row)
    tokens = [x for row in rows for x in row]
    if c.aggregation in ("question", "token", "micro_batch"):  # all rows are of one question
        return sum(tokens) / len(tokens)
    if c.aggregation == "sequence":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(tokens) / (len(rows) * c.constant_length)


@pytest.mark.parametrize("switches", [
    {}, {"kl_form": "released"}, {"dual_clip": 1.5}, {"kl_cap": 0.1}, {"entropy_sign": "printed"}, {"gamma": 0.0},
    {"aggregation": "sequence"}, {"aggregation": "constant", "constant_length": 9}, {"aggregation": "micro_batch"},
    {"wrong_weight": 0.0}, {"wrong_weight": 0.5}, {"eta1": 0.0, "eta2": 0.0}, {"epsilon_low": 0.1},
    {"epsilon_high": 0.2},
], ids=str)
def test_tapo_loss_equals_the_slow_loops(switches):
    config = L.LossConfig(**(STRONG | switches))
    for seed in range(3):
        batch = random_batch(seed)
        close(L.tapo_loss(**batch, config=config)[0], slow_loss(batch, config), 1e-10)
    batch, names = random_batch(11), ("per_token_logps", "negative_per_token_logps")
    leaves = [batch[name].requires_grad_() for name in names]
    loss = lambda *x: L.tapo_loss(**(batch | dict(zip(names, x))), config=config)[0]
    assert gradcheck(loss, leaves, eps=1e-7, atol=1e-6)


def test_presets_are_the_paper_and_its_relatives():
    batch = random_batch(7)
    for config in (L.TAPO, L.DAPO, L.GRPO):
        close(L.tapo_loss(**batch, config=config)[0], slow_loss(batch, config), 1e-10)
    assert (L.TAPO.gamma, L.TAPO.eta1, L.TAPO.eta2) == (0.01, 0.03, 0.03)
    assert (L.TAPO.epsilon_low, L.TAPO.epsilon_high, L.TAPO.dual_clip) == (0.2, 0.28, None)
    assert (L.DAPO.gamma, L.DAPO.eta1, L.DAPO.eta2, L.DAPO.epsilon_high) == (0.0, 0.0, 0.0, 0.28)
    assert (L.GRPO.epsilon_high, L.GRPO.aggregation, L.GRPO.filter_rule) == (0.2, "sequence", "none")
    assert (L.DR_GRPO.advantage_scale, L.DR_GRPO.aggregation, L.DR_GRPO.gamma) == ("none", "constant", 0.0)
    with pytest.raises(ValueError, match="constant_length"):  # it would otherwise depend on the padding
        L.tapo_loss(**batch, config=L.DR_GRPO)


def test_released_preset_is_every_switch_of_the_released_code():
    r = L.RELEASED
    assert (r.update_image, r.old_image, r.kl_form, r.negative_grad) == ("own", "own", "released", False)
    assert (r.dual_clip, r.aggregation, r.filter_rule) == (3.0, "micro_batch", "released")
    batch = random_batch(4)
    logps, negative = (batch[f"{name}per_token_logps"].requires_grad_() for name in ("", "negative_"))
    L.tapo_loss(**batch, config=r)[0].backward()
    assert negative.grad is None and logps.grad.abs().sum() > 0


def test_metrics_are_the_parts_of_the_loss():
    batch, c = random_batch(2), L.LossConfig(**STRONG, dual_clip=1.5)
    loss, m = L.tapo_loss(**batch, config=c)
    parts = m["policy_loss"] - c.gamma * m["inter_kl"] + c.eta1 * m["entropy"] + c.eta2 * m["negative_entropy"]
    close(parts, loss.item(), 1e-10)
    close(m["loss"], loss.item(), 1e-10)
    keep = batch["completion_mask"].bool()
    ratio = (batch["per_token_logps"] - batch["old_per_token_logps"]).exp()[keep]
    a = batch["advantages"].unsqueeze(1).expand(6, 5)[keep]
    close(m["ratio"], ratio.mean().item(), 1e-10)
    clipped = {"low": (ratio < 0.8) & (a < 0), "high": (ratio > 1.28) & (a > 0), "dual": (ratio > 1.5) & (a < 0)}
    for name, where in clipped.items():
        close(m[f"clip_ratio_{name}"], where.double().mean().item(), 1e-10)
        assert where.any()


def test_gradient_switches_of_the_loss():
    def gradients(**switches):
        batch = random_batch(5)
        leaves = [batch[f"{n}per_token_logps"].requires_grad_() for n in ("", "negative_", "old_")]
        L.tapo_loss(**batch, config=L.LossConfig(**(STRONG | switches)))[0].backward()
        assert leaves[2].grad is None  # old log-probs never carry a gradient
        return leaves[0].grad, leaves[1].grad

    mask = random_batch(5)["completion_mask"].double()
    n = mask.sum()
    with_h, negative_grad = gradients()
    without_h, printed = gradients(entropy_grad=False)[0], gradients(entropy_sign="printed")[0]
    close(with_h - without_h, (-0.2 / n * mask).tolist(), 1e-10)  # d(eta1 * mean(-log p)) / d log p
    close(printed - without_h, (0.2 / n * mask).tolist(), 1e-10)
    assert gradients(negative_grad=False)[1] is None
    only_entropy = gradients(gamma=0.0)[1]
    close(only_entropy, (-0.15 / n * mask).tolist(), 1e-10)  # eta2's term trains the negative branch
    assert not torch.allclose(only_entropy, negative_grad)


@pytest.mark.parametrize("field, value", [
    ("kl_form", "k3"), ("aggregation", "mean"), ("update_image", "own"), ("entropy_sign", "-"),
    ("epsilon_low", 1.0), ("epsilon_high", -0.1), ("dual_clip", 1.0), ("filter_rule", "dapo"),
    ("advantage_scale", "batch"), ("old_image", "positive"),
])
def test_nonsense_is_rejected(field, value):
    with pytest.raises(ValueError, match=field):
        L.LossConfig(**{field: value})
    uses = {"kl_form": (L.inter_class_kl, X, X), "aggregation": (L.aggregate, X, MASK),
            "filter_rule": (L.keep_groups, X[0], 3), "advantage_scale": (L.group_advantages, X[0], 3)}
    if field in uses:
        function, *arguments = uses[field]
        with pytest.raises(ValueError, match=field):
            function(*arguments, value)
