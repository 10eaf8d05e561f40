"""losses.py against values worked out by hand, loops written from the equations, and finite differences."""

import ast
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from finer1_lite import losses as L

F64 = torch.float64


def close(actual, expected, tolerance=1e-6):
    """Assert equality of a tensor (or float) and nested lists of floats."""
    actual = torch.as_tensor(actual, dtype=F64).detach()
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=tolerance, atol=tolerance)


def random_batch(seed=0, rows=6, tokens=5, group=3, dtype=F64):
    """A batch with ratios on both sides of every clip bound, unequal lengths and a group of three."""
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


@pytest.mark.parametrize("name, allowed", [
    ("losses", {"torch"}), ("samplers", {"numpy"}), ("rewards", set()),
])
def test_the_heart_imports_nothing_of_ours(name, allowed):
    tree = ast.parse(Path(L.__file__).with_name(f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in imported} - sys.stdlib_module_names == allowed


# ---- advantages


def test_group_advantages_by_hand():
    # group 1: mean 1/2, deviations +-1/2, unbiased std sqrt(4 * 1/4 / 3); group 2: mean 1/4, std 1/2
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=F64)
    a, b = 0.5 / (math.sqrt(1 / 3) + 1e-6), 1 / (0.5 + 1e-6)
    close(L.group_advantages(rewards, 4), [a, -a, a, -a, 0.75 * b, -0.25 * b, -0.25 * b, -0.25 * b], 1e-12)
    plain = [0.5, -0.5, 0.5, -0.5, 0.75, -0.25, -0.25, -0.25]
    close(L.group_advantages(rewards, 4, scale="none"), plain, 1e-12)


def test_group_advantages_eps_is_outside_the_root():
    rewards = torch.tensor([0.0, 1e-6], dtype=F64)  # std 7.07e-7 is smaller than eps
    half = 0.5e-6 / (1e-6 / math.sqrt(2) + 1e-6)
    close(L.group_advantages(rewards, 2), [-half, half], 1e-12)


def test_group_advantages_of_equal_rewards_are_zero():
    assert L.group_advantages(torch.full((10,), 0.9), 5).abs().max() < 1e-6
    assert torch.equal(L.group_advantages(torch.zeros(4), 2), torch.zeros(4))


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, 1.0])
def test_rounding_of_the_mean_is_no_signal(reward, scale):
    """In fp32 the mean of twelve times 0.7 is not 0.7; over std + 1e-6 that grew to an advantage of 0.1."""
    mixed = torch.tensor([reward] * 12 + [0.0, 0.0, 1.0, 1.0] * 3)
    advantages = L.group_advantages(mixed, 12, scale).view(2, 12)
    assert torch.equal(advantages[0], torch.zeros(12)) and advantages[1].abs().min() > 0.4


@pytest.mark.parametrize("rows, group, message", [
    (4, 1, "at least 2"), (5, 2, "whole groups"), (4, 0, "at least 2"),
])
def test_group_errors(rows, group, message):
    with pytest.raises(ValueError, match=message):
        L.group_advantages(torch.zeros(rows), group)


def test_keep_groups_paper_rule():
    accuracies = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0]).float()
    assert L.keep_groups(accuracies, 3).tolist() == [False, False, True, True]
    assert L.keep_groups(torch.zeros(6), 3).tolist() == [False, False]


def test_keep_groups_released_rule():
    few = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert L.keep_groups(few, 2, rule="released").tolist() == [False, False, True]
    assert L.keep_groups(torch.tensor([0.0, 0.0, 1.0, 1.0]), 2, rule="released").tolist() == [True, True]
    wide = torch.zeros(200)
    # 1 of 100 right: a mean of 0.01 is not above the released bound, while the paper's rule keeps the group
    wide[0], wide[100:] = 1.0, 1.0
    wide[100] = 0.0
    assert L.keep_groups(wide, 100, rule="paper").tolist() == [True, True]
    mixed = torch.cat([wide, torch.tensor([1.0, 0.0] * 50)])
    assert L.keep_groups(mixed, 100, rule="released").tolist() == [False, False, True]


