r"""The loss of TAPO and of its relatives, as plain functions on tensors.

Letters: B rollouts (rows), G rollouts of one question (a group, n1 + n2), C completion tokens, V vocabulary.

The objective of Fine-R1 (arXiv 2602.07605, eq. 4), its sign turned. For each token, with ``rho = pi / pi_old`` and
``g = pi / pi_neg``:

    A    = (r - mean r) / (std r + 1e-6)                  over the G pooled rewards   group_advantages
    loss = - min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A)               policy_loss_terms
           - gamma (g - log g - 1)                                                    inter_class_kl
           + eta1 H[pi] + eta2 H[pi_neg]                                              entropy_terms
    TAPO = mean of it over the completion tokens of a question, then over questions   aggregate, tapo_loss
    and only groups with 0 < number of correct rollouts < G take part                 keep_groups

Where paper and released code (PKU-ICST-MIPL/FineR1_ICLR2026, commit 84cdc5c) differ, `LossConfig` has a named
field whose default is the paper's. Departures from the paper's letter, and why:

1. H is the entropy (sampled: ``-log p``) and is made smaller, as the released code does. The paper prints
   ``log pi`` for H, which would reward entropy; ``entropy_sign="printed"`` is that.
2. Log-ratios are clamped to +-20 before ``exp``, as in the released code: no inf.
3. The paper does not say under which image the *old* log-probs of a positive's rollout are taken. Here: the
   anchor, so that the ratio starts at 1; ``old_image="own"`` is importance-corrected (`condition_logps`).

CLS-RL is `GRPO` without SFT before it, No-Thinking-RL is that with `rewards.bare_reward` and bare questions.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .logprobs import fp32

AGGREGATIONS = ("question", "token", "micro_batch", "sequence", "constant")
CHOICES = {
    "update_image": ("anchor", "own"), "old_image": ("anchor", "own"), "kl_form": ("paper", "released"),
    "entropy_sign": ("entropy", "printed"), "aggregation": AGGREGATIONS, "advantage_scale": ("std", "none"),
    "filter_rule": ("paper", "released", "none"),
}  # fmt: skip


def _check(**given) -> None:
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name} is {value!r}; choose one of {CHOICES[name]}")


@dataclass(frozen=True)
class LossConfig:
    """Every switch of the loss. Default: the paper's value. In brackets: the released code's, if different."""

    gamma: float = 0.01  # weight of the inter-class KL
    eta1: float = 0.03  # weight of H[pi]
    eta2: float = 0.03  # weight of H[pi_neg]
    epsilon_low: float = 0.2
    epsilon_high: float = 0.28
    dual_clip: float | None = None  # [3.0] ceiling on the ratio where A < 0
    update_image: str = "anchor"  # ["own"] image under which a positive's rollout is scored
    old_image: str = "anchor"  # ["own"] image under which its old log-probs are taken
    kl_form: str = "paper"  # ["released"] see inter_class_kl
    kl_cap: float | None = None  # None: no cap for "paper", 10 for "released"
    negative_grad: bool = True  # [False] gradient through pi_neg, in the KL and in H[pi_neg]
    wrong_weight: float = 1.0  # weight of the KL on wrong rollouts; 0: correct ones only
    entropy_sign: str = "entropy"  # or "printed": H = log pi, the paper's letter
    entropy_grad: bool = True  # gradient of H[pi]
    aggregation: str = "question"  # ["micro_batch"] see aggregate
    constant_length: int | None = None  # tokens, the denominator of "constant"
    advantage_scale: str = "std"  # or "none": Dr. GRPO
    filter_rule: str = "paper"  # ["released"] or "none", see keep_groups

    def __post_init__(self):
        _check(**{name: getattr(self, name) for name in CHOICES})
        if self.update_image == "own" and self.old_image == "anchor":
            raise ValueError("update_image='own' needs old_image='own': the ratio must start at 1 on-policy")
        if not 0 <= self.epsilon_low < 1 or self.epsilon_high < 0 or (self.dual_clip or 2) <= 1:
            raise ValueError("epsilon_low must lie in [0, 1), epsilon_high be 0 or more, dual_clip above 1 or None")


TAPO = LossConfig()
RELEASED = LossConfig(
    update_image="own", old_image="own", kl_form="released", negative_grad=False, dual_clip=3.0,
    aggregation="micro_batch", filter_rule="released",
)  # fmt: skip
DAPO = LossConfig(gamma=0.0, eta1=0.0, eta2=0.0, aggregation="token")
GRPO = replace(DAPO, epsilon_high=0.2, aggregation="sequence", filter_rule="none")
DR_GRPO = replace(GRPO, aggregation="constant", advantage_scale="none")  # set constant_length, the longest completion


def group_advantages(rewards: Tensor, num_generations: int, scale: str = "std") -> Tensor:
    """Rewards relative to their group, (r - mean) / (std + 1e-6) with the unbiased std (A in eq. 4): (B,) -> (B,).

    A group is num_generations consecutive rows: n1 rollouts of the anchor and n2 of the positive, pooled.
    scale="none" leaves out the division (Dr. GRPO).
    """
    _check(advantage_scale=scale)
    if num_generations < 2:
        raise ValueError(f"num_generations is {num_generations}; a group needs at least 2 rollouts")
    grouped = fp32(rewards).view(-1, num_generations)
    equal = (grouped == grouped[:, :1]).all(dim=1, keepdim=True)  # rounding of the mean must not look like a signal
    centred = (grouped - grouped.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)
    if scale == "std":
        centred = centred / (grouped.std(dim=1, keepdim=True) + 1e-6)
    return centred.reshape(-1)


def keep_groups(accuracies: Tensor, num_generations: int, rule: str = "paper") -> Tensor:
    """Which groups take part: (B,) accuracies -> bool (B/G,).

    "paper": 0 < number of correct ones (accuracy above 0.5) < G. "released": 0.01 < mean accuracy < 0.99, and
    all groups if none survives. "none": all groups (GRPO).
    """
    _check(filter_rule=rule)
    grouped = fp32(accuracies).view(-1, num_generations)
    if rule == "paper":
        correct = (grouped > 0.5).sum(dim=1)
        return (correct > 0) & (correct < num_generations)
    mean = grouped.mean(dim=1)
    kept = (mean > 0.01) & (mean < 0.99)
    return kept if rule == "released" and kept.any() else torch.ones_like(kept)


def entropy_terms(per_token_logps: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
    """H per token: the sampled -log p of drawn tokens (B, C), which the loss takes, or exact, of logits (..., V)."""
    if logits is None:
        return -fp32(per_token_logps)
    logits = fp32(logits)
    return logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * logits).sum(dim=-1)


def condition_logps(
    anchor_logps: Tensor | None, own_logps: Tensor | None, update_image: str = "anchor", old_image: str = "anchor",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Which image conditions the update: -> (current, old) log-probs (B, C), the old ones without gradient.

    anchor_logps: all rollouts scored under their anchor; own_logps: under the image that produced each. One that
    neither switch names may be None. anchor, anchor is the paper's text: the ratio starts at 1, steady, biased.
    anchor, own is importance-corrected; own, own is the released code, on-policy.
    """
    current = anchor_logps if update_image == "anchor" else own_logps
    old = anchor_logps if old_image == "anchor" else own_logps
    return current, old.detach()


