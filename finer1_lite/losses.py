r"""The loss of TAPO and of its relatives, as plain functions on tensors. Imports torch alone.

Letters: B rollouts (rows), G rollouts of one question (a group, n1 + n2), C completion tokens, V vocabulary.

The objective of Fine-R1 (arXiv 2602.07605, eq. 4) is maximised; its negative is minimised here. For each
token, with ``rho = pi / pi_old`` and ``g = pi / pi_neg``:

    A    = (r - mean r) / (std r + 1e-6)                  over the G pooled rewards   group_advantages
    loss = - min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A)               policy_loss_terms
           - gamma (g - log g - 1)                                                    inter_class_kl
           + eta1 H[pi] + eta2 H[pi_neg]                                              entropy_terms
    TAPO = mean of it over all completion tokens of the step                          aggregate, tapo_loss
    and only groups with 0 < number of correct rollouts < G take part                 keep_groups

Where paper and released code (PKU-ICST-MIPL/FineR1_ICLR2026, commit 84cdc5c) differ, `LossConfig` has a named
field whose default is the paper's. Departures from the paper's letter, and why:

1. H is the entropy (sampled: ``-log p``) and is made smaller, as the released code does. The paper prints
   ``log pi`` for H, which would reward entropy; ``entropy_sign="printed"`` is that.
2. Log-ratios are clamped to +-20 before ``exp``; the paper names no clamp. Nothing changes until a token's
   probability has moved by a factor of 5e8; there it prevents inf. ``math.inf`` turns the clamps off.
3. The paper does not say under which image the *old* log-probs of a positive's rollout are taken. Here: the
   anchor, so that the ratio starts at 1; ``old_image="own"`` is importance-corrected (`condition_logps`).

Relatives are presets of the same loss: `TAPO`, `RELEASED`, `DAPO`, `GRPO`, `DR_GRPO`. In the loop (`Tapo`), with
all rollouts from the anchor: DAPO's overlong shaping is `TapoConfig.overlong_buffer`; CLS-RL is `GRPO` without SFT
before it; No-Thinking-RL is that with ``ask=partial(question, think=False)`` and `rewards.bare_reward`.
NoisyRollout is the positive replaced by a distorted anchor; PAPO the negative by a masked anchor (and
``kl_form="released"``): append such copies to the images, and let the triplets name them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KL_FORMS = ("paper", "released", "kl", "abs", "mse")
AGGREGATIONS = ("token", "micro_batch", "sequence", "constant")


def _one_of(name: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {allowed}")


@dataclass(frozen=True)
class LossConfig:
    """Every switch of the loss. Default: the paper's value. In brackets: the released code's, if different.

    >>> LossConfig().gamma, RELEASED.dual_clip, GRPO.aggregation
    (0.01, 3.0, 'sequence')
    >>> LossConfig(kl_form="k3")
    Traceback (most recent call last):
        ...
    ValueError: kl_form is 'k3'; choose one of ('paper', 'released', 'kl', 'abs', 'mse')
    """

    gamma: float = 0.01  # weight of the inter-class KL
    eta1: float = 0.03  # weight of H[pi]
    eta2: float = 0.03  # weight of H[pi_neg]
    epsilon_low: float = 0.2
    epsilon_high: float = 0.28
    dual_clip: float | None = None  # [3.0] ceiling on the ratio where A < 0
    log_ratio_clamp: float = 20.0  # on log pi - log pi_old
    update_image: str = "anchor"  # ["own"] image under which a positive's rollout is scored
    old_image: str = "anchor"  # ["own"] image under which its old log-probs are taken
    kl_form: str = "paper"  # ["released"] see inter_class_kl
    kl_log_ratio_clamp: float | None = None  # None: the form's own
    kl_cap: float | None = None  # None: the form's own
    negative_grad: bool = True  # [False] gradient through pi_neg, in the KL and in H[pi_neg]
    wrong_weight: float = 1.0  # weight of the KL on wrong rollouts; 0: correct ones only
    entropy_estimate: str = "sampled"  # or "full": of the whole distribution
    entropy_sign: str = "entropy"  # or "printed": H = log pi, the paper's letter
    entropy_grad: bool = True  # gradient of H[pi]
    aggregation: str = "token"  # ["micro_batch"] see aggregate
    constant_length: int | None = None  # tokens, the denominator of "constant"
    advantage_scale: str = "std"  # or "none": Dr. GRPO
    filter_rule: str = "paper"  # ["released"] or "none", see keep_groups

    def __post_init__(self):
        image = ("anchor", "own")
        choices = {
            "update_image": image, "old_image": image, "kl_form": KL_FORMS, "aggregation": AGGREGATIONS,
            "entropy_estimate": ("sampled", "full"), "entropy_sign": ("entropy", "printed"),
            "advantage_scale": ("std", "none"), "filter_rule": ("paper", "released", "none"),
        }
        for name, allowed in choices.items():
            _one_of(name, getattr(self, name), allowed)
        if self.update_image == "own" and self.old_image == "anchor":
            raise ValueError("update_image='own' needs old_image='own': the ratio must start at 1 on-policy")
        if not 0 <= self.epsilon_low < 1 or self.epsilon_high < 0:
            raise ValueError("epsilon_low must lie in [0, 1) and epsilon_high must not be negative")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip is {self.dual_clip}; it must be above 1, or None for no dual clip")


TAPO = LossConfig()
RELEASED = LossConfig(
    update_image="own", old_image="own", kl_form="released", negative_grad=False, dual_clip=3.0,
    aggregation="micro_batch", filter_rule="released",
)
DAPO = LossConfig(gamma=0.0, eta1=0.0, eta2=0.0)
GRPO = LossConfig(
    gamma=0.0, eta1=0.0, eta2=0.0, epsilon_high=0.2, aggregation="sequence", filter_rule="none",
)
DR_GRPO = LossConfig(  # replace(DR_GRPO, constant_length=...) with the longest completion that may be sampled
    gamma=0.0, eta1=0.0, eta2=0.0, epsilon_high=0.2, aggregation="constant", filter_rule="none",
    advantage_scale="none",
)


def _fp32(x: Tensor) -> Tensor:
    """Half precision is computed in fp32; fp64 stays (finite differences need it)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _keep(x: Tensor, mask: Tensor) -> Tensor:
    """x where mask, else 0. A product would turn a masked -inf into NaN, and so would its gradient."""
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


