"""Sample completions: unlike in `generate`, prompts are read once for all theirs, and finished rows leave."""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad as pad_tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .batching import halved_until_it_fits
from .inputs import Prompt, base_model, model_inputs, pad, prompt_ids
from .load import Policy
from .lora import decoding

ROOM = 64  # tokens for which a cache grows at once
LOWEST_TEMPERATURE = 1e-3  # logits divided by less may overflow


@dataclass
class Prefix:
    """What the model made of B prompts: `cache`, last `hidden` (B, H), `mask` (B, P), next `position` (B, 1)."""

    cache: Cache
    hidden: torch.Tensor
    mask: torch.Tensor
    position: torch.Tensor

    def select(self, rows: torch.Tensor) -> None:
        """Keep `rows` (B',), in that order; a row may come more than once. Differentiable."""
        self.cache.batch_select_indices(rows)
        self.hidden, self.mask, self.position = self.hidden[rows], self.mask[rows], self.position[rows]


class RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, tokens, D) with free room behind them: a new token copies nothing else."""

    def __init__(self, filled: DynamicLayer):
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)
        self.keys, self.values = self.whole = [filled.keys, filled.values]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append; returns all keys and values so far."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for i, new in enumerate((key_states, value_states)):
            if end > self.whole[i].shape[-2]:
                self.whole[i] = pad_tensor(self.whole[i], (0, 0, 0, end - start + ROOM))
            self.whole[i][..., start:end, :] = new
        self.keys, self.values = (whole[..., :end, :] for whole in self.whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows, with their room."""
        length = self.keys.shape[-2]
        self.keys = self.values = None  # else the old rows stay in memory beside the new ones
        for i in range(2):
            self.whole[i] = self.whole[i][indices]
        self.keys, self.values = (whole[..., :length, :] for whole in self.whole)


def read_prompts(policy: Policy, prompts: list[Prompt]) -> Prefix:
    """One forward pass over left-padded (question, features) prompts."""
    ids = [prompt_ids(policy.processor, *prompt) for prompt in prompts]
    mask = pad([[1] * len(i) for i in ids], 0, "left")
    padded = pad(ids, policy.processor.tokenizer.pad_token_id, "left")
    inputs = model_inputs(policy.model, padded, mask, [features for _, features in prompts])
    inputs["position_ids"], position = prompt_positions(policy.backbone, inputs)
    cache = DynamicCache(config=policy.model.config.get_text_config())
    hidden = policy.backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    return Prefix(cache, hidden, inputs["attention_mask"], position)


def prompt_positions(backbone, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """mRoPE positions (3, B, P) of padded prompts, and the position (B, 1) at which text goes on."""
    keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions, deltas = backbone.get_rope_index(**{k: inputs.get(k) for k in keys})
    return positions, inputs["attention_mask"].sum(-1, keepdim=True) + deltas


@dataclass
class Rollouts:
    """Ids, masks (B, C) with the end token, texts, who `ended` and was not cut off (B); of one prompt side by side."""

    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    texts: list[str]
    ended: list[bool]


def forbidden_ids(model) -> list[int]:
    """Tokens that stand for image data: a completion that held one could not be read back."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return sorted({getattr(model.config, n) for n in names if getattr(model.config, n, None) is not None})


def end_ids(policy: Policy) -> list[int]:
    """Tokens that end an answer: the tokenizer's own, and all of the model's generation config (Qwen has two)."""
    ends = base_model(policy.model).generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({policy.processor.tokenizer.eos_token_id, *ends} - {None})


def sample_tokens(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """One token for each row of logits (B, V); temperature 0 takes the most likely one.

    top_p keeps the smallest set of most likely tokens whose probability reaches it; without sorting, tokens beyond
    it are drawn again. FloatingPointError where logits are not numbers.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0, where nothing would be drawn, and at most 1")
    if temperature != 0 and not LOWEST_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or at least {LOWEST_TEMPERATURE}")
    if not logits.amax(-1).isfinite().all():
        raise FloatingPointError("the model's logits are not numbers: its adapter or its precision is broken")
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p == 1:
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    open_rows, cumulated = torch.arange(len(logits), device=logits.device), probabilities.cumsum(-1)
    drawn = torch.zeros_like(open_rows)
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
    policy: Policy, prompts: list[Prompt], num_generations: int, generator: torch.Generator | None,
    temperature: float = 1.0, top_p: float = 1.0, max_new_tokens: int | None = None, min_new_tokens: int = 0,
) -> Rollouts:  # fmt: skip
    """Sample `num_generations` completions of each (question, features) prompt, in batches that fit.

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
                return _decode(policy, part, num_generations, generator, temperature, top_p, limit, min_new_tokens)

            made, fits = halved_until_it_fits(decode, per, "questions sampled at once (rollout_batch)")
            rows, start = rows + made, start + fits
            if fits < per:
                per, policy.profile = fits, replace(policy.profile, rollout_batch=fits * num_generations)
    tokenizer = policy.processor.tokenizer
    ids, mask = pad(rows, tokenizer.pad_token_id, "right"), pad([[1] * len(r) for r in rows], 0, "right")
    texts, ends = tokenizer.batch_decode(rows, skip_special_tokens=True), end_ids(policy)
    return Rollouts(ids, mask, texts, [row[-1] in ends for row in rows])


def _decode(policy, prompts, num_generations, generator, temperature, top_p, limit, shortest) -> list[list[int]]:
    now, head, language_model = read_prompts(policy, prompts), policy.head.T, policy.backbone.language_model
    device, ends = now.hidden.device, end_ids(policy)
    now.select(torch.arange(len(prompts), device=device).repeat_interleave(num_generations))
    now.cache = Cache(layers=[RoomyLayer(layer) for layer in now.cache.layers])
    alive, length = list(range(len(now.hidden))), now.mask.shape[1]
    # What attention adds: -inf at a prompt's padding, else 0. Each layer would turn a mask of booleans into it.
    now.mask = torch.zeros_like(now.mask, dtype=now.hidden.dtype).masked_fill(now.mask == 0, -torch.inf)
    now.mask = pad_tensor(now.mask, (0, limit))[:, None, None]
    padded, done = bool(now.mask.any()), [[] for _ in alive]
    forbidden = torch.tensor(forbidden_ids(policy.model), device=device)  # a list would be copied at each step
    for count in range(1, limit + 1):
        logits = now.hidden @ head
        logits[:, forbidden] = -torch.inf
        if count <= shortest:
            logits[:, ends] = -torch.inf
        tokens = sample_tokens(logits, temperature, top_p, generator)
        chosen = tokens.tolist()
        for row, token in zip(alive, chosen):
            done[row].append(token)
        going = [i for i, token in enumerate(chosen) if token not in ends]
        if not going or count == limit:
            break
        if len(going) < len(alive):
            alive, rows = [alive[i] for i in going], torch.tensor(going, device=device)
            now.select(rows)
            tokens, padded = tokens[rows], bool(now.mask.any())
        step = language_model(  # the whole model would prepare images and a mask, at each step
            inputs_embeds=language_model.embed_tokens(tokens[:, None]), past_key_values=now.cache, use_cache=True,
            attention_mask=now.mask[..., : length + count] if padded else None,
            position_ids=now.position[None].expand(3, -1, -1),
        )  # fmt: skip
        now.hidden, now.position = step.last_hidden_state[:, -1], now.position + 1
    return done
