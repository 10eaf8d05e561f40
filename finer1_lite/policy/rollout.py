"""Sample completions: every prompt is read once, its cache is repeated, finished rows leave the batch.

Departure from `generate`: a plain loop over `forward`, because `generate` keeps finished rows and
re-reads a prompt for each of its completions. Sampling is the same: temperature, then nucleus.
"""

from dataclasses import dataclass, replace

import torch

from .batching import halved_until_it_fits
from .dense import decoding
from .inputs import Seen, pad
from .load import Policy
from .prefix import read_prompts


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

    top_p keeps the smallest set of most likely tokens whose probability reaches it (and tokens that tie with its
    last). Nothing is sorted: a token drawn from all is kept if the more likely ones together stay below top_p,
    else drawn again, which leaves the same distribution. FloatingPointError where logits are not numbers; ValueError
    unless 0 < top_p <= 1.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if not logits.amax(-1).isfinite().all():
        raise FloatingPointError("the model's logits are not numbers: its adapter or its precision is broken")
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p == 1:
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    drawn, open_rows = logits.new_zeros(len(logits), dtype=torch.long), torch.arange(len(logits), device=logits.device)
    cumulated = probabilities.cumsum(-1)
    while len(open_rows):
        spot = torch.rand(len(open_rows), 1, generator=generator, device=logits.device) * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, spot, right=True).clamp(max=logits.shape[-1] - 1)
        own = probabilities.gather(-1, token)
        more_likely = torch.where(probabilities > own, probabilities, 0).sum(-1, keepdim=True)
        kept = ((more_likely < top_p) & (own > 0)).squeeze(-1)
        drawn[open_rows[kept]] = token[kept, 0]
        open_rows, probabilities, cumulated = open_rows[~kept], probabilities[~kept], cumulated[~kept]
    return drawn


@torch.no_grad()
def rollout(
    policy: Policy, prompts: list[tuple[str, Seen]], num_generations: int, generator: torch.Generator,
    temperature: float = 1.0, top_p: float = 1.0, max_new_tokens: int | None = None, min_new_tokens: int = 0,
) -> Rollouts:  # fmt: skip
    """Sample `num_generations` completions of each (question, seen) prompt, in batches that fit.

    min_new_tokens: how many tokens of a completion cannot be the one that ends it.
    A batch that does not fit into memory is sampled again in halves, and the profile's rollout_batch stays so.
    """
    limit = max_new_tokens or policy.profile.max_new_tokens
    per, start = max(1, policy.profile.rollout_batch // num_generations), 0
    policy.model.eval()  # with checkpointing in train mode the cache would be dropped
    rows: list[list[int]] = []
    with decoding(policy):
        while start < len(prompts):
            drawn = generator.get_state() if generator else None

            def decode(per: int) -> list[list[int]]:
                if generator:
                    generator.set_state(drawn)
                part = prompts[start : start + per]
                settings = (num_generations, generator, temperature, top_p, limit, min_new_tokens)
                return _decode(policy, part, *settings)

            made, fits = halved_until_it_fits(decode, per, "questions sampled at once (rollout_batch)")
            rows, start = rows + made, start + fits
            if fits < per:
                per, policy.profile = fits, replace(policy.profile, rollout_batch=fits * num_generations)
    pad_id = policy.processor.tokenizer.pad_token_id
    texts = policy.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return Rollouts(pad(rows, pad_id, "right"), pad([[1] * len(r) for r in rows], 0, "right"), texts)


def _decode(
    policy, prompts, num_generations, generator, temperature, top_p, limit, min_new_tokens
) -> list[list[int]]:
    """Token ids, end token included, of the completions of one batch of prompts."""
    tokenizer = policy.processor.tokenizer
    now = read_prompts(policy, prompts)
    now.select(torch.arange(len(prompts), device=now.mask.device).repeat_interleave(num_generations))
    now.make_room()
    now.mask = now.mask.bool()
    done: list[list[int]] = [[] for _ in range(len(now.hidden))]
    alive = torch.arange(len(now.hidden))
    forbidden = torch.tensor(forbidden_ids(policy.model), device=now.hidden.device)  # a list would be copied at each step
    for count in range(1, limit + 1):
        logits = now.hidden @ policy.head.T
        logits[:, forbidden] = -torch.inf
        if count <= min_new_tokens:
            logits[:, tokenizer.eos_token_id] = -torch.inf
        tokens = sample_tokens(logits, temperature, top_p, generator)
        for row, token in zip(alive.tolist(), tokens.tolist()):
            done[row].append(token)
        going = (tokens != tokenizer.eos_token_id).nonzero().squeeze(-1)
        if not len(going) or count == limit:
            break
        if len(going) < len(tokens):
            now.select(going)
            alive, tokens = alive[going.cpu()], tokens[going]
        now.mask = torch.cat([now.mask, now.mask.new_ones(len(now.mask), 1)], 1)
        step = policy.backbone(  # a new token sees all but padding; with a mask of less than four axes, transformers
            input_ids=tokens[:, None],  # would work that out at each step
            attention_mask=None if now.mask.all() else now.mask[:, None, None],
            position_ids=now.position[None].expand(3, -1, -1), past_key_values=now.cache, use_cache=True,
        )  # fmt: skip
        now.hidden, now.position = step.last_hidden_state[:, -1], now.position + 1
    return done
