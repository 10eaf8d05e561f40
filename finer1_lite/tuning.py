"""How the CPU profile's settings were chosen: one grid for every method, judged on validation images.

`python -m finer1_lite.tuning sft`, then `rl`, trains every setting on the split of seed 100, which no
result uses, and writes accuracy on validation images to `results/tuning.csv`. The rule is the same for all methods:
the highest accuracy on *seen* species. Unseen species are reported and not used; whoever has their
labels could have trained on them. A killed run goes on where it was.
"""

import argparse
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from .birds.dataset import PER_CLASS, load_birds
from .config import RELEASED_SWITCHES, get_profile
from .cot.chains import load_chains, save_chains
from .evaluate import predict, result_rows
from .losses import TAPO
from .policy.inputs import VisionCache
from .policy.load import load_base, load_policy
from .sft import train_sft, write_csv
from .story import TEACHER, answer_rows, chain_rows, dapo_setting, make_chains, reinforce, sampler_of, sft_rows

SPLIT = 100
SFT_GRID = [(lr, epochs) for lr in (5e-4, 1e-3, 2e-3) for epochs in (8, 16)]
RL_GRID = (3e-4, 6e-4)
LOSSES = {"tapo": RELEASED_SWITCHES, "tapo_paper": TAPO}


class Bench:
    """The split's images, their features and the chains, made once in each process."""

    def __init__(self, work: Path):
        self.profile, self.work = get_profile("cpu"), work
        data = load_birds(SPLIT, PER_CLASS | {"val": {True: 4, False: 6}})
        base = load_base(self.profile)
        self.val, self.labels = data["val"], data["train"]["label"]
        self.train_cache, self.val_cache = (
            VisionCache(base.model, base.processor, data[name]["image"]) for name in ("train", "val")
        )

    def chains(self) -> list[dict]:
        path = self.work / "chains.jsonl"
        if not path.exists():
            writers = (load_base(self.profile), load_policy(self.profile, TEACHER))
            voices = [sampler_of(policy, self.train_cache, SPLIT) for policy in writers]
            save_chains(path, chain_rows(*make_chains(*voices, self.labels, SPLIT)))
        return load_chains(path)

    def sft(self, method: str, lr: float, epochs: int):
        """Stage 1 on chains (cot_sft) or bare names (sft_answers); the adapter stays in `work`."""
        folder = self.work / f"{method}-{lr:g}-{epochs}"
        if not (folder / "adapter_model.safetensors").exists():
            policy = load_policy(self.profile, seed=SPLIT)
            if method == "cot_sft":
                config, rows = self.profile.sft, sft_rows(self.chains(), self.train_cache)
            else:
                config, rows = self.profile.sft_answers, answer_rows(self.labels, self.train_cache, SPLIT)
            train_sft(policy, rows, replace(config, lr=lr, epochs=epochs), SPLIT)
            policy.save(folder)
        return load_policy(self.profile, folder)

    def rl(self, method: str, lr: float):
        """Stage 2 from the chosen CoT SFT."""
        policy = self.sft("cot_sft", self.profile.sft.lr, self.profile.sft.epochs)
        config, loss = dapo_setting(self.profile) if method == "dapo" else (self.profile.tapo, LOSSES[method])
        log = self.work / f"{method}-{lr:g}.csv"
        reinforce(policy, self.train_cache, self.labels, replace(config, lr=lr), loss, SPLIT, log)
        policy.save(log.with_suffix(""))
        return policy

    def judge(self, policy, method: str, setting: str) -> dict:
        """One row of the results file."""
        think = method != "sft_answers"
        made = predict(policy, self.val_cache, self.val, think, SPLIT, progress=f"{method} {setting}")
        row = {"method": method, "setting": setting}
        for cell in result_rows(made, method, "open", SPLIT):
            if cell["metric"] == "accuracy":
                row |= {cell["split"]: cell["value"], f"n_{cell['split']}": cell["n"]}
        return row


def _start(work: Path) -> None:
    """Each process has one core and a bench of its own."""
    global bench
    torch.set_num_threads(1)
    bench = Bench(work)


def _run(job: tuple) -> dict:
    method, lr, *epochs = job
    policy = bench.sft(method, lr, *epochs) if epochs else bench.rl(method, lr)
    row = bench.judge(policy, method, f"lr {lr:g}" + (f", {epochs[0]} epochs" if epochs else ""))
    print(row, flush=True)
    return row


def main() -> None:
    """Command line: the grid of Stage 1 or of Stage 2, over two processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["sft", "rl"], help="rl starts from the profile's own CoT SFT setting")
    parser.add_argument("--out", type=Path, default=Path("results/tuning.csv"))
    parser.add_argument("--work", type=Path, default=Path("runs/tuning"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "sft":
        jobs = [(method, lr, epochs) for method in ("sft_answers", "cot_sft") for lr, epochs in SFT_GRID]
        Bench(args.work).chains()
    else:
        jobs = [(method, lr) for lr in RL_GRID for method in ("dapo", "tapo")] + [("tapo_paper", RL_GRID[0])]
    with get_context("spawn").Pool(2, _start, (args.work,)) as pool:
        rows = pool.map(_run, jobs, chunksize=1)
    kept = pd.read_csv(args.out).to_dict("records") if args.out.exists() else []
    kept = [r for r in kept if (r["method"], r["setting"]) not in {(n["method"], n["setting"]) for n in rows}]
    write_csv(args.out, sorted(kept + rows, key=lambda r: (r["method"], r["setting"])))


if __name__ == "__main__":
    main()
