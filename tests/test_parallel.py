"""Two processes do what one does: the same loss, the same gradients. The slow test launches, the fast one forks."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from test_checkpoint import FORK, PROFILE, SETTING, birds, make_loop

from finer1_lite.loop import Checkpoints
from finer1_lite.recipes import answer_rows
from finer1_lite.sft import train_sft


def main(folder: Path, whole: bool) -> None:
    """A process's share of an RL update on given groups and of two SFT steps; `whole`: also the RL loop."""
    data, facts = birds(), {}
    loop = make_loop(data)
    start = loop.state()
    loop.generator.manual_seed(0)  # of their own each process draws something else
    loop.rng = np.random.default_rng(0)
    groups = loop.roll_out([loop.sampler.next(1)[0] for _ in range(3)])  # the same three in every process
    for group, rewards in zip(groups, ([0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])):
        group.rewards = group.accuracies = torch.tensor(rewards)
    gradients, parameters, zero_grad = {}, loop.policy.trainable(), loop.optimizer.zero_grad

    def look():
        gradients.update({str(i): p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None})
        zero_grad()

    loop.optimizer.zero_grad = look  # the last thing of a step: the gradients are summed and clipped
    facts["rl"] = loop.update(loop.team.share(groups))
    loop.restore(*start)

    rows = answer_rows(data["label"], loop.cache, 0)
    config = replace(PROFILE.sft_answers, epochs=1, batch_size=5, lr=1e-3)  # 5: shares of unequal size
    history = train_sft(loop.policy, rows[:10], config, 0, log=folder / "sft.csv")
    facts["sft"] = [{k: row[k] for k in ("loss", "grad_norm")} for row in history]
    if whole:
        for steps in (2, 3):  # the second goes on from the first one's checkpoints
            again = make_loop(data, setting=replace(SETTING, steps=steps))
            again.train(folder / "rl.csv", checkpoints=Checkpoints(folder / "checkpoints", every=1))
        facts["steps"] = [row["step"] for row in again.history]
    if loop.team.rank == 0:
        save_file(gradients, folder / "gradients.safetensors")
        (folder / "facts.json").write_text(json.dumps(facts | {"processes": loop.team.size}))


def launch(folder: Path, *launcher: str) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *launcher, __file__, str(folder), "whole"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def forked(folder: Path, rank: int, port: int) -> None:
    """What a launcher does for one of two processes."""
    PartialState._reset_state()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    main(folder, False)


def compare(folder: Path) -> None:
    """Figures and gradients of one process and of two are the same."""
    one, two = (json.loads((folder / name / "facts.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2) and len(one["sft"]) == len(two["sft"]) == 2
    for a, b in zip(one["sft"] + [one["rl"]], two["sft"] + [two["rl"]]):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    ours, theirs = (load_file(folder / name / "gradients.safetensors") for name in ("one", "two"))
    assert ours.keys() == theirs.keys() and any(g.abs().max() > 1e-4 for g in ours.values())
    for name in ours:
        assert (ours[name] - theirs[name]).norm() <= 1e-4 * ours[name].norm() + 1e-9


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path):
    main(tmp_path / "one", False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [FORK.Process(target=forked, args=(tmp_path / "two", rank, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    compare(tmp_path)


@pytest.mark.slow
def test_the_whole_loop_runs_and_resumes_and_only_one_process_writes(tmp_path):
    launch(tmp_path / "one")
    launch(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    compare(tmp_path)
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert json.loads((folder / "facts.json").read_text())["steps"] == [0, 1, 2]
        assert len(pd.read_csv(folder / "rl.csv")) == 3
        names = [f"step-00000{step}.safetensors" for step in (2, 3)]
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == names


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["whole"])
