"""Log-probabilities of given completions under the policy, for one image or another."""

import torch
from torch.nn.functional import pad as pad_tensor

from ..losses import chunked_logps
from .inputs import Seen, model_inputs, pad, prompt_ids
from .load import Policy


def completion_logps(
    policy: Policy, prompts: list[tuple[str, Seen]], completion_ids: torch.Tensor, completion_mask: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """per_token_logps (B, C) of `completion_ids` (B, C), each row under its own (question, seen) prompt.

    With gradient where autograd is on. Masked positions are 0. The [B, C, V] logits never exist.
    """
    tokenizer, device = policy.processor.tokenizer, policy.model.device
    ids = [prompt_ids(policy.processor, text, seen) for text, seen in prompts]
    left = pad(ids, tokenizer.pad_token_id, "left")
    left_mask = pad([[1] * len(i) for i in ids], 0, "left")
    inputs = model_inputs(
        policy.model, torch.cat([left, completion_ids.cpu()], 1), torch.cat([left_mask, completion_mask.cpu()], 1),
        [seen for _, seen in prompts],
    )  # fmt: skip
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state
    before = hidden[:, left.shape[1] - 1 : -1]  # position t predicts token t + 1
    wanted = completion_mask.bool().to(device)
    logps = chunked_logps(before[wanted], policy.head, completion_ids.to(device)[wanted], temperature=temperature)
    return torch.zeros(wanted.shape, device=device).masked_scatter(wanted, logps)


def trim(completion_ids: torch.Tensor, completion_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop the columns that are padding in every row."""
    length = max(1, int(completion_mask.sum(-1).max()))
    return completion_ids[:, :length], completion_mask[:, :length]


def widen(tensor: torch.Tensor, length: int, value) -> torch.Tensor:
    """Pad (B, C) on the right to (B, length)."""
    return pad_tensor(tensor, (0, length - tensor.shape[1]), value=value)
