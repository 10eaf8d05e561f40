"""Run by `tests/test_parallel.py` under `accelerate launch`, and alone: the same steps, the same files.

Usage: parallel_run.py FOLDER. Every process takes its share of two SFT steps and of one RL update on given groups;
the main one writes gradients, figures and the adapter. Then the whole RL loop, which must only work.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from test_checkpoint import PROFILE, SETTING, birds, half_right, make_loop

from finer1_lite.loop import Checkpoints
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.recipes import answer_rows
from finer1_lite.sft import train_sft


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    data, facts = birds(), {}

    policy = load_policy(PROFILE)
    rows = answer_rows(data["label"], VisionCache(policy.model, policy.processor, data["image"]), 0)
    config = replace(PROFILE.sft_answers, epochs=1, batch_size=5, lr=1e-3)  # 5: shares of unequal size
    history = train_sft(policy, rows[:10], config, 0, log=folder / "sft.csv")
    facts["sft"] = [{k: row[k] for k in ("loss", "grad_norm")} for row in history]

    alone = make_loop(data)
    alone.generator.manual_seed(0)  # of their own each process draws something else
    alone.rng = np.random.default_rng(0)
    groups = alone.roll_out([alone.sampler.next(1)[0] for _ in range(3)])  # the same three in every process
    for group, rewards in zip(groups, ([0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])):
        group.rewards = group.accuracies = torch.tensor(rewards)
    loop = make_loop(data)
    step = loop.stepper.step
    gradients = {}

    def look(loss):
        names = [n for n, p in loop.policy.model.named_parameters() if p.requires_grad]
        gradients.update({n: p.grad.clone() for n, p in zip(names, loop.stepper.parameters)})
        return step(loss)

    loop.stepper.step = look
    facts["rl"] = loop.update(loop.team.share(groups))
    whole = make_loop(data, half_right, replace(SETTING, steps=2))
    whole.train(folder / "rl.csv", checkpoints=Checkpoints(folder / "checkpoints", every=1))
    again = make_loop(data, half_right, replace(SETTING, steps=3))
    again.train(checkpoints=Checkpoints(folder / "checkpoints", every=1))
    facts["steps"], facts["processes"] = len(again.history), loop.team.size
    if loop.team.main:
        save_file(gradients, folder / "gradients.safetensors")
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
