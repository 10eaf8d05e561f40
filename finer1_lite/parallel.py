"""Several processes, each with a GPU: every one takes its share of a step's questions or rows, gradients are summed.

`accelerate launch` starts them; without it there is one process and nothing here does anything. Data parallel
only: each process holds the whole model, which QLoRA makes small. The adapters start equal (same seed) and stay
equal, because every process applies the same summed gradients.
"""

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce


class Team:
    """This process among `size` of them; `rank` 0 is the main one, which writes files and shows progress."""

    def __init__(self):
        # One process may sample for long while the others wait for its groups; NCCL's own patience is ten minutes.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=2))
        self.rank, self.size, self.device = state.process_index, state.num_processes, state.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def share(self, items: list) -> list:
        """This process's part of `items`: every size-th one."""
        return items[self.rank :: self.size]

    def sum(self, value: float) -> float:
        """The sum of `value` over all processes."""
        if self.size == 1:
            return value
        return reduce(torch.tensor(float(value), dtype=torch.float64, device=self.device), "sum").item()

    def mean_of(self, figures: dict[str, float]) -> dict[str, float]:
        """The mean over all processes of each figure."""
        return {key: self.sum(value) / self.size for key, value in figures.items()}

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; a process without any takes part with zeros."""
        if self.size == 1:
            return
        for p in parameters:
            p.grad = reduce(torch.zeros_like(p) if p.grad is None else p.grad, "sum")

    def everyones(self, value) -> list:
        """Each process's `value`, in the order of ranks."""
        return [value] if self.size == 1 else gather_object([value])
