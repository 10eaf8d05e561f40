"""Two processes do what one does: the same loss, the same gradients.

`accelerate launch` starts several processes for GPUs by torch.distributed.run, and only one for a CPU; here
torch.distributed.run starts two for the CPU, and accelerate finds them in the same way.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run(folder: Path, *launcher: str, whole: bool = False) -> tuple[dict, dict]:
    """The facts and gradients that a run leaves in `folder`."""
    command = [sys.executable, *launcher, str(HERE / "parallel_run.py"), str(folder), *["whole"] * whole]
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "facts.json").read_text()), load_file(folder / "gradients.safetensors")


def compare(one: dict, two: dict, ours: dict, theirs: dict) -> None:
    """Figures and gradients of one process and of two."""
    assert (one["processes"], two["processes"]) == (1, 2) and len(one["sft"]) == len(two["sft"]) == 2
    for a, b in zip(one["sft"] + [one["rl"]], two["sft"] + [two["rl"]]):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    assert ours.keys() == theirs.keys() and any(g.abs().max() > 1e-4 for g in ours.values())
    for name in ours:
        assert (ours[name] - theirs[name]).norm() <= 1e-4 * ours[name].norm() + 1e-9


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path):
    (one, ours), (two, theirs) = run(tmp_path / "one"), run(tmp_path / "two", *TWO)
    compare(one, two, ours, theirs)


@pytest.mark.slow
def test_the_whole_loop_runs_and_resumes_and_only_one_process_writes(tmp_path):
    for folder, launcher in ((tmp_path / "one", ()), (tmp_path / "two", TWO)):
        assert run(folder, *launcher, whole=True)[0]["steps"] == [0, 1, 2]
        assert len(pd.read_csv(folder / "rl.csv")) == 3
        names = [f"step-00000{step}.safetensors" for step in (2, 3)]
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == names