# ---- rewards -> advantages


def _groups(x: Tensor, num_generations: int) -> Tensor:
    if num_generations < 2:
        raise ValueError(f"num_generations is {num_generations}; a group needs at least 2 rollouts")
    if x.dim() != 1 or x.numel() % num_generations:
        raise ValueError(f"shape {tuple(x.shape)} does not hold whole groups of {num_generations} rollouts")
    return _fp32(x).view(-1, num_generations)


def group_advantages(rewards: Tensor, num_generations: int, scale: str = "std", eps: float = 1e-6) -> Tensor:
    """Rewards relative to their group, (r - mean) / (std + eps) with the unbiased std: (B,) -> (B,).

    A group is num_generations consecutive rows: n1 rollouts of the anchor and n2 of the positive, pooled.
    scale="none" leaves out the division (Dr. GRPO). Source: A in eq. 4; the same in the released code.

    >>> [round(a, 4) for a in group_advantages(torch.tensor([0.0, 1.0, 1.0, 1.0]), 2).tolist()]
    [-0.7071, 0.7071, 0.0, 0.0]
    """
    _one_of("scale", scale, ("std", "none"))
    grouped = _groups(rewards, num_generations)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    equal = (grouped == grouped[:, :1]).all(dim=1, keepdim=True)  # rounding of the mean must not look like a signal
    centred = centred.masked_fill(equal, 0.0)
    if scale == "std":
        centred = centred / (grouped.std(dim=1, keepdim=True) + eps)
    return centred.reshape(-1)


