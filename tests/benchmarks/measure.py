"""Clocks, counters, the facts of the machine and the files of results: nothing here knows what is measured."""

import os
import platform
import re
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


def add_rows(path: Path, rows: list[dict], replaces: Sequence[str] = ()) -> pd.DataFrame:
    """Add rows to a CSV file, in place of those that agree with the first in the columns `replaces`; returns all."""
    new = pd.DataFrame(rows)
    table = pd.read_csv(path) if path.exists() else new[:0]
    if replaces:
        table = table[(table[list(replaces)] != new.loc[0, list(replaces)]).any(axis=1)]
    table = pd.concat([table, new], ignore_index=True)
    table.to_csv(path, index=False, float_format="%.6g")
    return table


def facts(seed: int) -> dict[str, str | int]:
    """Columns that every result row carries: the machine, the versions, the seed."""
    info = Path("/proc/cpuinfo")
    names = re.findall("model name\\s*: (.*)", info.read_text()) if info.exists() else []
    cpu = f"{(names or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {cpu}"
    return {"seed": seed, "threads": torch.get_num_threads(), "machine": machine} | {p: version(p) for p in PACKAGES}


class Meter:
    """Between entering and leaving: seconds on the wall clock, of this process, and image patches encoded."""

    def __init__(self, visual: torch.nn.Module):
        self.visual, self.patches = visual, 0

    def __enter__(self):
        self.handle = self.visual.register_forward_pre_hook(self.count, with_kwargs=True)
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.stop = time.perf_counter(), time.process_time()
        self.handle.remove()

    def row(self) -> dict[str, float]:
        return {"seconds": self.stop[0] - self.start[0], "cpu_seconds": self.stop[1] - self.start[1]}

    def count(self, module, args, kwargs):
        self.patches += len(args[0] if args else kwargs["hidden_states"])


@contextmanager
def together(*contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class PeakMemory(TorchDispatchMode):
    """Highest sum of the bytes of all tensors that were made inside and are still alive, in `peak`.

    Exact and repeatable, unlike the process's resident size. Tensors from outside (the weights) do not count, nor
    does scratch memory inside one operation. It slows every operation: measure time and memory in different runs.
    """

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.meet((args, kwargs), made=False)
        out = function(*args, **kwargs or {})
        self.meet(out, made=True)
        return out

    def meet(self, values, made: bool) -> None:
        for tensor in tree_leaves(values):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is None or storage._cdata in self.known:
                continue
            self.known[storage._cdata] = storage.nbytes() if made else 0
            self.alive += self.known[storage._cdata]
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        self.alive -= self.known.pop(key)
