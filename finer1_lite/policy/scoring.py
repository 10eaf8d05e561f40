"""Log-probabilities of given completions under the policy; completions of one prompt share it.

With checkpointing no cache can be kept: completions stand in one packed row, [prompt | c1 | c2 ...], under a mask.
"""

import torch

from ..logprobs import chunked_logps
from .inputs import Prompt, model_inputs, pad, prompt_ids
from .load import Policy
from .rollout import prompt_positions, read_prompts


def completion_logps(
    policy: Policy, prompts: list[Prompt], completion_ids: torch.Tensor, completion_mask: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """per_token_logps (B, C) of `completion_ids` (B, C), each row under its own (question, features) prompt.

    With gradient where autograd is on. Masked positions are 0. The (B, C, V) logits never exist.
    """
    device = policy.device
    ids, wanted = completion_ids.to(device), completion_mask.bool().to(device)
    states = packed_states if policy.profile.checkpointing else cached_states
    logps = chunked_logps(states(policy, prompts, ids, wanted), policy.head, ids[wanted], temperature=temperature)
    return torch.zeros(wanted.shape, device=device).masked_scatter(wanted, logps)


def distinct(prompts: list[Prompt]) -> tuple[list[Prompt], torch.Tensor]:
    """The prompts without repeats, and for each given prompt (B,) which of them it is."""
    first: dict[tuple, int] = {}
    rows = [first.setdefault((text, id(features)), len(first)) for text, features in prompts]
    return list(dict(zip(rows, prompts)).values()), torch.tensor(rows)


def cached_states(policy: Policy, prompts: list[Prompt], ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Hidden states (N, H) that predict the N wanted tokens of ids (B, C); prompts are read once and repeated."""
    each, rows = distinct(prompts)
    prefix = read_prompts(policy, each)
    prefix.select(rows.to(ids.device))
    before, length = prefix.hidden[:, None], ids.shape[1] - 1  # position t predicts token t + 1
    if length:
        steps = torch.arange(length, device=ids.device)
        visible = (steps <= steps[:, None]) & wanted[:, None, :-1]
        visible = torch.cat([prefix.mask.bool()[:, None].expand(-1, length, -1), visible], -1)[:, None]
        made = policy.backbone(
            input_ids=ids[:, :-1], position_ids=(prefix.position + steps)[None].expand(3, -1, -1),
            # Numbers to add, not booleans, which each layer would turn into numbers for itself.
            attention_mask=torch.zeros_like(visible, dtype=before.dtype).masked_fill(~visible, -torch.inf),
            past_key_values=prefix.cache, use_cache=True,
        )  # fmt: skip
        before = torch.cat([before, made.last_hidden_state], 1)
    return before[wanted]


def packed_states(policy: Policy, prompts: list[Prompt], ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """As `cached_states`, from one packed row for each distinct prompt."""
    each, owner = distinct(prompts)
    rows = [list(prompt_ids(policy.processor, text, features)) for text, features in each]
    parts, steps = [[0] * len(row) for row in rows], [[0] * len(row) for row in rows]  # part 0: the prompt
    last, where = [len(row) - 1 for row in rows], []  # of each wanted token, the row and place that predicts it
    for i, (row, n) in enumerate(zip(owner.tolist(), wanted.sum(-1).tolist())):
        if n:  # the last token predicts nothing: it stays out
            start = len(rows[row])
            where += [(row, last[row])] + [(row, start + t) for t in range(n - 1)]
            rows[row] += ids[i, : n - 1].tolist()
            parts[row] += [i + 1] * (n - 1)
            steps[row] += range(n - 1)
    packed, part = pad(rows, policy.processor.tokenizer.pad_token_id, "right"), pad(parts, -1, "right")
    inputs = model_inputs(policy.model, packed, (part == 0).long(), [features for _, features in each])
    positions, following = prompt_positions(policy.backbone, inputs)
    part, steps = part.to(ids.device), pad(steps, 0, "right").to(ids.device)
    inputs["position_ids"] = torch.where(part[None] > 0, following[None] + steps[None], positions)
    earlier = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool, device=ids.device).tril()
    mine, theirs = part[:, :, None], part[:, None, :]  # a token sees the prompt and its own part; padding itself
    seen = earlier & ((theirs == mine) | (theirs == 0)) & ((mine >= 0) | (theirs < 0))
    inputs["attention_mask"] = seen[:, None]
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state
    where = torch.tensor(where, device=ids.device)
    return hidden[where[:, 0], where[:, 1]]
