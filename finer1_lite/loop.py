"""What both training loops need: bad steps, checkpoints, Ctrl-C, several processes."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from IPython import get_ipython
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

MAX_BAD_STEPS = 5  # in a row
FP16_SCALE = 2.0**10
TENSORS, STATE = "tensors.safetensors", "state.json"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


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


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; says which, why, and what to do. Nothing was deleted."""


@dataclass
class State:
    """What a loop needs to go on after `step` steps.

    tensors: flat names. facts: JSON values. identity: JSON values that must be the same when the run goes on
    (profile, settings, data).
    """

    step: int
    tensors: dict[str, torch.Tensor]
    facts: dict
    identity: dict


class Checkpoints:
    """The checkpoints of one run in `folder` (a mounted drive will do).

    every: steps between two of them; a kill loses at most so many. keep: how many stay. other_versions: go on
    with a warning where the libraries' versions differ; the numbers may then differ in the last digits.
    """

    def __init__(self, folder: str | Path, every: int = 10, keep: int = 2, other_versions: bool = False):
        if every < 1 or keep < 1:
            raise ValueError(f"every is {every} and keep is {keep}; both must be 1 or more")
        self.folder, self.every, self.keep, self.other_versions = Path(folder), every, keep, other_versions

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, whole or not, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", p.name) for p in self.folder.glob("step-*"))
        return sorted(int(m.group(1)) for m in found if m)

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.folder / f"step-{step:06d}"

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after `step` steps."""
        return step % self.every == 0

    def save(self, state: State) -> Path:
        """Write one checkpoint, then remove the oldest beyond `keep`. CheckpointError if the disk refuses."""
        final = self.path(state.step)
        part = final.with_name(f"part-{state.step:06d}-{os.getpid()}")
        try:
            for rest in self.folder.glob("part-*"):  # of a run that was killed while it wrote
                shutil.rmtree(rest, ignore_errors=True)
            part.mkdir(parents=True)
            tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
            save_file(tensors, part / TENSORS)
            text = {
                "step": state.step, "facts": state.facts, "identity": state.identity,
                "versions": {p: version(p) for p in PACKAGES}, "sha256": _checksum(part / TENSORS),
            }  # fmt: skip
            (part / STATE).write_text(json.dumps(text))
            for path in (part / TENSORS, part / STATE, part):
                _flush(path)
            old = part.with_name(f"{part.name}-old")
            if final.exists():  # the same step again, after an interrupted step was saved
                final.rename(old)
            part.rename(final)
            _flush(self.folder)
            shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            last = self.steps()
            raise CheckpointError(
                f"the checkpoint of step {state.step} was not written to {self.folder}: {error}. "
                + (f"The one of step {last[-1]} is whole. " if last else "")
                + "Free some space or choose another folder, then call train again: it goes on from memory."
            ) from error
        for step in [s for s in self.steps() if s <= state.step][: -self.keep]:  # later ones can only be damaged
            shutil.rmtree(self.path(step), ignore_errors=True)
        return final

    def clear(self) -> None:
        """Remove the checkpoints of a run that is done and whose adapter is saved."""
        for step in self.steps():
            shutil.rmtree(self.path(step))

    def load(self, identity: dict) -> State | None:
        """The newest whole checkpoint of the run `identity`, or None where there is none yet.

        A damaged one is named in a warning and left where it is. CheckpointError if all are damaged, or if
        the newest whole one is of another profile, setting, data set or library version.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                text, tensors = self._read(step)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                damaged.append(f"{self.path(step).name} ({error})")
                continue
            if damaged:
                warnings.warn(f"damaged: {', '.join(damaged)}; going on from step {step}", RuntimeWarning, stacklevel=2)
            self._check(step, text, json.loads(json.dumps(identity)))  # as it is read back: tuples are lists
            return State(step, tensors, text["facts"], identity)
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole: {', '.join(damaged)}. "
                "Bring back a copy of them, or move this folder away to start over."
            )
        return None

    def _read(self, step: int) -> tuple[dict, dict[str, torch.Tensor]]:
        text = json.loads((self.path(step) / STATE).read_text())
        if _checksum(self.path(step) / TENSORS) != text["sha256"]:
            raise ValueError("the tensors are not those that were written")
        return text, load_file(self.path(step) / TENSORS)

    def _check(self, step: int, text: dict, identity: dict) -> None:
        was = text["identity"]
        other = [f"{k} was {was.get(k)!r} and is {identity.get(k)!r}" for k in sorted(was.keys() | identity.keys())
                 if was.get(k) != identity.get(k)]  # fmt: skip
        if other:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.folder} is of another run: {'; '.join(other)}. "
                "Set these back to go on with it, or move that folder away to start anew."
            )
        here = {p: version(p) for p in PACKAGES}
        moved = [f"{p} {v} (here {here[p]})" for p, v in text["versions"].items() if here.get(p) != v]
        if moved and not self.other_versions:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.folder} was made with {', '.join(moved)}. Install these "
                "versions, or pass other_versions=True to go on with slightly different numbers."
            )
        if moved:
            warnings.warn(f"made with {', '.join(moved)}: numbers may differ in the last digits", stacklevel=3)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Ask the disk to keep a file or a folder's list of names, as a kill of the machine would lose both."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def adapter_tensors(model) -> dict[str, torch.Tensor]:
    """The trained parameters by name."""
    return {f"adapter/{name}": p for name, p in model.named_parameters() if p.requires_grad}


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names and values, of any dtype and device."""
    made = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        made.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def optimizer_tensors(optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors by the number of their parameter."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer/{i}/{key}": t for i, part in state.items() for key, t in part.items()}


def restore_adapter(model, tensors: dict[str, torch.Tensor]) -> None:
    """Copy saved parameters into the model, in place. CheckpointError if they are not the model's."""
    here, saved = adapter_tensors(model), {n: t for n, t in tensors.items() if n.startswith("adapter/")}
    if {n: tuple(p.shape) for n, p in here.items()} != {n: tuple(t.shape) for n, t in saved.items()}:
        raise CheckpointError("the saved adapter has other layers or another rank than this model's")
    with torch.no_grad():
        for name, p in here.items():
            p.copy_(saved[name])


def restore_optimizer(optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Give the optimizer its saved tensors back; its settings stay."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith("optimizer/"):
            _, i, key = name.split("/")
            state.setdefault(int(i), {})[key] = t
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def uninterrupted():
    """Ctrl-C waits for the end of this block: a half-made optimizer step could not be undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def stopped(step: int, saved: Path | None) -> None:
    """After Ctrl-C, called from the except block: in a notebook say where it stopped, else let the program end."""
    print(f"stopped after {step} whole steps" + (f", saved in {saved.name}" if saved else "")
          + "; run this cell again to go on")  # fmt: skip
    if get_ipython() is None:
        raise


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