def test_keep_groups_without_rule():
    assert L.keep_groups(torch.zeros(4), 2, rule="none").tolist() == [True, True]
    assert L.keep_groups(torch.tensor([1.0, 0.0, 0.0, 0.0]), 2, rule="none").tolist() == [True, True]


def test_overlong_penalty_by_hand():
    lengths = torch.tensor([0, 8, 9, 10, 12, 13, 50])
    close(L.overlong_penalty(lengths, max_length=12, buffer=4), [0, 0, -0.25, -0.5, -1, -1, -1])
    with pytest.raises(ValueError, match="buffer"):
        L.overlong_penalty(lengths, max_length=12, buffer=0)


# ---- log-probs


def test_completion_mask_by_hand():
    ids = torch.tensor([[5, 6, 2, 7], [2, 2, 2, 2], [5, 6, 7, 8], [5, 2, 9, 2], [9, 9, 9, 2]])
    expected = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert L.completion_mask(ids, eos_id=2).tolist() == expected


def test_selective_log_softmax_by_hand_and_by_loop():
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(9.0), 0.0]]], dtype=F64)
    close(L.selective_log_softmax(logits, torch.tensor([[1, 1]])), [[math.log(0.75), math.log(0.1)]], 1e-12)
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 7, generator=g, dtype=F64)
    ids = torch.randint(0, 7, (2, 3), generator=g)
    for b in range(2):
        for t in range(3):
            p = logits[b, t].exp() / logits[b, t].exp().sum()
            close(L.selective_log_softmax(logits, ids)[b, t], p[ids[b, t]].log().item(), 1e-12)


def test_selective_log_softmax_survives_huge_logits():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]])
    close(L.selective_log_softmax(logits, torch.tensor([[0]])), [[0.0]])
    close(L.selective_log_softmax(logits, torch.tensor([[1]])), [[-2e4]])


def test_entropy_terms_by_hand():
    close(L.entropy_terms(torch.tensor([[0.25, 1.0]], dtype=F64).log()), [[math.log(4.0), 0.0]], 1e-12)
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=F64)
    close(L.entropy_terms(logits=p.log() + 5.0), [1.5 * math.log(2.0), math.log(3.0)], 1e-12)
    with pytest.raises(ValueError, match="either"):
        L.entropy_terms()


def test_full_entropy_ignores_suppressed_ids():
    logits = torch.tensor([[0.3, -0.7, -torch.inf]], dtype=F64, requires_grad=True)
    entropy = L.entropy_terms(logits=logits)
    entropy.sum().backward()
    close(entropy, L.entropy_terms(logits=logits[:, :2].detach()), 1e-12)
    assert torch.isfinite(logits.grad).all() and logits.grad[0, 2] == 0


def test_sampled_entropy_is_the_full_entropy_on_average():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    expected_sample = (p * L.entropy_terms(p.log().unsqueeze(0))[0]).sum()
    close(expected_sample, L.entropy_terms(logits=p.log()), 1e-12)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logps_equal_the_naive_ones(chunk_size, temperature):
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(11, 4, generator=g, dtype=F64, requires_grad=True)
    weight = torch.randn(13, 4, generator=g, dtype=F64, requires_grad=True)
    ids = torch.randint(0, 13, (11,), generator=g)
    upstream = torch.randn(2, 11, generator=g, dtype=F64)

    def with_gradients(logps, entropies):
        total = (upstream[0] * logps + upstream[1] * entropies).sum()
        return (logps, entropies, *torch.autograd.grad(total, (hidden, weight)))

    logits = hidden @ weight.T / temperature
    log_p = torch.log_softmax(logits, dim=-1)
    naive = with_gradients(log_p[torch.arange(11), ids], -(log_p.exp() * log_p).sum(-1))
    ours = with_gradients(*L.chunked_logps(hidden, weight, ids, chunk_size, temperature, entropy=True))
    for a, b in zip(ours, naive):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    alone = L.chunked_logps(hidden, weight, ids, chunk_size, temperature)
    torch.testing.assert_close(alone, naive[0], rtol=1e-10, atol=1e-12)


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

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
            loss = L.chunked_logps(hidden, weight, ids, chunk_size=chunk).sum()
        loss.backward()
    assert largest.numel == chunk * vocabulary  # at any moment, forward or backward
    assert max(saved, default=0) <= vocabulary * width  # kept between the two: inputs, never logits
    with _LargestTensor() as naive:
        L.selective_log_softmax(hidden @ weight.T, ids)
    assert naive.numel == rows * vocabulary  # the measure does see what the naive version makes


