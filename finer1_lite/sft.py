"""Stage 1: supervised fine-tuning on chains (or on bare answers, the baseline), a page of plain PyTorch.

Departure from the paper: LoRA on the NF4 model instead of full fine-tuning. The vision tower is frozen
in both.
"""

import hashlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from .config import SFTConfig
from .files import write_csv
from .loop import (
    Checkpoints,
    State,
    Stepper,
    Team,
    adapter_tensors,
    optimizer_tensors,
    restore_adapter,
    restore_optimizer,
    stopped,
    uninterrupted,
)  # fmt: skip
from .losses import chunked_logps
from .policy.batching import cut, halved_until_it_fits
from .policy.inputs import IGNORE, ImageFeatures, training_batch
from .policy.load import Policy

Row = tuple[str, ImageFeatures, str]


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


def num_steps(rows: int, config: SFTConfig) -> int:
    """Steps of a whole run on so many rows; a run that Ctrl-C stopped has fewer.

    >>> num_steps(96, SFTConfig(epochs=10, batch_size=64))
    20
    """
    return config.epochs * math.ceil(rows / config.batch_size)


def train_sft(
    policy: Policy, rows: list[Row], config: SFTConfig, seed: int, log: Path | None = None,
    on_step: Callable[[dict], None] | None = None, checkpoints: Checkpoints | None = None,
) -> list[dict]:  # fmt: skip
    """Train the policy's adapter on (question, seen, answer) rows, in place; returns a row for each step.

    The loss of a step is the mean over all its answer tokens, however the step is cut into
    micro-batches. `on_step` gets each logged row (a notebook draws its curve with it). With `checkpoints` it
    starts where the newest one ends; Ctrl-C saves. ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("no rows to train on: did quality control reject every chain?")
    plan = list(epochs_of(len(rows), config.batch_size, config.epochs, seed))
    optimizer = torch.optim.AdamW(policy.trainable(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, len(plan))
    stepper = Stepper(policy.trainable(), optimizer, 1.0, policy.profile.dtype == "float16")
    team, history = Team(), []  # a team of one, unless `accelerate launch` started more
    identity = sft_identity(policy, rows, config, seed)

    def state() -> State:
        tensors = adapter_tensors(policy.model) | optimizer_tensors(optimizer)
        facts = {"stepper": stepper.state(), "schedule": schedule.state_dict(), "history": history}
        return State(len(history), tensors, facts, identity)

    if checkpoints and (saved := checkpoints.load(identity)):
        restore_adapter(policy.model, saved.tensors)
        restore_optimizer(optimizer, saved.tensors)
        stepper.restore(saved.facts["stepper"])
        schedule.load_state_dict(saved.facts["schedule"])
        optimizer.param_groups[0]["lr"] = schedule.get_last_lr()[0]
        history = saved.facts["history"]
    spent, start, micro_batch = history[-1]["seconds"] if history else 0.0, time.perf_counter(), config.micro_batch
    policy.model.train()
    bar = tqdm(total=len(plan), initial=len(history), desc="SFT", mininterval=5, disable=not team.main)
    try:
        while len(history) < len(plan):
            step = [rows[i] for i in plan[len(history)]]
            run = partial(gather_gradients, policy, stepper, step, config.micro_tokens, team)
            with uninterrupted():
                loss, micro_batch = halved_until_it_fits(run, micro_batch, "rows of a micro-batch (micro_batch)")
                loss = team.sum(loss)
                team.sum_gradients(stepper.parameters)
                row = {"step": len(history), "loss": loss, "lr": schedule.get_last_lr()[0]} | stepper.step(loss)
                schedule.step()
                history.append(row | {"seconds": spent + time.perf_counter() - start})
            bar.update()
            if checkpoints and (checkpoints.due(len(history)) or len(history) == len(plan)) and team.main:
                checkpoints.save(state())
            if on_step:
                on_step(history[-1])
    except KeyboardInterrupt:
        stopped(len(history), checkpoints.save(state()) if checkpoints and team.main else None)
    finally:
        policy.model.eval()
        bar.close()
    if log and team.main:
        write_csv(log, history)
    return history


def sft_identity(policy: Policy, rows: list[Row], config: SFTConfig, seed: int) -> dict:
    """What must be the same for a checkpoint of this run to fit."""
    texts = "\n".join(f"{question}\t{answer}" for question, _, answer in rows)
    return {
        **policy.identity(), "stage": "SFT", "seed": seed,
        "config": {k: v for k, v in asdict(config).items() if not k.startswith("micro")},
        "data": hashlib.sha256(texts.encode()).hexdigest()[:16],
    }  # fmt: skip


def gather_gradients(
    policy: Policy, stepper: Stepper, rows: list[Row], tokens: int, team: Team, micro_batch: int
) -> float:
    """Gradients of this process's share of a step's mean token loss; returns that share of the loss.

    rows: of the whole step. tokens, micro_batch: how many tokens (padding and images included) and rows are read
    at once, at most.
    """
    stepper.forget()  # of a try that ran out of memory
    lengths = [len(policy.processor.tokenizer(a)["input_ids"]) + 1 for *_, a in rows]
    questions = [len(policy.processor.tokenizer(q)["input_ids"]) + len(s.tokens if s else ()) for q, s, _ in rows]
    longest = max(a + b for a, b in zip(lengths, questions))
    items, mine, total = sum(lengths), team.share(rows), 0.0
    for part in cut([longest] * len(mine), tokens, micro_batch):
        loss, _ = answer_loss(policy, mine[part.start : part.stop])
        stepper.backward(loss / items)
        total += loss.item()
    return total / items


