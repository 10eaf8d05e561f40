"""What both training loops share: steps, checkpoints, Ctrl-C, several processes."""

import json
import math
import signal
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from filelock import FileLock, Timeout
from IPython import get_ipython
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from tqdm.auto import tqdm

from .files import write_csv, write_whole
from .policy.load import Policy, digest

MAX_BAD_STEPS = 5  # in a row
FP16_SCALE = 2.0**10
VERSIONS = {package: version(package) for package in ("torch", "transformers", "peft", "bitsandbytes")}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; says which, and what to do. Nothing was deleted."""


class Checkpoints:
    """The checkpoints of one run in `folder`, safetensors files of which `keep` stay.

    One is written every `every` steps, and after a step where the last one, or the start, is `minutes` ago.
    """

    def __init__(self, folder: str | Path, every: int = 10, keep: int = 2, minutes: float = 10.0):
        self.folder, self.every, self.keep, self.minutes = Path(folder), every, keep, minutes

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.folder / f"step-{step:06d}.safetensors"

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.safetensors"))

    def save(self, step: int, tensors: dict[str, torch.Tensor], facts: dict, identity: dict) -> Path:
        """Write a checkpoint, whole or not at all, then remove the oldest beyond `keep`; returns its path.

        identity: JSON values that must be the same when the run goes on. CheckpointError if the disk refuses.
        """
        text = json.dumps({"facts": facts, "identity": identity | VERSIONS})
        try:
            for rest in self.folder.glob("step-*.part-*"):  # of a run that was killed while it wrote
                rest.unlink()
            path = write_whole(self.path(step), save(tensors, {"text": text, "sha256": digest(tensors, text)}))
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {step} was not written to {self.folder}: {error}. Those before it are as "
                "they were. Free some space or give another folder, load the policy anew, then train again."
            ) from error
        for old in [s for s in self.steps() if s <= step][: -self.keep]:  # later ones can only be damaged
            self.path(old).unlink()
        return path

    @contextmanager
    def alone(self):
        """Nobody else trains in the folder meanwhile. CheckpointError where another process does."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self.folder}.lock", timeout=0):
                yield
        except Timeout:
            raise CheckpointError(f"another process trains in {self.folder}: stop it, or give another folder") from None

    def clear(self) -> None:
        """Remove the checkpoints of a run that is done and whose adapter is saved."""
        for step in self.steps():
            self.path(step).unlink()

    def load(self, identity: dict) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors and facts of the newest whole checkpoint of the run `identity`; None where there is none yet.

        A damaged one is named in a warning and left. CheckpointError if all are, or if it is of another run.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                with safe_open(self.path(step), "pt") as file:
                    said, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
                if digest(tensors, said["text"]) != said["sha256"]:
                    raise ValueError("the content is not what was written")
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                damaged.append(f"{self.path(step).name} ({error})")
                continue
            if damaged:
                warnings.warn(f"damaged: {', '.join(damaged)}; going on from step {step}", RuntimeWarning, 2)
            text, now = json.loads(said["text"]), json.loads(json.dumps(identity | VERSIONS))  # tuples as lists
            was = text["identity"]
            keys = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
            if keys:
                other = "; ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in keys)
                advice = "set these back to go on with it, or move that folder away"
                raise CheckpointError(f"step {step} in {self.folder} is of another run: {other}; {advice}")
            return tensors, text["facts"]
        if damaged:
            names = ", ".join(damaged)
            raise CheckpointError(f"none in {self.folder} is whole: {names}; move this folder away to start over")


def adapter_tensors(model) -> dict[str, torch.Tensor]:
    """The trained parameters by name."""
    return {f"adapter/{name}": p for name, p in model.named_parameters() if p.requires_grad}


class Team:
    """This process among `size` of them; `rank` 0 writes files and shows progress."""

    def __init__(self):
        # One process may sample for long while the others wait; NCCL's own patience is ten minutes.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=2))
        self.rank, self.size, self.device = state.process_index, state.num_processes, state.device

    def share(self, items: list) -> list:
        """This process's part of `items`: every size-th one."""
        return items[self.rank :: self.size]

    def sum(self, value: float) -> float:
        """The sum of `value` over all processes."""
        return reduce(torch.tensor(float(value), dtype=torch.float64, device=self.device), "sum").item()