def test_chunked_logps_reject_unequal_rows():
    with pytest.raises(ValueError, match="same tokens"):
        L.chunked_logps(torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("update, old, expected", [
    ("anchor", "anchor", (1.0, 1.0)), ("anchor", "own", (1.0, 2.0)), ("own", "own", (2.0, 2.0)),
])
def test_condition_logps(update, old, expected):
    anchor, own = torch.full((1, 1), 1.0, requires_grad=True), torch.full((1, 1), 2.0, requires_grad=True)
    current, before = L.condition_logps(anchor, own, update, old)
    assert (current.item(), before.item()) == expected
    assert current.requires_grad and not before.requires_grad


def test_condition_logps_needs_only_what_it_uses():
    given = torch.zeros(1, 1)
    L.condition_logps(given, None, "anchor", "anchor")
    L.condition_logps(None, given, "own", "own")
    with pytest.raises(ValueError, match="not given"):
        L.condition_logps(given, None, "anchor", "own")


def test_importance_correction_is_unbiased_before_clipping():
    # Two answers; x_pos draws with q, the anchor has p. "own" must give E_p[A]; "anchor" gives E_q[A].
    p, q = torch.tensor([0.8, 0.2], dtype=F64), torch.tensor([0.4, 0.6], dtype=F64)
    advantages = torch.tensor([1.0, -0.5], dtype=F64)
    current, old = L.condition_logps(p.log()[:, None], q.log()[:, None], "anchor", "own")
    corrected = -L.policy_loss_terms(current, old, advantages, epsilon_low=0.99, epsilon_high=1e9)[:, 0]
    close((q * corrected).sum(), (p * advantages).sum().item(), 1e-12)
    current, old = L.condition_logps(p.log()[:, None], None, "anchor", "anchor")
    habit = -L.policy_loss_terms(current, old, advantages)[:, 0]
    close((q * habit).sum(), (q * advantages).sum().item(), 1e-12)


# ---- policy loss


POLICY_CASES = [  # ratio, A, loss to minimise, gradient with respect to log pi, which bound is active
    (1.0, 2.0, -2.0, -2.0, None), (1.2, 1.0, -1.2, -1.2, None), (1.27, 1.0, -1.27, -1.27, None),
    (1.5, 1.0, -1.28, 0.0, "high"), (0.5, 1.0, -0.5, -0.5, None), (1.5, -1.0, 1.5, 1.5, None),
    (0.5, -1.0, 0.8, 0.0, "low"), (0.9, -2.0, 1.8, 1.8, None), (5.0, -1.0, 3.0, 0.0, "dual"),
    (2.9, -1.0, 2.9, 2.9, None), (5.0, 1.0, -1.28, 0.0, "high"), (5.0, 0.0, 0.0, 0.0, None),
]


@pytest.mark.parametrize("ratio, advantage, loss, gradient, bound", POLICY_CASES)
def test_policy_loss_by_hand(ratio, advantage, loss, gradient, bound):
    logps = torch.tensor([[math.log(ratio) - 1.0]], dtype=F64, requires_grad=True)
    arguments = (torch.full((1, 1), -1.0, dtype=F64), torch.tensor([advantage], dtype=F64), 0.2, 0.28, 3.0)
    value = L.policy_loss_terms(logps, *arguments)
    value.sum().backward()
    close(value, [[loss]], 1e-12)
    close(logps.grad, [[gradient]], 1e-12)
    flags = L.clip_indicators(logps, *arguments)
    assert {name for name, flag in flags.items() if flag.item()} == ({bound} if bound else set())


def test_policy_loss_without_dual_clip_is_unbounded_for_negative_advantages():
    ratio_5 = torch.tensor([[math.log(5.0)]], dtype=F64)
    close(L.policy_loss_terms(ratio_5, torch.zeros(1, 1, dtype=F64), torch.tensor([-1.0])), [[5.0]], 1e-12)
    assert L.clip_indicators(ratio_5, torch.zeros(1, 1, dtype=F64), torch.tensor([-1.0]))["dual"].item() == 0


def test_log_ratio_clamp():
    logps = torch.tensor([[50.0, 3.0]], dtype=F64, requires_grad=True)
    value = L.policy_loss_terms(logps, torch.zeros(1, 2, dtype=F64), torch.tensor([-1.0]),
        log_ratio_clamp=20.0)
    value.sum().backward()
    close(value, [[math.exp(20.0), math.exp(3.0)]], 1e-12)
    close(logps.grad, [[0.0, math.exp(3.0)]], 1e-12)


# ---- inter-class KL

LOG2, LOG4 = math.log(2.0), math.log(4.0)
KL_CASES = [  # form, x = log pi - log pi_neg, value, d/d log pi
    ("paper", LOG2, 1 - LOG2, 1.0), ("paper", -LOG2, -0.5 + LOG2, -0.5), ("paper", LOG4, 3 - LOG4, 3.0),
    ("released", LOG2, -0.5 + LOG2, 0.5), ("released", -LOG2, 1 - LOG2, -1.0),
    ("kl", LOG2, LOG2, 1.0), ("kl", -LOG2, -LOG2, 1.0), ("abs", -LOG2, LOG2, -1.0), ("abs", LOG2, LOG2, 1.0),
    ("mse", -3.0, 4.5, -3.0), ("released", -5.0, 10.0, 0.0), ("released", 30.0, 10.0, 0.0),
    ("paper", 30.0, math.exp(20.0) - 21, 0.0), ("paper", -30.0, math.exp(-20.0) + 19, 0.0),
]


@pytest.mark.parametrize("form, x, value, slope", KL_CASES)
def test_inter_class_kl_by_hand(form, x, value, slope):
    logps = torch.tensor([[x - 1.0]], dtype=F64, requires_grad=True)
    negative = torch.full((1, 1), -1.0, dtype=F64, requires_grad=True)
    kl = L.inter_class_kl(logps, negative, form)
    kl.sum().backward()
    close(kl, [[value]], 1e-9)
    close(logps.grad, [[slope]], 1e-9)
    close(negative.grad, [[-slope]], 1e-9)


@pytest.mark.parametrize("form", L.KL_FORMS)
def test_negative_grad_off_is_a_constant_branch(form):
    logps = torch.tensor([[-1.0]], dtype=F64, requires_grad=True)
    negative = torch.tensor([[-2.0]], dtype=F64, requires_grad=True)
    off, on = (L.inter_class_kl(logps, negative, form, negative_grad=switch) for switch in (False, True))
    close(off, on.detach().tolist())
    off.sum().backward()
    assert negative.grad is None and logps.grad.item() != 0


def test_the_two_forms_are_each_others_inverse_ratio():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 4, generator=g, dtype=F64)
    close(L.inter_class_kl(a, b, "paper"), L.inter_class_kl(b, a, "released").tolist(), 1e-12)
    # What tells them apart is the gradient at log pi: e^x - 1 grows without bound, 1 - e^-x does not.


