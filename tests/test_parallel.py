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


def run(folder: Path, *launcher: str) -> None:
    command = [sys.executable, *launcher, str(HERE / "parallel_run.py"), str(folder)]
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of a run with one process and of a run with two."""
    folder = tmp_path_factory.mktemp("parallel")
    run(folder / "one")
    run(folder / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    return folder / "one", folder / "two"


def facts(folder: Path) -> dict:
    return json.loads((folder / "facts.json").read_text())


def test_two_processes_took_part(both):
    assert [facts(f)["processes"] for f in both] == [1, 2]


def test_sft_has_the_same_loss_and_gradient_norm(both):
    one, two = (facts(f)["sft"] for f in both)
    assert len(one) == len(two) == 2
    for a, b in zip(one, two):
        assert b == pytest.approx(a, rel=1e-4)


def test_an_update_has_the_same_figures_and_gradients(both):
    one, two = (facts(f)["rl"] for f in both)
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    ours, theirs = (load_file(f / "gradients.safetensors") for f in both)
    assert ours.keys() == theirs.keys() and any(g.abs().max() > 1e-4 for g in ours.values())
    for name in ours:
        assert (ours[name] - theirs[name]).norm() <= 1e-4 * ours[name].norm() + 1e-9


def test_the_loop_runs_and_resumes_and_only_one_process_writes(both):
    for folder in both:
        assert facts(folder)["steps"] == 3
        assert len(pd.read_csv(folder / "rl.csv")) == 2
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
