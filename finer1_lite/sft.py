"""Stage 1: supervised fine-tuning on chains, or on bare answers (the baseline).

Departure from the paper: LoRA on the NF4 model instead of full fine-tuning. The vision tower is frozen in both.
"""

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import get_cosine_schedule_with_warmup

from .config import SFTConfig
from .logprobs import chunked_logps
from .loop import Checkpoints, Loop
from .policy.batching import cut, halved_until_it_fits
from .policy.inputs import IGNORE, ImageFeatures, training_batch
from .policy.load import Policy
from .reading import tagged_answer

MIN_STEPS = 60  # about as many as the paper's 404 chains take
Row = tuple[str, ImageFeatures | None, str]


def train_sft(
    policy: Policy, rows: list[Row], config: SFTConfig, seed: int, log: Path | None = None,
    on_step: Callable[[dict], None] | None = None, checkpoints: Checkpoints | None = None,
) -> list[dict]:  # fmt: skip
    """Train the policy's adapter on (question, seen, answer) rows, in place; returns a row of figures for each step.

    A step's loss is the mean over all its answer tokens. The rest: `Loop.train`. ValueError without rows.
    """
    if not rows:
        raise ValueError("no rows to train on: did quality control reject every chain?")
    return SFT(policy, rows, config, seed).train(log, on_step, checkpoints)


def num_steps(rows: int, config: SFTConfig) -> int:
    """Steps of a whole run on so many rows; a run that Ctrl-C stopped has fewer."""
    return config.epochs * math.ceil(rows / config.batch_size)


def fitted(config: SFTConfig, rows: int) -> SFTConfig:
    """The settings for few rows: as many epochs, in batches so small that there are MIN_STEPS steps if there can be.

    >>> fitted(SFTConfig(epochs=10, batch_size=64), 28).batch_size, fitted(SFTConfig(), 404).batch_size
    (4, 64)
    """
    return replace(config, batch_size=max(1, min(config.batch_size, rows * config.epochs // MIN_STEPS)))


def epochs_of(n: int, batch_size: int, epochs: int, seed: int):
    """Batches of row numbers: every row once in each epoch, in an order drawn from `seed`."""
    rng = random.Random(seed)
    for _ in range(epochs):
        order = rng.sample(range(n), n)
        yield from (order[i : i + batch_size] for i in range(0, n, batch_size))


def answer_loss(policy: Policy, rows: list[Row]) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood of the answers' tokens in `rows`, and how many they are."""
    inputs, labels = training_batch(policy.model, policy.processor, rows)
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    return -chunked_logps(hidden[wanted], policy.head, targets[wanted]).sum(), int(wanted.sum())


class SFT(Loop):
    """The loop of `train_sft`; the learning rate follows a cosine."""

    stage = "SFT"

    def __init__(self, policy: Policy, rows: list[Row], config: SFTConfig, seed: int):
        super().__init__(policy, config, 1.0, seed)
        self.rows, self.micro_batch = rows, config.micro_batch
        self.plan = list(epochs_of(len(rows), config.batch_size, config.epochs, seed))
        self.steps = len(self.plan)
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, min(config.warmup_steps, math.ceil(self.steps / 10)), self.steps
        )

    def collect(self) -> tuple[list[Row], dict]:
        """The rows of the next step."""
        return [self.rows[i] for i in self.plan[len(self.history)]], {}

    def update(self, rows: list[Row]) -> dict[str, float]:
        """One optimizer step on `rows`; returns the loss, the learning rate and what `Loop.step` returns."""
        self.policy.model.train()
        run, what = partial(self.gather_gradients, rows), "rows of a micro-batch (micro_batch)"
        loss, self.micro_batch = halved_until_it_fits(run, self.micro_batch, what)
        loss = self.team.sum(loss)
        figures = {"loss": loss, "lr": self.schedule.get_last_lr()[0]} | self.step(loss)
        self.schedule.step()
        return figures

    def gather_gradients(self, rows: list[Row], micro_batch: int) -> float:
        """Gradients of this process's share of a step's mean token loss; returns that share of the loss."""
        self.optimizer.zero_grad()  # an earlier try may have run out of memory
        tokenizer = self.policy.processor.tokenizer
        lengths = [len(tokenizer(a)["input_ids"]) + 1 for *_, a in rows]
        questions = [len(tokenizer(q)["input_ids"]) + len(s.tokens if s else ()) for q, s, _ in rows]
        longest = max(map(sum, zip(lengths, questions)))
        items, mine, total = sum(lengths), self.team.share(rows), 0.0
        for part in cut([longest] * len(mine), self.config.micro_tokens, micro_batch):
            loss, _ = answer_loss(self.policy, mine[part.start : part.stop])
            self.backward(loss / items)
            total += loss.item()
        return total / items

    def about(self) -> dict:
        """See `Loop.about`; also how is asked, and which names are answers."""
        names = sorted({tagged_answer(answer) for *_, answer in self.rows})
        return super().about() | {"prompt": self.rows[0][0], "classes": names}

    def position(self) -> dict:
        """Where the learning rate stands."""
        return self.schedule.state_dict()

    def go_to(self, position: dict) -> None:
        """Go on with the learning rate of `position`."""
        self.schedule.load_state_dict(position)
        self.optimizer.param_groups[0]["lr"] = self.schedule.get_last_lr()[0]

    def identity(self) -> dict:
        """What must be the same for a checkpoint of this run to fit."""
        data = hashlib.sha256()
        for question, seen, answer in self.rows:
            data.update(f"{question}\t{answer}\n".encode() + (seen.picture if seen else b""))
        return super().identity() | {"data": data.hexdigest()[:16]}