@pytest.mark.parametrize("form", ["paper", "released"])
def test_kl_of_nearly_equal_branches_in_fp32(form):
    """x^2 / 2, where e^x - x - 1 would return rounding noise of either sign."""
    x = torch.tensor([[1e-4, -1e-4, 3e-5, -2e-5]])
    kl = L.inter_class_kl(x, torch.zeros(1, 4), form)
    torch.testing.assert_close(kl, x.square() / 2, rtol=1e-2, atol=0.0)


def test_kl_cap_and_clamp_off():
    logps, negative = torch.tensor([[3.0, -2.0, -9.0]], dtype=F64), torch.zeros(1, 3, dtype=F64)
    close(L.inter_class_kl(logps, negative, "paper", cap=2.0), [[2.0, math.exp(-2.0) + 1, 2.0]])
    close(L.inter_class_kl(logps, negative, "kl", cap=2.5), [[2.5, -2.0, -2.5]])
    big = torch.tensor([[-12.0]], dtype=F64)
    close(L.inter_class_kl(big, torch.zeros_like(big), "released", cap=math.inf), [[math.exp(12.0) - 13]])
    far = torch.tensor([[25.0]], dtype=F64)
    close(L.inter_class_kl(far, torch.zeros_like(far), log_ratio_clamp=math.inf), [[math.exp(25.0) - 26]])