def _log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (fp32(log_p) - fp32(log_q)).clamp(-20.0, 20.0)


def policy_loss_terms(
    per_token_logps: Tensor, old_per_token_logps: Tensor, advantages: Tensor, epsilon_low: float = 0.2,
    epsilon_high: float = 0.28, dual_clip: float | None = None,
) -> Tensor:  # fmt: skip
    """The clipped policy loss, to be made smaller: -min(rho A, clip(rho) A). (B, C), (B, C), (B,) -> (B, C).

    epsilon_high > epsilon_low is clip-higher (DAPO). dual_clip c: where A < 0 the loss is at most -c A.
    """
    ratio = _log_ratio(per_token_logps, old_per_token_logps).exp()
    advantages = fp32(advantages).unsqueeze(1)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clip_indicators(
    per_token_logps: Tensor, old_per_token_logps: Tensor, advantages: Tensor, epsilon_low: float = 0.2,
    epsilon_high: float = 0.28, dual_clip: float | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """1.0 where the bound "low", "high" or "dual" of `policy_loss_terms` leaves no gradient: (B, C) each."""
    ratio = _log_ratio(per_token_logps, old_per_token_logps).detach().exp()
    advantages = advantages.unsqueeze(1)
    flags = {
        "low": (ratio < 1 - epsilon_low) & (advantages < 0),
        "high": (ratio > 1 + epsilon_high) & (advantages > 0),
        "dual": (ratio > (dual_clip or math.inf)) & (advantages < 0),
    }
    return {name: flag.to(ratio.dtype) for name, flag in flags.items()}


def inter_class_kl(
    per_token_logps: Tensor, negative_per_token_logps: Tensor, form: str = "paper", negative_grad: bool = True,
    correct: Tensor | None = None, wrong_weight: float = 1.0, cap: float | None = None,
) -> Tensor:  # fmt: skip
    """How much a token depends on its image and not on the look-alike's: (B, C), (B, C) -> (B, C).

    With x = log pi - log pi_neg, so g = e^x:

        "paper"             g - log g - 1 = e^x - x - 1      grows with e^x where the image raises p
        "released"      1/g - log 1/g - 1 = e^-x + x - 1     k3 of the inverse ratio: grows with x only

    x is clamped to +-20 and the value to cap (None: no cap for "paper", 10 for "released"); there the gradient is 0.
    negative_grad=False takes pi_neg as a constant. wrong_weight multiplies rollouts that are not correct (B,).
    """
    _check(kl_form=form)
    x = _log_ratio(per_token_logps, negative_per_token_logps if negative_grad else negative_per_token_logps.detach())
    kl = x.expm1() - x if form == "paper" else (-x).expm1() + x  # expm1: exact, and not negative, near x = 0
    cap = 10.0 if cap is None and form == "released" else cap
    kl = kl if cap is None else kl.clamp(max=cap)
    if wrong_weight != 1.0:
        kl = kl * torch.where(correct.bool(), 1.0, wrong_weight).to(kl.dtype).unsqueeze(1)
    return kl


def count_items(mask: Tensor, how: str = "token", size: int | None = None) -> int:
    """The denominator of `aggregate` for a step, from its mask (B, C). size: rows of a micro-batch or a question."""
    if how == "token":
        return int(mask.sum())
    return math.ceil(mask.shape[0] / size) if how in ("micro_batch", "question") else mask.shape[0]


def aggregate(
    per_token: Tensor, mask: Tensor, how: str = "token", num_items: float | None = None,
    constant_length: int | None = None, question_tokens: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Values per token (B, C) under mask (B, C) -> scalar.

        "question"     sum of the questions' means / num_items  num_items: its questions    TAPO, eq. 4
        "token"        sum over tokens / num_items          num_items: tokens of the step   DAPO
        "micro_batch"  mean over these tokens / num_items   num_items: its micro-batches    released code
        "sequence"     sum of the rows' means / num_items   num_items: its rows             GRPO
        "constant"     sum / (num_items * constant_length)  num_items: its rows             Dr. GRPO

    num_items defaults to what this tensor holds. question_tokens: of each row's question, in all its rollouts (B,);
    without it all rows are of one question. With the count of a whole step (`count_items`) the results of its
    micro-batches add up, for any cut but that of "micro_batch". Values where mask is 0 are never read, not even NaN.
    """
    _check(aggregation=how)
    kept = fp32(per_token).masked_fill(mask == 0, 0.0)  # a product would let a masked -inf or NaN through
    if how == "question":
        tokens = (mask.sum() if question_tokens is None else question_tokens).clamp(min=1)
        items = (mask.sum(dim=1).to(kept.dtype) / tokens).sum().clamp(min=1) if num_items is None else max(num_items, 1)
        return (kept.sum(dim=1) / tokens).sum() / items
    if num_items is None:
        num_items = 1 if how == "micro_batch" else count_items(mask, how)
    num_items = max(num_items, 1)
    if how == "token":
        return kept.sum() / num_items
    if how == "micro_batch":
        return kept.sum() / mask.sum().clamp(min=1) / num_items
    if how == "sequence":
        return (kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum() / num_items
    if not constant_length:
        raise ValueError("'constant' needs constant_length, the longest completion that may be sampled")
    return kept.sum() / (num_items * constant_length)


def tapo_loss(
    per_token_logps: Tensor, old_per_token_logps: Tensor | None, advantages: Tensor, completion_mask: Tensor,
    negative_per_token_logps: Tensor | None = None, config: LossConfig = TAPO, num_items: float | None = None,
    correct: Tensor | None = None, question_tokens: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """The whole loss of a micro-batch, to be made smaller, and its parts: -> (scalar, metrics).

    (B, C): log-probs and mask; old None is the policy itself (one update per batch), negative None is for gamma =
    eta2 = 0. (B,): advantages, correct, question_tokens. With num_items, see `aggregate`, losses and metrics of
    micro-batches add up. On the first update policy_loss is about 0 (the ratio is 1), its gradient is not.
    """
    c, sign = config, 1 if config.entropy_sign == "entropy" else -1
    logps, old = per_token_logps, per_token_logps if old_per_token_logps is None else old_per_token_logps
    arguments = (logps, old.detach(), advantages, c.epsilon_low, c.epsilon_high, c.dual_clip)
    total = policy_loss_terms(*arguments)
    parts = {"policy_loss": total, "ratio": _log_ratio(*arguments[:2]).exp()}
    if c.eta1:
        parts["entropy"] = sign * entropy_terms(logps if c.entropy_grad else logps.detach())
        total = total + c.eta1 * parts["entropy"]
    if c.gamma or c.eta2:
        if negative_per_token_logps is None:
            raise ValueError("gamma or eta2 is not 0: give negative_per_token_logps, or use the DAPO preset")
        negative = negative_per_token_logps if c.negative_grad else negative_per_token_logps.detach()
        weight = {"correct": correct, "wrong_weight": c.wrong_weight}
        parts["inter_kl"] = inter_class_kl(logps, negative, c.kl_form, cap=c.kl_cap, **weight)
        parts["negative_entropy"] = sign * entropy_terms(negative)
        total = total - c.gamma * parts["inter_kl"] + c.eta2 * parts["negative_entropy"]
    parts |= {f"clip_ratio_{name}": flags for name, flags in clip_indicators(*arguments).items()}
    how = (completion_mask, c.aggregation, num_items, c.constant_length, question_tokens)
    means = [aggregate(part, *how) for part in (total, *parts.values())]
    return means[0], dict(zip(["loss", *parts], torch.stack(means).detach().tolist()))
