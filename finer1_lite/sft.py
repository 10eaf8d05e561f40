"""Stage 1: supervised fine-tuning on chains (or on bare answers, the baseline), a page of plain PyTorch.

Departure from the paper: LoRA on the NF4 model instead of full fine-tuning. The vision tower is frozen
in both.
"""

import csv
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from .config import SFTConfig
from .losses import chunked_logps
from .policy.inputs import IGNORE, Seen, training_batch
from .policy.load import Policy

Row = tuple[str, Seen, str]


def answer_loss(policy: Policy, rows: list[Row]) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood of the answers' tokens in `rows`, and how many they are."""
    inputs, labels = training_batch(policy.model, policy.processor, rows)
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    return -chunked_logps(hidden[wanted], policy.head, targets[wanted]).sum(), int(wanted.sum())


def epochs_of(n: int, batch_size: int, epochs: int, seed: int):
    """Batches of row numbers: every row once in each epoch, in an order drawn from `seed`."""
    rng = random.Random(seed)
    for _ in range(epochs):
        order = rng.sample(range(n), n)
        yield from (order[i : i + batch_size] for i in range(0, n, batch_size))


def train_sft(
    policy: Policy, rows: list[Row], config: SFTConfig, seed: int, micro_batch: int = 16,
    log: Path | None = None, on_step: Callable[[dict], None] | None = None,
) -> list[dict]:  # fmt: skip
    """Train the policy's adapter on (question, seen, answer) rows, in place; returns a row for each step.

    The loss of a step is the mean over all its answer tokens, however the step is cut into
    micro-batches. `on_step` gets each logged row (a notebook draws its curve with it). ValueError if
    there are no rows.
    """
    if not rows:
        raise ValueError("no rows to train on: did quality control reject every chain?")
    plan = list(epochs_of(len(rows), config.batch_size, config.epochs, seed))
    parameters = policy.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, len(plan))
    policy.model.train()
    history, start = [], time.perf_counter()
    for step, picks in enumerate(tqdm(plan, desc="SFT", mininterval=5)):
        loss = _step(policy, [rows[i] for i in picks], micro_batch)
        norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
        history.append({"step": step, "loss": loss, "grad_norm": norm, "lr": schedule.get_last_lr()[0],
                        "seconds": time.perf_counter() - start})  # fmt: skip
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if on_step:
            on_step(history[-1])
    policy.model.eval()
    if log:
        write_csv(log, history)
    return history


def _step(policy: Policy, rows: list[Row], micro_batch: int) -> float:
    """Gradients of the mean token loss of one step; returns the loss."""
    items = sum(len(policy.processor.tokenizer(a)["input_ids"]) + 1 for *_, a in rows)
    total = 0.0
    for i in range(0, len(rows), micro_batch):
        loss, _ = answer_loss(policy, rows[i : i + micro_batch])
        (loss / items).backward()
        total += loss.item()
    return total / items


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Write dictionaries as a CSV file; a key that a row lacks is an empty cell."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