def test_kl_weight_of_wrong_rollouts():
    logps, negative = torch.full((3, 2), LOG2, dtype=F64), torch.zeros(3, 2, dtype=F64)
    correct, full = torch.tensor([True, False, True]), 1 - LOG2
    close(L.inter_class_kl(logps, negative, correct=correct, wrong_weight=0.0),
        [[full] * 2, [0] * 2, [full] * 2])
    close(L.inter_class_kl(logps, negative, correct=correct, wrong_weight=-0.5)[1], [-full / 2] * 2)
    close(L.inter_class_kl(logps, negative, correct=correct), [[full] * 2] * 3)
    with pytest.raises(ValueError, match="correct"):
        L.inter_class_kl(logps, negative, wrong_weight=0.0)


# ---- aggregation

X = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0], [4.0, 6.0, 99.0]], dtype=F64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])


def test_aggregate_by_hand():
    close(L.aggregate(X, MASK, "token"), 26 / 6, 1e-12)
    close(L.aggregate(X, MASK, "micro_batch"), 26 / 6, 1e-12)
    close(L.aggregate(X, MASK, "sequence"), (2 + 10 + 5) / 3, 1e-12)
    close(L.aggregate(X, MASK, "constant", constant_length=8), 26 / (3 * 8), 1e-12)


def test_aggregate_with_the_count_of_a_larger_step():
    close(L.aggregate(X, MASK, "token", num_items=13), 26 / 13, 1e-12)
    close(L.aggregate(X, MASK, "micro_batch", num_items=2), 26 / 12, 1e-12)
    close(L.aggregate(X, MASK, "sequence", num_items=17), 1.0, 1e-12)
    close(L.aggregate(X, MASK, "constant", num_items=13, constant_length=2), 1.0, 1e-12)


def test_micro_batch_mean_depends_on_the_cut_and_no_other_does():
    def cut(how, sizes, **more):
        count = len(sizes) if how == "micro_batch" else L.count_items(MASK, how)
        parts = zip(X.split(sizes), MASK.split(sizes))
        return sum(L.aggregate(x, m, how, num_items=count, **more) for x, m in parts).item()

    close(cut("micro_batch", [1, 2]), (2 + 20 / 3) / 2)
    close(cut("micro_batch", [2, 1]), (4 + 5) / 2)
    for how in ("token", "sequence", "constant"):
        more = {"constant_length": 3} if how == "constant" else {}
        whole = L.aggregate(X, MASK, how, **more).item()
        assert all(abs(cut(how, sizes, **more) - whole) < 1e-12 for sizes in ([1, 2], [2, 1], [1, 1, 1]))


def test_count_items():
    assert [L.count_items(MASK, how) for how in ("token", "sequence", "constant")] == [6, 3, 3]
    assert [L.count_items(MASK, "micro_batch", size) for size in (1, 2, 3, 4)] == [3, 2, 1, 1]
    with pytest.raises(ValueError, match="micro_batch_size"):
        L.count_items(MASK, "micro_batch")


@pytest.mark.parametrize("form", L.KL_FORMS)
def test_masked_infinities_leave_no_trace(form):
    config = L.LossConfig(**STRONG, kl_form=form)
    batch = random_batch(8)
    hidden = batch["completion_mask"] == 0
    results = []
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
    for function in (lambda x: L.selective_log_softmax(x, ids), lambda x: L.entropy_terms(logits=x)):
        assert function(logits).dtype == torch.float32
        assert torch.equal(function(logits), function(logits.float()))
    batch = random_batch(3, dtype=torch.float32)
    low = {n: v.to(half) if v.is_floating_point() else v for n, v in batch.items()}
    up = {n: v.float() if v.is_floating_point() else v for n, v in low.items()}
    assert torch.equal(L.tapo_loss(**low)[0], L.tapo_loss(**up)[0])


