"""Stage B of pre-training: the language model learns to describe what the frozen tower sees, and reads."""

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..policy.inputs import ImageFeatures, training_batch
from .diet import image_example, text_example
from .eyes import features, normalise
from .render import SIZE
from .species import all_species

GRID = torch.tensor([1, SIZE // 14, SIZE // 14])


@torch.no_grad()
def look_at(visual, images: np.ndarray, batch: int = 128) -> torch.Tensor:
    """Frozen features (N, 16, H) of uint8 pictures, in half precision."""
    parts = range(0, len(images), batch)
    return torch.cat([features(visual, normalise(images[i : i + batch].copy())).half() for i in tqdm(parts, desc="look")])


def example_batch(rng, seen: torch.Tensor, n_images: int, n_texts: int, write) -> list[list[tuple]]:
    """Three lists of rows of about equal length: images, short texts, diaries."""
    species, per = all_species(), len(all_species())
    picks = rng.integers(len(seen), size=n_images)
    images = []
    for i in picks:
        text, answer = image_example(rng, species[i % per])
        images.append((text, ImageFeatures(seen[i].float(), GRID), answer))
    texts = [(u, None, a) for u, a in (text_example(rng, write) for _ in range(n_texts))]
    texts.sort(key=lambda row: len(row[2]))
    short = [t for t in texts if "Candidates" not in t[2] and "<analysis>" not in t[2]]
    return [images, short, texts[len(short) :]]


def batch_loss(model, processor, rows) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy of the answers of `rows`, and the number of their tokens."""
    inputs, labels = training_batch(model, processor, rows)
    hidden = model.model(**inputs).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != -100
    logits = model.lm_head(hidden[wanted])
    return nn.functional.cross_entropy(logits, targets[wanted], reduction="sum"), int(wanted.sum())


def train_language(model, processor, seen, steps: int, seed: int, lr: float, n_images: int, n_texts: int, write) -> None:
    """Train everything but the vision tower, in place; a step sees n_images images and n_texts texts.

    write: the diaries of this round, `diet.loose_diary` or `diet.diary`.
    """
    rng = np.random.default_rng(seed)
    model.model.visual.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    for step in (bar := tqdm(range(steps), desc="language", mininterval=10)):
        groups = [g for g in example_batch(rng, seen, n_images, n_texts, write) if g]
        optimizer.zero_grad()
        losses = []
        for rows in groups:
            loss, n = batch_loss(model, processor, rows)
            (loss / n / len(groups)).backward()
            losses.append(loss.item() / n)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            bar.set_postfix(losses=" ".join(f"{x:.3f}" for x in losses))
