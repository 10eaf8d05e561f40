"""Run by `tests/test_parallel.py` in one process and in two: the same steps, the same files.

Usage: parallel_run.py FOLDER [whole]. Every process takes its share of two SFT steps and of one RL update on given groups;
the main one writes gradients and figures. With `whole` also the RL loop with checkpoints, which must only work.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from test_checkpoint import PROFILE, SETTING, birds, make_loop

from finer1_lite.loop import Checkpoints
from finer1_lite.recipes import answer_rows
from finer1_lite.sft import train_sft


def main(folder: Path, whole: bool) -> None:
    data, facts = birds(), {}
    loop = make_loop(data)
    start = loop.state()
    loop.generator.manual_seed(0)  # of their own each process draws something else
    loop.rng = np.random.default_rng(0)
    groups = loop.roll_out([loop.sampler.next(1)[0] for _ in range(3)])  # the same three in every process
    for group, rewards in zip(groups, ([0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])):
        group.rewards = group.accuracies = torch.tensor(rewards)
    gradients, parameters = {}, loop.policy.trainable()
    zero_grad = loop.optimizer.zero_grad

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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["whole"])