def test_aggregate_of_nothing_is_zero():
    empty = torch.zeros_like(MASK)
    for how in ("token", "micro_batch", "sequence", "constant"):
        assert L.aggregate(X, empty, how, constant_length=3).item() == 0


def test_a_row_without_tokens_counts_as_a_row():
    mask = MASK.clone()
    mask[1] = 0
    close(L.aggregate(X, mask, "sequence"), (2 + 0 + 5) / 3, 1e-12)


def test_aggregate_errors():
    with pytest.raises(ValueError, match="constant_length"):
        L.aggregate(X, MASK, "constant")
    with pytest.raises(ValueError, match="how is 'mean'"):
        L.aggregate(X, MASK, "mean")


# ---- the whole loss, as slow loops


def slow_loss(batch, c, full=(None, None)):
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
            kl = {"paper": g - math.log(g) - 1, "released": 1 / g + math.log(g) - 1, "kl": math.log(g),
                  "abs": abs(math.log(g)), "mse": math.log(g) ** 2 / 2}[c.kl_form]
            bound = 10.0 if c.kl_form == "released" and c.kl_cap is None else c.kl_cap
            kl = kl if bound is None else max(-bound, min(bound, kl))
            weight = 1.0 if batch["correct"][i] else c.wrong_weight
            h, h_neg = (-lp, -neg) if c.entropy_estimate == "sampled" else (f[i, t].item() for f in full)
            sign = 1 if c.entropy_sign == "entropy" else -1
            objective = gain + c.gamma * weight * kl - sign * (c.eta1 * h + c.eta2 * h_neg)
            row.append(-objective)
        rows.append(row)
    tokens = [x for row in rows for x in row]
    if c.aggregation in ("token", "micro_batch"):
        return sum(tokens) / len(tokens)
    if c.aggregation == "sequence":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(tokens) / (len(rows) * c.constant_length)