@contextmanager
def uninterrupted():
    """Ctrl-C waits for the end of this block: a half-made optimizer step could not be undone."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


class Loop:
    """A stage of training: AdamW on the policy's adapter, and `history`, a row of figures for each step so far.

    A stage gives its name `stage`, the number of `steps`, `collect` (returns what `update` needs, and figures),
    `update` (returns figures), `position` (as JSON values, what these advance besides) and `go_to` (a position).
    """

    def __init__(self, policy: Policy, config, max_grad_norm: float, seed: int):
        self.policy, self.config, self.max_grad_norm, self.seed = policy, config, max_grad_norm, seed
        self.team = Team()  # of one, unless `accelerate launch` started more
        self.history: list[dict] = []
        self.start = digest(adapter_tensors(policy.model))[:16]
        ends = [0, *(i for i, run in enumerate(policy.runs, 1) if run["end"] == self.start)]
        self.earlier = policy.runs[: ends[-1]]  # the adapter may have been set back since the last one
        self.bad_steps = 0  # in a row, until now
        self.optimizer = torch.optim.AdamW(policy.trainable(), lr=config.lr, weight_decay=config.weight_decay)
        half = policy.profile.dtype == "float16"  # its small gradients need scaling
        self.scaler = torch.amp.GradScaler(policy.device.type, init_scale=FP16_SCALE, enabled=half)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to those of the step."""
        self.scaler.scale(loss).backward()

    def step(self, loss: float) -> dict[str, float]:
        """Sum all processes' gradients, clip and apply them; returns grad_norm and skipped.

        skipped: 1 where something was not finite. FloatingPointError after MAX_BAD_STEPS such steps in a row.
        """
        parameters = self.policy.trainable()
        for p in parameters if self.team.size > 1 else ():  # a process without rows takes part with zeros
            p.grad = reduce(torch.zeros_like(p) if p.grad is None else p.grad, "sum")
        self.scaler.scale(torch.zeros((), device=self.policy.device))  # a process without rows has scaled nothing yet
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        good = math.isfinite(norm) and math.isfinite(loss)
        if good:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.bad_steps = 0 if good else self.bad_steps + 1
        if self.bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{self.bad_steps} steps in a row had a loss ({loss}) or gradient norm ({norm}) that is not finite. "
                "Lower the learning rate or gamma, or cap the KL (LossConfig.kl_cap)."
            )
        return {"grad_norm": norm, "skipped": float(not good)}

    def train(
        self, log: Path | None = None, on_step: Callable[[dict], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> list[dict]:  # fmt: skip
        """Go on to `steps` steps; returns the history, each row of which `on_step` gets too, and `log`, a CSV file.

        A tracker (trackio, wandb, TensorBoard) hangs on `on_step`: after `accelerator = Accelerator(log_with=...)` and
        `accelerator.init_trackers("finer1")` it is `lambda row: accelerator.log(row, step=row["step"])`.
        With `checkpoints` it starts where the newest one ends. After Ctrl-C the state is that of the last whole step.
        """
        with checkpoints.alone() if checkpoints and self.team.rank == 0 else nullcontext():
            return self._train(log, on_step, checkpoints)

    def _train(self, log, on_step, checkpoints) -> list[dict]:
        if checkpoints and not self.history and (saved := checkpoints.load(self.identity())):
            if (done := len(saved[1]["history"])) > self.steps:
                said = f"the run in {checkpoints.folder} has done {done} steps, {self.steps} are asked for"
                raise CheckpointError(f"{said}: ask for as many, or give another folder")
            self.restore(*saved)
        done, main, before = self.history, self.team.rank == 0, None
        spent, start = done[-1]["seconds"] if done else 0.0, time.perf_counter()
        kept = start  # when the last checkpoint was written
        bar = tqdm(total=self.steps, initial=len(done), desc=self.stage, mininterval=5, disable=not main)
        try:
            while len(done) < self.steps:
                before = len(done), self.position()
                batch, figures = self.collect()
                with uninterrupted():
                    figures = {"step": len(done)} | figures | self.update(batch)
                    done.append(figures | {"seconds": spent + time.perf_counter() - start})
                bar.update()
                due = checkpoints and time.perf_counter() - kept > 60 * checkpoints.minutes
                due = bool(checkpoints and self.team.sum(due))  # all processes write, or none
                if checkpoints and (due or len(done) % checkpoints.every == 0 or len(done) == self.steps):
                    self._save(checkpoints)
                    kept = time.perf_counter()
                if on_step:
                    on_step(done[-1])
        except KeyboardInterrupt:
            if before and before[0] == len(done):  # inside a step
                self.go_to(before[1])
                self.optimizer.zero_grad()
            # Of several processes the others may be anywhere in their step.
            saved = self._save(checkpoints) if checkpoints and self.team.size == 1 else None
            how = f"saved in {saved.name}; run this cell again to go on" if saved else (
                "not saved: this loop's own `train` goes on, a new one starts at step 0")  # fmt: skip
            print(f"stopped after {len(done)} whole steps, {how}")
            if get_ipython() is None:  # a program ends, in a notebook the next cell works
                raise
        finally:
            self.policy.model.eval()
            self.policy.runs = (*self.earlier, self.about())
            bar.close()
        if log and main:
            write_csv(log, done)
        return done

    def _save(self, checkpoints: Checkpoints) -> Path | None:
        state = self.state()  # all processes take part in it
        return checkpoints.save(len(self.history), *state, self.identity()) if self.team.rank == 0 else None

    def about(self) -> dict:
        """What really ran, as JSON values for the adapter's file and its card; `end` is a digest of the adapter."""
        config = {k: v for k, v in asdict(self.config).items() if k != "steps" and not k.startswith("micro")}
        run = {"stage": self.stage, "steps": len(self.history), "seed": self.seed, **config}
        return run | {"end": digest(adapter_tensors(self.policy.model))[:16]}

    def identity(self) -> dict:
        """What must be the same for a checkpoint to fit; the number of RL steps may grow."""
        config = {k: v for k, v in asdict(self.config).items() if k != "steps" and not k.startswith("micro")}
        run = {"stage": self.stage, "seed": self.seed, "processes": self.team.size, "config": config}
        return self.policy.identity() | run

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """Copies of the tensors on the CPU and, as JSON values, all else; all processes must ask for it."""
        tensors = adapter_tensors(self.policy.model)
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{key}": tensor for key, tensor in moments.items()}
        facts = {
            "positions": gather_object([self.position()]), "history": list(self.history),
            "bad_steps": self.bad_steps, "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}, facts

    def restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        """Go on as the loop that gave this `state`."""
        with torch.no_grad():
            for name, p in adapter_tensors(self.policy.model).items():
                p.copy_(tensors[name])
        moments, groups = defaultdict(dict), self.optimizer.state_dict()["param_groups"]
        for _, i, key in (name.split("/") for name in tensors if name.startswith("optimizer/")):
            moments[int(i)][key] = tensors[f"optimizer/{i}/{key}"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scaler.load_state_dict(facts["scaler"])
        self.history, self.bad_steps = facts["history"], facts["bad_steps"]
        self.go_to(facts["positions"][self.team.rank])
