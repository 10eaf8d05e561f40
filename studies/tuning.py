"""How the CPU profile's settings were chosen: one grid for every method, judged on validation images.

`python -m studies.tuning sft`, then `rl`, trains every setting on the split of seed 100, which no
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

from finer1_lite.birds.dataset import PER_CLASS
from finer1_lite.config import RELEASED_SWITCHES, get_profile
from finer1_lite.evaluate.statistics import result_rows
from finer1_lite.files import write_csv
from finer1_lite.losses import TAPO
from finer1_lite.recipes import dapo_setting
from studies.story import Seed

SPLIT = 100
SFT_GRID = [(lr, epochs) for lr in (5e-4, 1e-3, 2e-3) for epochs in (8, 16)]
RL_GRID = (3e-4, 6e-4)
LOSSES = {"tapo": RELEASED_SWITCHES, "tapo_paper": TAPO}


def _start(work: Path) -> None:
    """Each process has one core and a split of its own."""
    global lab
    torch.set_num_threads(1)
    lab = Seed(get_profile("cpu"), SPLIT, work, "val", PER_CLASS | {"val": {True: 4, False: 6}})


def _run(job: tuple) -> dict:
    """Train one setting and judge it: a row of the results file."""
    method, lr, *epochs = job
    name = "-".join(map(str, [method, f"{lr:g}", *epochs]))
    if epochs:
        adapter, setting = lab.sft(method, name, lr=lr, epochs=epochs[0]), f"lr {lr:g}, {epochs[0]} epochs"
    else:
        dapo = dapo_setting(lab.profile)
        config, loss = dapo if method == "dapo" else (lab.profile.tapo, LOSSES[method])
        adapter, setting = lab.rl(name, replace(config, lr=lr), loss), f"lr {lr:g}"
    row = {"method": method, "setting": setting}
    for cell in result_rows(lab.answers(name, adapter, think=method != "sft_answers"), method, "open", SPLIT):
        if cell["metric"] == "accuracy":
            row |= {cell["split"]: cell["value"], f"n_{cell['split']}": cell["n"]}
    print(row, flush=True)
    return row


def main() -> None:
    """Command line: the grid of Stage 1 or of Stage 2, over two processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["sft", "rl"], help="rl starts from the profile's own CoT SFT setting")
    parser.add_argument("--out", type=Path, default=Path("results/tuning.csv"))
    parser.add_argument("--work", type=Path, default=Path("runs/tuning"))
    args = parser.parse_args()
    _start(args.work)
    lab.chains() if args.stage == "sft" else lab.sft("cot_sft")  # once, before the processes need it
    if args.stage == "sft":
        jobs = [(method, lr, epochs) for method in ("sft_answers", "cot_sft") for lr, epochs in SFT_GRID]
    else:
        jobs = [(method, lr) for lr in RL_GRID for method in ("dapo", "tapo")] + [("tapo_paper", RL_GRID[0])]
    with get_context("spawn").Pool(2, _start, (args.work,)) as pool:
        rows = pool.map(_run, jobs, chunksize=1)
    kept = pd.read_csv(args.out).to_dict("records") if args.out.exists() else []
    kept = [r for r in kept if (r["method"], r["setting"]) not in {(n["method"], n["setting"]) for n in rows}]
    write_csv(args.out, sorted(kept + rows, key=lambda r: (r["method"], r["setting"])))


if __name__ == "__main__":
    main()