STRONG = {"gamma": 0.3, "eta1": 0.2, "eta2": 0.15}  # weights large enough that an error in any term shows
CONFIGS = {
    "paper": {}, "released form": {"kl_form": "released"}, "kl": {"kl_form": "kl"}, "abs": {"kl_form": "abs"},
    "mse": {"kl_form": "mse"}, "dual": {"dual_clip": 1.5}, "printed": {"entropy_sign": "printed"},
    "full entropy": {"entropy_estimate": "full"}, "sequence": {"aggregation": "sequence"},
    "constant": {"aggregation": "constant", "constant_length": 9}, "micro": {"aggregation": "micro_batch"},
    "correct only": {"wrong_weight": 0.0}, "wrong half": {"wrong_weight": 0.5}, "cap": {"kl_cap": 0.1},
    "no inter": {"gamma": 0.0}, "no entropy": {"eta1": 0.0, "eta2": 0.0}, "clip": {"epsilon_low": 0.1},
    "symmetric clip": {"epsilon_high": 0.2},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_tapo_loss_equals_the_slow_loops(name, seed):
    config = L.LossConfig(**(STRONG | CONFIGS[name]))
    batch = random_batch(seed)
    full = (torch.rand(6, 5, dtype=F64), torch.rand(6, 5, dtype=F64))
    loss, _ = L.tapo_loss(**batch, config=config, entropies=full[0], negative_entropies=full[1])
    close(loss, slow_loss(batch, config, full), 1e-10)


def test_presets_are_the_paper_and_its_relatives():
    batch = random_batch(7)
    for config in (L.TAPO, L.DAPO, L.GRPO):
        close(L.tapo_loss(**batch, config=config)[0], slow_loss(batch, config), 1e-10)
    assert (L.TAPO.gamma, L.TAPO.eta1, L.TAPO.eta2) == (0.01, 0.03, 0.03)
    assert (L.TAPO.epsilon_low, L.TAPO.epsilon_high, L.TAPO.dual_clip) == (0.2, 0.28, None)
    assert (L.DAPO.gamma, L.DAPO.eta1, L.DAPO.eta2, L.DAPO.epsilon_high) == (0.0, 0.0, 0.0, 0.28)
    assert (L.GRPO.epsilon_high, L.GRPO.aggregation, L.GRPO.filter_rule) == (0.2, "sequence", "none")
    with pytest.raises(ValueError, match="constant_length"):  # it would otherwise depend on the padding
        L.tapo_loss(**batch, config=L.DR_GRPO)


def test_released_preset_is_every_switch_of_the_released_code():
    r = L.RELEASED
    assert (r.update_image, r.old_image, r.kl_form, r.negative_grad) == ("own", "own", "released", False)
    assert (r.dual_clip, r.log_ratio_clamp) == (3.0, 20.0)
    assert (r.aggregation, r.filter_rule) == ("micro_batch", "released")
    batch = random_batch(4)
    negative = batch["negative_per_token_logps"].requires_grad_()
    logps = batch["per_token_logps"].requires_grad_()
    loss, _ = L.tapo_loss(**batch, config=r)
    loss.backward()
    assert negative.grad is None and logps.grad.abs().sum() > 0


def test_metrics_are_the_parts_of_the_loss():
    batch, c = random_batch(2), L.LossConfig(**STRONG, dual_clip=1.5)
    loss, m = L.tapo_loss(**batch, config=c)
    parts = m["policy_loss"] - c.gamma * m["inter_kl"]
    parts += c.eta1 * m["entropy"] + c.eta2 * m["negative_entropy"]
    close(parts, loss.item(), 1e-10)
    close(m["loss"], loss.item(), 1e-10)
    keep = batch["completion_mask"].bool()
    ratio = (batch["per_token_logps"] - batch["old_per_token_logps"]).exp()[keep]
    a = batch["advantages"].unsqueeze(1).expand(6, 5)[keep]
    close(m["ratio"], ratio.mean().item(), 1e-10)
    close(m["clip_ratio_low"], ((ratio < 0.8) & (a < 0)).double().mean().item(), 1e-10)
    close(m["clip_ratio_high"], ((ratio > 1.28) & (a > 0)).double().mean().item(), 1e-10)
    close(m["clip_ratio_dual"], ((ratio > 1.5) & (a < 0)).double().mean().item(), 1e-10)
    assert min(m["clip_ratio_low"], m["clip_ratio_high"], m["clip_ratio_dual"]) > 0


def test_gradient_switches_of_the_loss():
    def gradients(**switches):
        batch = random_batch(5)
        logps = batch["per_token_logps"].requires_grad_()
        negative = batch["negative_per_token_logps"].requires_grad_()
        L.tapo_loss(**batch, config=L.LossConfig(**(STRONG | switches)))[0].backward()
        return logps.grad, negative.grad

    mask = random_batch(5)["completion_mask"].double()
    n = mask.sum()
    with_h, negative_grad = gradients()
    without_h, _ = gradients(entropy_grad=False)
    close(with_h - without_h, (-0.2 / n * mask).tolist(), 1e-10)  # d(eta1 * mean(-log p)) / d log p
    printed, _ = gradients(entropy_sign="printed")
    close(printed - without_h, (0.2 / n * mask).tolist(), 1e-10)
    assert gradients(negative_grad=False)[1] is None
    only_entropy = gradients(gamma=0.0)[1]
    close(only_entropy, (-0.15 / n * mask).tolist(), 1e-10)  # eta2's term trains the negative branch
    assert not torch.allclose(only_entropy, negative_grad)


def test_old_logps_default_to_the_policy_itself():
    batch = random_batch(1)
    batch["old_per_token_logps"] = batch["per_token_logps"].clone()
    explicit = L.tapo_loss(**batch)
    batch["old_per_token_logps"] = None
    implicit = L.tapo_loss(**batch)
    assert explicit[1] == implicit[1] and implicit[1]["ratio"] == 1.0


def test_old_logps_never_carry_a_gradient():
    batch = random_batch(1)
    old = batch["old_per_token_logps"].requires_grad_()
    batch["per_token_logps"].requires_grad_()
    L.tapo_loss(**batch)[0].backward()
    assert old.grad is None


@pytest.mark.parametrize("change, message", [
    ({"negative_per_token_logps": None}, "negative_per_token_logps"),
    ({"config": L.LossConfig(entropy_estimate="full")}, "entropies"),
    ({"config": L.LossConfig(wrong_weight=0.0), "correct": None}, "correct"),
])
def test_tapo_loss_names_what_is_missing(change, message):
    with pytest.raises(ValueError, match=message):
        L.tapo_loss(**(random_batch(0) | change))


@pytest.mark.parametrize("field, value", [
    ("kl_form", "k3"), ("aggregation", "mean"), ("update_image", "own"), ("entropy_sign", "-"),
    ("epsilon_low", 1.0),
    ("epsilon_high", -0.1), ("dual_clip", 1.0), ("filter_rule", "dapo"), ("advantage_scale", "batch"),
    ("old_image", "positive"), ("entropy_estimate", "top"),
])
def test_config_rejects_nonsense(field, value):
    with pytest.raises(ValueError, match=field):
        L.LossConfig(**{field: value})


# ---- gradients against finite differences


@pytest.mark.parametrize("name", CONFIGS)
def test_gradcheck_of_the_loss(name):
    config = L.LossConfig(**(STRONG | CONFIGS[name]))
    batch = random_batch(11)
    full = torch.rand(2, 6, 5, dtype=F64, requires_grad=True)

    def loss(logps, negative, entropies):
        inputs = batch | {"per_token_logps": logps, "negative_per_token_logps": negative}
        full_entropies = {"entropies": entropies[0], "negative_entropies": entropies[1]}
        return L.tapo_loss(**inputs, config=config, **full_entropies)[0]

    names = ("per_token_logps", "negative_per_token_logps")
    leaves = (*(batch[name].requires_grad_() for name in names), full)
    assert gradcheck(loss, leaves, eps=1e-7, atol=1e-6)


def test_gradcheck_of_log_probs_and_entropies():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 3, generator=g, dtype=F64, requires_grad=True)
    weight = torch.randn(4, 3, generator=g, dtype=F64, requires_grad=True)
    ids = torch.tensor([0, 3, 1, 1, 2])
    assert gradcheck(lambda h, w: L.selective_log_softmax(h @ w.T, ids), (hidden, weight))
    assert gradcheck(lambda h, w: L.entropy_terms(logits=h @ w.T), (hidden, weight))
    assert gradcheck(lambda h, w: L.chunked_logps(h, w, ids, 2, 0.8, entropy=True), (hidden, weight))