def keep_groups(
    accuracies: Tensor, num_generations: int, rule: str = "paper", low: float = 0.01, high: float = 0.99
) -> Tensor:
    """Which groups take part: (B,) accuracies -> bool (B/G,).

    "paper": 0 < number of correct ones (accuracy above 0.5) < G. "released": low < mean accuracy < high, and
    all groups if none survives. "none": all groups (GRPO).

    >>> keep_groups(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2).tolist()
    [True, False]
    >>> keep_groups(torch.tensor([0.0, 0.0, 1.0, 1.0]), 2, rule="released").tolist()
    [True, True]
    """
    _one_of("rule", rule, ("paper", "released", "none"))
    grouped = _groups(accuracies, num_generations)
    if rule == "paper":
        correct = (grouped > 0.5).sum(dim=1)
        return (correct > 0) & (correct < num_generations)
    mean = grouped.mean(dim=1)
    kept = (mean > low) & (mean < high)
    return kept if rule == "released" and kept.any() else torch.ones_like(kept)


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """DAPO's soft overlong punishment, to be added to the reward: (B,) token counts -> (B,) in [-1, 0].

    0 up to max_length - buffer, a straight line down to -1 at max_length, -1 beyond (DAPO, eq. 13).

    >>> overlong_penalty(torch.tensor([60, 90, 100, 101]), max_length=100, buffer=20).tolist()
    [0.0, -0.5, -1.0, -1.0]
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer is {buffer}; it must lie in 1 .. max_length ({max_length})")
    return ((max_length - buffer - lengths) / buffer).clamp(-1.0, 0.0)


# ---- logits -> log-probs


def completion_mask(completion_ids: Tensor, eos_id: int) -> Tensor:
    """1 up to and including the first EOS, 0 behind it: (B, C) ids -> (B, C) int64. No EOS: all 1.

    The pad id is not looked at, so the EOS counts also where pad = EOS; a mask made from ``ids != pad`` would
    drop it there, and stopping would never be trained.

    >>> completion_mask(torch.tensor([[5, 2, 2], [5, 6, 7]]), eos_id=2).tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    is_eos = (completion_ids == eos_id).long()
    return ((is_eos.cumsum(dim=1) - is_eos) == 0).long()


def selective_log_softmax(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probs of the given ids: (..., C, V) logits and (..., C) ids -> (..., C), in fp32 at least.

    logits[t] must be the prediction *for* ids[t], the model's output one position earlier.

    >>> selective_log_softmax(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[1]])).exp().tolist()
    [[0.5]]
    """
    logits = _fp32(logits)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


def entropy_terms(per_token_logps: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
    """H per token, from exactly one of the two.

    per_token_logps (B, C) -> (B, C): the sampled estimate -log p; its mean over tokens drawn from p is H.
    logits (..., V) -> (...): H of the whole distribution; ids with logit -inf count 0.

    >>> round(entropy_terms(logits=torch.tensor([0.0, 0.0, -torch.inf])).exp().item(), 4)
    2.0
    """
    if (per_token_logps is None) == (logits is None):
        raise ValueError("give either per_token_logps (sampled estimate) or logits (full entropy)")
    if logits is None:
        return -_fp32(per_token_logps)
    logits = _fp32(logits)
    finite = logits.masked_fill(logits == -torch.inf, 0.0)  # p is 0 there, and 0 * inf is NaN
    return logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * finite).sum(dim=-1)


def chunked_logps(
    hidden: Tensor, weight: Tensor, ids: Tensor, chunk_size: int = 256, temperature: float = 1.0,
    entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs of ids from the backbone's hidden states; an (N, V) tensor never exists.

    hidden (N, H), weight (V, H) of the lm_head, ids (N,) -> logps (N,), and entropies (N,) if asked. Equal to
    `selective_log_softmax(hidden @ weight.T / temperature, ids)`, but chunk_size rows at a time and under
    checkpointing: the backward pass makes the logits of a chunk again.

    >>> h, w, ids = torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2])
    >>> torch.allclose(chunked_logps(h, w, ids, chunk_size=2), selective_log_softmax(h @ w.T, ids))
    True
    """
    if hidden.shape[0] != ids.shape[0]:
        raise ValueError(f"hidden has {hidden.shape[0]} rows, ids {ids.shape[0]}: not the same tokens")

    def one_chunk(rows: Tensor, weight: Tensor, row_ids: Tensor) -> tuple[Tensor, ...]:
        logits = _fp32(rows @ weight.T) / temperature
        logps = selective_log_softmax(logits, row_ids)
        return (logps, entropy_terms(logits=logits)) if entropy else (logps,)

    chunks = zip(hidden.split(chunk_size), ids.split(chunk_size))
    parts = [checkpoint(one_chunk, rows, weight, row_ids, use_reentrant=False) for rows, row_ids in chunks]
    columns = tuple(torch.cat(column) for column in zip(*parts))
    return columns if entropy else columns[0]


