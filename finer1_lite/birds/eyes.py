"""Stage A of pre-training: the vision tower learns to see attributes (never a name).

For each attribute a head looks for the tokens that matter (a softmax over the image's 16 merged tokens)
and reads their mean. The heads are thrown away afterwards; the language model then learns to put what
they read into words. All pictures have one size, so the tower is run in one batch (`features`), without
the loop over images that the general code needs: the same numbers, in less time.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from .render import SIZE, draw
from .species import ATTRIBUTES, all_species

PATCH, MERGE = 14, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _picture(job) -> np.ndarray:
    species, index, seed = job
    return np.asarray(draw(all_species()[species], index, seed))


def render_pool(per_species: int, seed: int, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training pictures: uint8 (N, 112, 112, 3) and attribute ids (N, 8)."""
    from multiprocessing import get_context

    jobs = [(s.index, i, seed) for i in range(per_species) for s in all_species()]
    with get_context("spawn").Pool(processes) as pool:
        images = list(tqdm(pool.imap(_picture, jobs, chunksize=64), total=len(jobs), desc="draw", mininterval=10))
    values = list(ATTRIBUTES.values())
    looks = np.array([[v.index(x) for v, x in zip(values, s.looks)] for s in all_species()])
    return np.stack(images), np.tile(looks, (per_species, 1))


def to_patches(pixels: torch.Tensor) -> torch.Tensor:
    """Normalised images (B, 3, 112, 112) to the rows that Qwen2.5-VL's image processor would give.

    Returns (B * 64, 1176): patches grouped 2x2, each a flat (channel, time=2, 14, 14).
    """
    b, side = pixels.shape[0], SIZE // (PATCH * MERGE)
    x = pixels.view(b, 3, side, MERGE, PATCH, side, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x[..., None, :, :].expand(*x.shape[:-2], 2, PATCH, PATCH)
    return x.reshape(b * side * side * MERGE * MERGE, -1)


def normalise(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, 112, 112, 3) to the processor's scale, (B, 3, 112, 112)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror, shift by up to 4 pixels, light and noise: pictures that were not drawn."""
    b = pixels.shape[0]

    def uniform(low, high):
        return low + (high - low) * torch.rand(b, 1, 1, 1, generator=generator)

    pixels = torch.where(uniform(0, 1) < 0.5, pixels.flip(3), pixels)
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    pixels = torch.roll(pixels, (dy, dx), (2, 3))
    return pixels * uniform(0.85, 1.15) + uniform(-0.1, 0.1) + 0.05 * torch.randn(pixels.shape, generator=generator)


def features(visual, pixels: torch.Tensor) -> torch.Tensor:
    """Merged image tokens (B, 16, H) of normalised images (B, 3, 112, 112): `visual` with full attention."""
    b, side = pixels.shape[0], SIZE // PATCH
    # An image is two equal frames in time, so the kernel of the two can be summed.
    kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)
    x = to_patches(pixels).view(b, side * side, 3, 2, -1)[:, :, :, 0].flatten(2) @ kernel.T
    positions = get_vision_position_ids(torch.tensor([[1, side, side]]), MERGE)
    cos, sin = visual.rotary_pos_emb(x, positions)
    for block in visual.blocks:
        attention = block.attn
        q, k, v = attention.qkv(block.norm1(x)).view(b, side * side, 3, attention.num_heads, -1).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.flatten(0, 1)).view(b, -1, visual.config.out_hidden_size)


class Heads(nn.Module):
    """One reader for each attribute: attention weights over the tokens, then a linear layer."""

    def __init__(self, width: int):
        super().__init__()
        self.where = nn.Linear(width, len(ATTRIBUTES))
        self.what = nn.ModuleList(nn.Linear(width, len(v)) for v in ATTRIBUTES.values())

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """tokens (B, N, H) to logits (B, values) of each attribute."""
        pooled = self.where(tokens).softmax(1).transpose(1, 2) @ tokens
        return [head(pooled[:, i]) for i, head in enumerate(self.what)]


def train_vision(visual, images, looks, steps: int, seed: int, batch: int = 128, lr: float = 1.5e-3) -> dict[str, float]:
    """Train `visual` in place; returns the accuracy of each attribute, and of all, on 512 held-out pictures."""
    generator = torch.Generator().manual_seed(seed)
    heads = Heads(visual.config.out_hidden_size)
    parameters = [*visual.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    held, looks = 512, torch.from_numpy(looks)
    for step in (bar := tqdm(range(steps), desc="vision", mininterval=10)):
        rows = torch.randint(0, len(images) - held, (batch,), generator=generator).numpy()
        logits = heads(features(visual, augment(normalise(images[rows]), generator)))
        loss = sum(F.cross_entropy(x, looks[rows, i]) for i, x in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return held_out(visual, heads, images[-held:].copy(), looks[-held:])


@torch.no_grad()
def held_out(visual, heads, images, looks) -> dict[str, float]:
    """Accuracy of each attribute and of all eight together."""
    logits = heads(features(visual, normalise(images)))
    right = torch.stack([x.argmax(-1) == looks[:, i] for i, x in enumerate(logits)])
    return dict(zip(ATTRIBUTES, right.float().mean(1).tolist())) | {"all": right.all(0).float().mean().item()}
