"""Sample completions: every prompt is read once, its cache is repeated, finished rows leave the batch.

Departure from `generate`: a plain loop over `forward`, because `generate` keeps finished rows and
re-reads a prompt for each of its completions. Sampling is the same: temperature, then nucleus.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .inputs import Seen, model_inputs, pad, prompt_ids
from .load import Policy


@dataclass
class Rollouts:
    """Completions of B = prompts x num_generations rows, those of one prompt side by side.

    completion_ids (B, C) right-padded, completion_mask (B, C) with the end token, texts (B).
    """

    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    texts: list[str]


def forbidden_ids(model) -> list[int]:
    """Tokens that stand for image data: a completion that held one could not be read back."""
    c = model.config
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return sorted({getattr(c, n) for n in names if getattr(c, n, None) is not None})


def sample_tokens(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """One token for each row of logits (B, V); temperature 0 takes the most likely one.

    top_p keeps the smallest set of most likely tokens whose probability reaches it.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0
        choice = torch.multinomial(ranked, 1, generator=generator)
        return order.gather(-1, choice).squeeze(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


@torch.no_grad()
def rollout(
    policy: Policy, prompts: list[tuple[str, Seen]], num_generations: int, generator: torch.Generator,
    temperature: float = 1.0, top_p: float = 1.0, max_new_tokens: int | None = None,
) -> Rollouts:  # fmt: skip
    """Sample `num_generations` completions of each (question, seen) prompt, in batches that fit."""
    limit = max_new_tokens or policy.profile.max_new_tokens
    per = max(1, policy.profile.rollout_batch // num_generations)
    policy.model.eval()  # with checkpointing in train mode the cache would be dropped
    rows: list[list[int]] = []
    for start in range(0, len(prompts), per):
        part = prompts[start : start + per]
        rows += _decode(policy, part, num_generations, generator, temperature, top_p, limit)
    pad_id = policy.processor.tokenizer.pad_token_id
    texts = policy.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return Rollouts(pad(rows, pad_id, "right"), pad([[1] * len(r) for r in rows], 0, "right"), texts)


def prompt_positions(backbone, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """mRoPE positions (3, B, P) of left-padded prompts, and the position (B, 1) at which text goes on.

    An image makes the latter smaller than the prompt's length.
    """
    mask = inputs["attention_mask"]
    if "image_grid_thw" not in inputs:
        return (mask.cumsum(-1) - 1).clamp(min=0)[None].expand(3, -1, -1), mask.sum(-1, keepdim=True)
    keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions, deltas = backbone.get_rope_index(**{k: inputs[k] for k in keys})
    return positions, mask.sum(-1, keepdim=True) + deltas


def _decode(policy, prompts, num_generations, generator, temperature, top_p, limit) -> list[list[int]]:
    """Token ids, end token included, of the completions of one batch of prompts."""
    tokenizer, backbone = policy.processor.tokenizer, policy.backbone
    ids = [prompt_ids(policy.processor, text, seen) for text, seen in prompts]
    mask = pad([[1] * len(i) for i in ids], 0, "left")
    inputs = model_inputs(policy.model, pad(ids, tokenizer.pad_token_id, "left"), mask, [s for _, s in prompts])
    cache = DynamicCache(config=policy.model.config.get_text_config())
    inputs["position_ids"], position = prompt_positions(backbone, inputs)
    hidden = backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    cache.batch_repeat_interleave(num_generations)
    hidden, position = hidden.repeat_interleave(num_generations, 0), position.repeat_interleave(num_generations, 0)
    mask = inputs["attention_mask"].repeat_interleave(num_generations, 0)
    done: list[list[int]] = [[] for _ in range(len(hidden))]
    alive = torch.arange(len(hidden))
    forbidden = forbidden_ids(policy.model)
    for _ in range(limit):
        logits = hidden @ policy.head.T
        logits[:, forbidden] = -torch.inf
        tokens = sample_tokens(logits, temperature, top_p, generator)
        for row, token in zip(alive.tolist(), tokens.tolist()):
            done[row].append(token)
        going = (tokens != tokenizer.eos_token_id).nonzero().squeeze(-1)
        if not len(going):
            break
        if len(going) < len(tokens):
            cache.batch_select_indices(going)
            alive, tokens, position, mask = alive[going.cpu()], tokens[going], position[going], mask[going]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        step = backbone(
            input_ids=tokens[:, None], attention_mask=mask, position_ids=position[None].expand(3, -1, -1),
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        hidden, position = step.last_hidden_state[:, -1], position + 1
    return done
