"""Log-probabilities of given completions under the policy, for one image or another."""

import torch
from torch.nn.functional import pad as pad_tensor

from ..losses import chunked_logps
from .load import Policy
from .prefix import Prompt, distinct, read_prompts


def completion_logps(
    policy: Policy, prompts: list[Prompt], completion_ids: torch.Tensor, completion_mask: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """per_token_logps (B, C) of `completion_ids` (B, C), each row under its own (question, seen) prompt.

    With gradient where autograd is on, through the shared prompt too: the same as one padded row for
    each completion. Masked positions are 0. The [B, C, V] logits never exist.
    """
    ids, wanted = completion_ids.to(policy.model.device), completion_mask.bool().to(policy.model.device)
    each, rows = distinct(prompts)
    prefix = read_prompts(policy, each)
    prefix.select(rows.to(policy.model.device))
    before = prefix.hidden[:, None]  # position t predicts token t + 1
    if ids.shape[1] > 1:
        steps = torch.arange(ids.shape[1] - 1, device=ids.device)
        made = policy.backbone(
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([prefix.mask, wanted[:, :-1].to(prefix.mask.dtype)], 1),
            position_ids=(prefix.position + steps)[None].expand(3, -1, -1),
            past_key_values=prefix.cache, use_cache=True,
        )  # fmt: skip
        before = torch.cat([before, made.last_hidden_state], 1)
    logps = chunked_logps(before[wanted], policy.head, ids[wanted], temperature=temperature)
    return torch.zeros(wanted.shape, device=ids.device).masked_scatter(wanted, logps)


def widen(tensor: torch.Tensor, length: int, value) -> torch.Tensor:
    """Pad (B, C) on the right to (B, length)."""
    return pad_tensor(tensor, (0, length - tensor.shape[1]), value=value)
