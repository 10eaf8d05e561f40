"""Stopwatch, counters and the facts of the machine: nothing here knows what is measured."""

import os
import platform
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PHASES = ("vision", "prefill", "decode", "score", "backward", "rest")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


def facts(seed: int) -> dict[str, str | int]:
    """Columns that every result row carries: the machine, the versions, the seed."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {cpu_name()}"
    versions = {package: version(package) for package in PACKAGES}
    return {"seed": seed, "threads": torch.get_num_threads(), "machine": machine} | versions


def cpu_name() -> str:
    """The processor's name; on systems without /proc what Python knows."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


class Stopwatch:
    """Seconds by phase. Phases nest; the time of an inner one does not count for the outer one."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str):
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    @contextmanager
    def watching(self, *watched: tuple[object, str, str]):
        """Inside, each (owner, attribute, phase) is a function whose calls count for the phase."""
        with ExitStack() as stack:
            for owner, name, phase in watched:
                stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), phase)))
            yield self

    def _timed(self, function: Callable, phase: str) -> Callable:
        def timed(*args, **kwargs):
            with self.phase(phase):
                return function(*args, **kwargs)

        return timed


class Meter:
    """Seconds by phase, and image patches encoded, between entering and leaving it."""

    def __init__(self, visual: torch.nn.Module, watched: list[tuple[object, str, str]]):
        self.visual, self.watched = visual, [*watched, (visual, "forward", "vision")]
        self.watch, self.patches, self.seconds, self.cpu_seconds = Stopwatch(), 0, 0.0, 0.0

    def __enter__(self):
        self._stack = ExitStack()
        handle = self.visual.register_forward_pre_hook(self._count, with_kwargs=True)
        self._stack.callback(handle.remove)
        self._stack.enter_context(self.watch.watching(*self.watched))
        self._start = time.perf_counter(), time.process_time()
        self._stack.enter_context(self.watch.phase("rest"))
        return self

    def __exit__(self, *_):
        self._stack.close()
        self.seconds = time.perf_counter() - self._start[0]
        self.cpu_seconds = time.process_time() - self._start[1]

    def _count(self, module, args, kwargs):
        self.patches += len(args[0] if args else kwargs["hidden_states"])

    def row(self) -> dict[str, float]:
        """seconds: on the wall clock, and its phases. cpu_seconds: of this process alone."""
        phases = {name: self.watch.seconds[name] for name in PHASES}
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds} | phases


@contextmanager
def together(*contexts):
    """Inside all of them."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class PeakMemory(TorchDispatchMode):
    """Highest sum of the bytes of all tensors that were made inside and are still alive, in `peak`.

    Exact and repeatable, unlike the process's resident size, which depends on the allocator and on what ran
    before. Tensors from outside (the weights) do not count, nor does scratch memory inside one operation. It
    slows every operation, so time and memory are measured in different runs.
    """

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._known = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tensors_in([args, *kwargs.values()]):
            self._meet(tensor, made=False)
        out = function(*args, **kwargs)
        for tensor in tensors_in([out]):
            self._meet(tensor, made=True)
        return out

    def _meet(self, tensor: torch.Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes() if made else 0
        self.alive += self._known[key]
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._known.pop(key)


def tensors_in(values) -> list[torch.Tensor]:
    """Those in a list or tuple and in the lists and tuples in it."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found
