"""Both stages of training on the pretended card and on the CPU, in fp32, with the switches of a GPU profile.

    python tests/card_run.py l4    # prints figures as JSON; the card must give the CPU's"""

import json
import sys
import tempfile
from dataclasses import replace

import torch
from benchmarks.setting import our_reward, sampler_of
from card import card

from finer1_lite.birds.dataset import load_birds
from finer1_lite.config import PROFILES, SFTConfig, TapoConfig
from finer1_lite.evaluate.answers import predict
from finer1_lite.loop import Checkpoints
from finer1_lite.losses import TAPO
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.recipes import answer_rows
from finer1_lite.sft import train_sft
from finer1_lite.tapo import Tapo

SWITCHES = ("checkpointing", "dense_rollout")


def story(device: str, gpu: str) -> dict:
    """SFT on answers, saved and loaded; a step of TAPO, checkpoint, another loop that goes on; greedy answers."""
    switches = {name: getattr(PROFILES[gpu], name) for name in SWITCHES}
    profile = replace(PROFILES["cpu"], device=device, max_new_tokens=12, **switches)
    data = load_birds(0, {"val": {True: 1, False: 1}, "test": {True: 1, False: 1}})["train"].select(range(24))
    policy = load_policy(profile)
    cache = VisionCache(policy.model, policy.processor, data["image"])
    rows = answer_rows(data["label"], cache, 0)[:6]
    sft = train_sft(policy, rows, SFTConfig(epochs=1, batch_size=3, lr=1e-3, warmup_steps=1), 0)
    config = TapoConfig(steps=1, questions=2, num_anchor=2, num_positive=2, lr=1e-3)
    labels, loss = data["label"][:], replace(TAPO, filter_rule="none")
    with tempfile.TemporaryDirectory() as folder:
        policy.save(f"{folder}/sft")
        checkpoints = Checkpoints(f"{folder}/checkpoints", every=1)
        for steps in (1, 2):
            again, config = load_policy(profile, f"{folder}/sft"), replace(config, steps=steps)
            loop = Tapo(again, cache, labels, sampler_of(labels, 0), config, loss, 0, our_reward)
            history = loop.train(checkpoints=checkpoints)
    few = data.select(range(4))
    told = predict(again, VisionCache(again.model, again.processor, few["image"]), few, False, 0)
    return {
        "devices": sorted({str(p.device) for p in again.model.parameters()}),
        "texts": [p.text for p in told],
        "figures": [row[k] for row in sft + history for k in ("loss", "grad_norm")],
    }  # fmt: skip


def refused() -> list[str]:
    """The operations that the card refuses, with the words of CUDA."""
    there, here, names = torch.ones(2, 3, device="card"), torch.ones(2, 3), []
    for name, work in {
        "sum": lambda: there + here, "cat": lambda: torch.cat([there, here]), "mask": lambda: there[here > 0],
        "index": lambda: here[there.long()[0]], "where": lambda: torch.where(there > 0, there, here),
        "numpy": lambda: there.numpy(), "scalar": lambda: there + torch.tensor(1), "copy": lambda: there.cpu() + here,
        "write": lambda: there.copy_(here), "pick": lambda: there[torch.tensor([0])],
    }.items():  # fmt: skip
        try:
            work()
        except (RuntimeError, TypeError) as error:
            assert "same device" in str(error) or name == "numpy"
            names.append(name)
    return names


if __name__ == "__main__":
    torch.set_num_threads(1)
    said = {"cpu": story("cpu", sys.argv[1])}
    with card():
        print(json.dumps(said | {"card": story("card", sys.argv[1]), "refused": refused()}))