def test_loss_from_hidden_states_to_scalar():
    """The pieces together, as a training step joins them: hidden states -> log-probs -> loss -> gradient."""
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(4, 3, 5, generator=g, dtype=F64, requires_grad=True)
    weight, config = torch.randn(7, 5, generator=g, dtype=F64), L.LossConfig(**STRONG)
    ids = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6], [0, 0, 0]])
    mask = L.completion_mask(ids, eos_id=0)
    advantages = L.group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=F64), 2)

    def loss(h):
        logps = L.chunked_logps(h.reshape(12, 5), weight, ids.reshape(12), 5).view(4, 3)
        return L.tapo_loss(logps, (logps - 0.1).detach(), advantages, mask, logps.flip(1), config)[0]

    # `old` is a constant of the loss, so the reference for finite differences must hold it fixed as well.
    old = L.chunked_logps(hidden.detach().reshape(12, 5), weight, ids.reshape(12), 5).view(4, 3) - 0.1

    def fixed(h):
        logps = L.chunked_logps(h.reshape(12, 5), weight, ids.reshape(12), 5).view(4, 3)
        return L.tapo_loss(logps, old, advantages, mask, logps.flip(1), config)[0]

    assert gradcheck(fixed, hidden, eps=1e-7, atol=1e-6)
    (a,), (b,) = (torch.autograd.grad(f(hidden), hidden) for f in (loss, fixed))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