def condition_logps(
    anchor_logps: Tensor | None, own_logps: Tensor | None, update_image: str = "anchor",
    old_image: str = "anchor",
) -> tuple[Tensor, Tensor]:
    """Which image conditions the update: -> (per_token_logps, old_per_token_logps), both (B, C).

    anchor_logps: every rollout scored under its anchor x. own_logps: under the image that produced it (x for
    the n1, x_pos for the n2). The one that is not used may be None.

    update "anchor", old "anchor": the paper's text. The ratio starts at 1, so a positive's tokens count in
        full, however unlikely they are under x: simple, steady, biased.
    update "anchor", old "own": importance-corrected, rho = pi(o|x) / pi_old(o|x_pos). Unbiased before
        clipping, but a positive's ratio starts away from 1 and clipping may silence the token at once.
    update "own", old "own": the released code, on-policy; x_pos then only widens the pool of rewards.

    Old log-probs carry no gradient. With several updates per batch, keep the old ones of the first.
    """
    current = anchor_logps if update_image == "anchor" else own_logps
    old = anchor_logps if old_image == "anchor" else own_logps
    if current is None or old is None:
        raise ValueError(f"update_image={update_image!r}, old_image={old_image!r}: log-probs were not given")
    return current, old.detach()


# ---- terms per token


def _log_ratio(log_p: Tensor, log_q: Tensor, clamp: float | None) -> Tensor:
    log_ratio = _fp32(log_p) - _fp32(log_q)
    return log_ratio if clamp is None else log_ratio.clamp(-clamp, clamp)


def policy_loss_terms(
    per_token_logps: Tensor, old_per_token_logps: Tensor, advantages: Tensor, epsilon_low: float = 0.2,
    epsilon_high: float = 0.28, dual_clip: float | None = None, log_ratio_clamp: float | None = None,
) -> Tensor:
    """The clipped policy loss, to be made smaller: -min(rho A, clip(rho) A). (B, C), (B, C), (B,) -> (B, C).

    epsilon_high > epsilon_low is clip-higher (DAPO). dual_clip c: where A < 0 the loss is at most -c A, so a
    token that became far more likely against its advantage cannot dominate; there its gradient is 0.

    >>> ratio = torch.tensor([[1.5]])
    >>> round(policy_loss_terms(ratio.log(), torch.zeros(1, 1), torch.tensor([1.0])).item(), 4)
    -1.28
    """
    ratio = _log_ratio(per_token_logps, old_per_token_logps, log_ratio_clamp).exp()
    advantages = _fp32(advantages).unsqueeze(1)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clip_indicators(
    per_token_logps: Tensor, old_per_token_logps: Tensor, advantages: Tensor, epsilon_low: float = 0.2,
    epsilon_high: float = 0.28, dual_clip: float | None = None, log_ratio_clamp: float | None = None,
) -> dict[str, Tensor]:
    """1.0 where a bound of `policy_loss_terms` is active, so that the token has no gradient: (B, C) each.

    "low": ratio < 1 - epsilon_low, A < 0. "high": ratio > 1 + epsilon_high, A > 0. "dual": ratio > dual_clip,
    A < 0. The released code logs low + high as pg_clipfrac_higher and dual as pg_clipfrac_lower.
    """
    ratio = _log_ratio(per_token_logps, old_per_token_logps, log_ratio_clamp).detach().exp()
    advantages = advantages.unsqueeze(1)
    flags = {
        "low": (ratio < 1 - epsilon_low) & (advantages < 0),
        "high": (ratio > 1 + epsilon_high) & (advantages > 0),
        "dual": (ratio > (math.inf if dual_clip is None else dual_clip)) & (advantages < 0),
    }
    return {name: flag.to(ratio.dtype) for name, flag in flags.items()}


