"""Read every distinct prompt once; its completions, however many, go on from the shared cache."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad as pad_tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from .inputs import Prompt, model_inputs, pad, prompt_ids
from .load import Policy

ROOM = 64  # tokens


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
    """Keys and values (B, heads, tokens, D) with free room behind them, so that a new token copies nothing else."""

    def __init__(self, filled: DynamicLayer):
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)
        self.keys, self.values = self.whole = [filled.keys, filled.values]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append; returns all keys and values so far, as views of what is kept."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for i, new in enumerate((key_states, value_states)):
            if end > self.whole[i].shape[-2]:
                self.whole[i] = pad_tensor(self.whole[i], (0, 0, 0, end - start + ROOM))
            self.whole[i][..., start:end, :] = new
        return self._views(end)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows, with their room."""
        length = self.keys.shape[-2]
        self.keys = self.values = None  # else the old rows stay in memory beside the new ones
        for i in range(2):
            self.whole[i] = self.whole[i][indices]
        self._views(length)

    def _views(self, length: int):
        self.keys, self.values = (whole[..., :length, :] for whole in self.whole)
        return self.keys, self.values


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
    """mRoPE positions (3, B, P) of padded prompts, and the position (B, 1) at which text goes on.

    An image makes the latter smaller than the prompt's length.
    """
    mask = inputs["attention_mask"]
    if "image_grid_thw" not in inputs:
        return (mask.cumsum(-1) - 1).clamp(min=0)[None].expand(3, -1, -1), mask.sum(-1, keepdim=True)
    keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions, deltas = backbone.get_rope_index(**{k: inputs[k] for k in keys})
    return positions, mask.sum(-1, keepdim=True) + deltas


def distinct(prompts: list[Prompt]) -> tuple[list[Prompt], torch.Tensor]:
    """The prompts without repeats, and for each given prompt (B,) which of them it is."""
    first: dict[tuple, int] = {}
    rows = [first.setdefault((text, id(features)), len(first)) for text, features in prompts]
    kept = {row: prompt for row, prompt in zip(rows, prompts)}
    return list(kept.values()), torch.tensor(rows)
