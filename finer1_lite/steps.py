"""What both training loops need so that one bad batch does not end a long run.

A step whose loss or gradient is not finite is left out and counted. A micro-batch that does not fit into
memory is cut in halves. Neither changes a step that goes well.
"""

import gc
import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

MAX_BAD_STEPS = 5  # in a row
FP16_SCALE = 2.0**10


class Stepper:
    """One optimizer step: backward, clip, check, step. `half`: fp16, whose small gradients need scaling."""

    def __init__(self, parameters: list[nn.Parameter], optimizer, max_grad_norm: float, half: bool = False):
        self.parameters, self.optimizer, self.max_grad_norm = parameters, optimizer, max_grad_norm
        self.scaler = torch.amp.GradScaler(parameters[0].device.type, init_scale=FP16_SCALE, enabled=half)
        self.bad = 0

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to those of the step."""
        self.scaler.scale(loss).backward()

    def forget(self) -> None:
        """Drop the gradients gathered so far."""
        self.optimizer.zero_grad()

    def step(self, loss: float) -> dict[str, float]:
        """Clip and apply the gathered gradients; returns grad_norm and skipped (1 where something was not finite).

        FloatingPointError after MAX_BAD_STEPS bad steps in a row.
        """
        self.scaler.scale(torch.zeros((), device=self.parameters[0].device))  # a process without rows scaled nothing yet
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        good = math.isfinite(norm) and math.isfinite(loss)
        if good:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget()
        self.bad = 0 if good else self.bad + 1
        if self.bad >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{self.bad} steps in a row had a loss ({loss}) or gradient norm ({norm}) that is not finite, and "
                "were left out. The adapter is the one from before them. Lower the learning rate or gamma, or "
                "cap the KL (LossConfig.kl_cap); on a T4 see whether an image's features overflow fp16."
            )
        return {"grad_norm": norm, "skipped": float(not good)}

    def state(self) -> dict:
        """JSON values for a checkpoint."""
        return {"bad": self.bad, "scaler": self.scaler.state_dict()}

    def restore(self, state: dict) -> None:
        """What `state` gave."""
        self.bad = state["bad"]
        self.scaler.load_state_dict(state["scaler"])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or this machine's memory is full."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # of the CPU, of CUDA, of its libraries
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in said)


def halved_until_it_fits(run: Callable[[int], object], size: int, what: str):
    """`run(size)`; after running out of memory again with half the size, down to 1: (result, size that fits).

    Says once what it did. MemoryError where even 1 does not fit.
    """
    first = size
    while True:
        try:
            result = run(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise MemoryError(
                    f"{what}: even 1 does not fit. Lower max_new_tokens or max_pixels of the profile, or take a "
                    "larger card; python -m finer1_lite.memory shows where the memory goes."
                ) from error
        else:
            if size != first:
                warnings.warn(f"out of memory: {what} lowered from {first} to {size}", RuntimeWarning, stacklevel=2)
            return result, size
        size //= 2
        gc.collect()  # 4-bit models refer to themselves: one that was let go may still be on the card
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def cut(costs: list[int], limit: int, rows: int) -> list[range]:
    """Consecutive rows in parts whose costs sum to `limit` at most and that have `rows` rows at most.

    A row above the limit stands alone.

    >>> cut([3, 3, 3, 9, 1], limit=6, rows=10)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    parts, start, spent = [], 0, 0
    for i, cost in enumerate(costs):
        if i > start and (spent + cost > limit or i - start == rows):
            parts.append(range(start, i))
            start, spent = i, 0
        spent += cost
    return parts + [range(start, len(costs))] if costs else []


def cut_groups(costs: list[int], group: int, limit: int, rows: int) -> list[range]:
    """As `cut`, but whole groups of `group` rows stay together; one that is too large is cut by itself.

    Rows of two groups in one part would be padded to the longer of their packed rows.

    >>> cut_groups([2] * 8, group=4, limit=16, rows=10), cut_groups([2] * 8, group=4, limit=6, rows=10)
    ([range(0, 8)], [range(0, 3), range(3, 4), range(4, 7), range(7, 8)])
    """
    whole, parts = [sum(costs[i : i + group]) for i in range(0, len(costs), group)], []
    for part in cut(whole, limit, max(1, rows // group)):
        start, stop = part.start * group, part.stop * group
        inside = cut(costs[start:stop], limit, rows) if len(part) == 1 else [range(stop - start)]
        parts += [range(start + p.start, start + p.stop) for p in inside]
    return parts