def inter_class_kl(
    per_token_logps: Tensor, negative_per_token_logps: Tensor, form: str = "paper",
    negative_grad: bool = True, correct: Tensor | None = None, wrong_weight: float = 1.0,
    log_ratio_clamp: float | None = None, cap: float | None = None,
) -> Tensor:
    """How much the token depends on its image and not on the look-alike's: (B, C), (B, C) -> (B, C).

    With x = log pi - log pi_neg (so g = e^x) the forms are

        "paper"             g - log g - 1 = e^x - x - 1      grows with e^x where the image raises p
        "released"      1/g - log 1/g - 1 = e^-x + x - 1     k3 of the inverse ratio: grows with x only
        "kl", "abs", "mse"                  x, |x|, x^2 / 2  the released code's other estimators

    log_ratio_clamp: x is clamped to +- this first. None: 20 for the two exponential forms, no clamp for the
    others. cap: the value is clamped to +- this. None: 10 for "released", no cap for the others. `math.inf`
    turns either off; beyond a clamp there is no gradient. negative_grad=False treats pi_neg as a constant, as
    the released code does. correct (B,) and wrong_weight weigh rollouts: 1 all alike, 0 correct ones only.

    >>> logps, negative = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()  # g = 2
    >>> [round(inter_class_kl(logps, negative, form).item(), 4) for form in ("paper", "released")]
    [0.3069, 0.1931]
    """
    _one_of("form", form, KL_FORMS)
    negative = negative_per_token_logps if negative_grad else negative_per_token_logps.detach()
    if log_ratio_clamp is None and form in ("paper", "released"):
        log_ratio_clamp = 20.0
    x = _log_ratio(per_token_logps, negative, log_ratio_clamp)
    kl = {  # expm1 keeps e^x - 1 - x exact, and not negative, near x = 0
        "paper": lambda: x.expm1() - x, "released": lambda: (-x).expm1() + x,
        "kl": lambda: x, "abs": x.abs, "mse": lambda: x.square() / 2,
    }[form]()
    cap = 10.0 if cap is None and form == "released" else cap
    kl = kl if cap is None else kl.clamp(-cap, cap)
    if wrong_weight == 1.0:
        return kl
    if correct is None:
        raise ValueError(f"wrong_weight={wrong_weight} needs `correct` (B,): which rollouts are right")
    return kl * torch.where(correct.bool(), 1.0, wrong_weight).to(kl.dtype).unsqueeze(1)


# ---- tokens -> loss


def count_items(mask: Tensor, how: str = "token", micro_batch_size: int | None = None) -> int:
    """The denominator of `aggregate` for a whole optimizer step, from the step's mask (B, C).

    "token": completion tokens. "sequence", "constant": rows. "micro_batch": parts of micro_batch_size rows.
    """
    _one_of("how", how, AGGREGATIONS)
    if how == "token":
        return int(mask.sum())
    if how == "micro_batch":
        if not micro_batch_size:
            raise ValueError("how='micro_batch' needs micro_batch_size, the rows per micro-batch")
        return math.ceil(mask.shape[0] / micro_batch_size)
    return mask.shape[0]


def aggregate(
    per_token: Tensor, mask: Tensor, how: str = "token", num_items: float | None = None,
    constant_length: int | None = None,
) -> Tensor:
    """Values per token (B, C) under mask (B, C) -> scalar.

        "token"        sum over tokens / num_items          num_items: tokens of the step   DAPO, TAPO
        "micro_batch"  mean over these tokens / num_items   num_items: its micro-batches    released code
        "sequence"     sum of the rows' means / num_items   num_items: its rows             GRPO
        "constant"     sum / (num_items * constant_length)  num_items: its rows             Dr. GRPO

    num_items defaults to what this tensor holds. A caller that accumulates gradients passes the count of the
    whole step (`count_items`) and *adds* the results: the sum does not depend on the cut into micro-batches,
    except for "micro_batch", which is defined by it. Values where mask is 0 are never read, not even NaN.

    >>> x, mask = torch.tensor([[1.0, 1.0, 4.0], [9.0, 0.0, 0.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    >>> aggregate(x, mask).item(), aggregate(x, mask, "sequence").item()
    (3.75, 5.5)
    >>> sum(aggregate(x[i:i + 1], mask[i:i + 1], num_items=4).item() for i in range(2))
    3.75
    """
    _one_of("how", how, AGGREGATIONS)
    if num_items is None:
        num_items = 1 if how == "micro_batch" else count_items(mask, how)
    kept = _keep(_fp32(per_token), mask)
    num_items = max(num_items, 1)
    if how == "token":
        return kept.sum() / num_items
    if how == "micro_batch":
        return kept.sum() / mask.sum().clamp(min=1) / num_items
    if how == "sequence":
        return (kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum() / num_items
    if not constant_length:
        raise ValueError("how='constant' needs constant_length, the longest completion that may be sampled")
    return kept.sum() / (num_items * constant_length)


def _entropy(logps: Tensor, full: Tensor | None, config: LossConfig, name: str) -> Tensor:
    if config.entropy_estimate == "full" and full is None:
        raise ValueError(f"entropy_estimate='full' needs {name} (B, C), see chunked_logps(entropy=True)")
    entropy = entropy_terms(logps) if config.entropy_estimate == "sampled" else _fp32(full)
    return entropy if config.entropy_sign == "entropy" else -entropy


def _negative_terms(
    logps: Tensor, negative: Tensor, config: LossConfig, correct: Tensor | None, full: Tensor | None
) -> dict[str, Tensor]:
    """The two terms of the negative branch, (B, C) each; gradient as config.negative_grad says."""
    kl = inter_class_kl(
        logps, negative, config.kl_form, config.negative_grad, correct, config.wrong_weight,
        config.kl_log_ratio_clamp, config.kl_cap,
    )
    entropy = _entropy(negative, full, config, "negative_entropies")
    return {"inter_kl": kl, "negative_entropy": entropy if config.negative_grad else entropy.detach()}


def tapo_loss(
    per_token_logps: Tensor, old_per_token_logps: Tensor | None, advantages: Tensor, completion_mask: Tensor,
    negative_per_token_logps: Tensor | None = None, config: LossConfig = TAPO, num_items: float | None = None,
    correct: Tensor | None = None, entropies: Tensor | None = None, negative_entropies: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The whole loss of a micro-batch, to be made smaller, and its parts: -> (scalar, metrics).

    (B, C): per_token_logps, old_per_token_logps (None: the policy itself, one update per batch),
    completion_mask, negative_per_token_logps (needed unless gamma = eta2 = 0), entropies (for
    entropy_estimate="full"). (B,): advantages, correct. num_items as in `aggregate`: with it, losses and
    metrics of the micro-batches add up to those of the step. Values where the mask is 0 are never read.

    Metrics, averaged as the loss is: loss, policy_loss, inter_kl, entropy, negative_entropy, ratio (1 on the
    first update), clip_ratio_low, _high, _dual (shares of tokens). On the first update the policy loss is
    about 0 while its gradient is not: the ratio is 1 and a group's advantages sum to 0.

    >>> logps = torch.full((2, 1), -0.7, requires_grad=True)
    >>> loss, metrics = tapo_loss(logps, None, torch.tensor([1.0, -1.0]), torch.ones(2, 1), config=DAPO)
    >>> loss.backward(); round(loss.item(), 6), logps.grad.tolist()
    (0.0, [[-0.5], [0.5]])
    """
    def mean(per_token: Tensor) -> Tensor:
        return aggregate(per_token, completion_mask, config.aggregation, num_items, config.constant_length)

    logps = _keep(_fp32(per_token_logps), completion_mask)
    old = logps if old_per_token_logps is None else _keep(_fp32(old_per_token_logps), completion_mask)
    arguments = (logps, old.detach(), advantages)
    clip = (config.epsilon_low, config.epsilon_high, config.dual_clip, config.log_ratio_clamp)
    total = policy_loss_terms(*arguments, *clip)
    parts = {"policy_loss": total, "ratio": _log_ratio(*arguments[:2], config.log_ratio_clamp).exp()}
    if config.eta1:
        parts["entropy"] = _entropy(logps, entropies, config, "entropies")
        total = total + config.eta1 * (parts["entropy"] if config.entropy_grad else parts["entropy"].detach())
    if config.gamma or config.eta2:
        if negative_per_token_logps is None:
            raise ValueError("gamma or eta2 is not 0: give negative_per_token_logps, or use the DAPO preset")
        negative = _keep(_fp32(negative_per_token_logps), completion_mask)
        parts |= _negative_terms(logps, negative, config, correct, negative_entropies)
        total = total - config.gamma * parts["inter_kl"] + config.eta2 * parts["negative_entropy"]
    parts |= {f"clip_ratio_{name}": flags for name, flags in clip_indicators(*arguments, *clip).items()}
    loss = mean(total)
    values = torch.stack([loss.detach(), *(mean(part.detach()) for part in parts.values())]).tolist()
    return loss, dict(zip(["loss", *parts], values))
