"""How were the learning rates and epochs chosen? By one rule for every method, with as many tries for each.

`python -m studies.tuning` takes the split of seed 100, which no result uses, and holds one fifth of its seen species
out of all training. Every setting is judged on validation images of the species that it was trained on, and of those
held out: the highest harmonic mean of the two accuracies wins. The unseen species of the split are not asked about.
Writes `tuning.csv`: method, setting, trained and held_out accuracy, their harmonic mean, and whether it won.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import pandas as pd
import torch

from finer1_lite.birds.dataset import PER_CLASS
from finer1_lite.config import get_profile
from finer1_lite.recipes import dapo_setting
from studies.ablations import VARIANTS, train
from studies.command import run
from studies.study import Seed

HELD_OUT = 0.2  # share of the seen species
ANSWERS = tuple((lr, 16) for lr in (3e-5, 6e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3))  # learning rate, epochs
COT = tuple((lr, epochs) for lr in (5e-4, 1e-3, 2e-3) for epochs in (16, 32))
RL = (7.5e-5, 1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3)
GRID = {
    "sft_answers": ANSWERS, "cot_sft": COT,
    **{method: tuple((lr,) for lr in RL) for method in ("cls_rl", "no_think_rl", "dapo", "tapo")},
}
JOBS = [(method, setting) for method, settings in GRID.items() for setting in settings]


@cache
def split_of(seed: int, work: Path) -> Seed:
    """The tuning split, of which one fifth of the seen species is held out; asked about validation images."""
    torch.set_num_threads(1)  # two processes, one core each
    per_class = PER_CLASS | {"val": {True: 6, False: 0}}
    return Seed(get_profile("cpu"), seed, work / f"tuning{seed}", "val", per_class, held_out=HELD_OUT)


def prepare(seed: int, work: Path) -> None:
    """What all settings of Stage 2 start from: CoT SFT with the profile's own setting."""
    split_of(seed, work).sft("cot_sft")


def one_setting(job: tuple, work: Path) -> list[dict]:
    """Train one setting and judge it: a row of the table."""
    seed, (method, (lr, *epochs)) = job
    lab, name = split_of(seed, work), "-".join(map(str, [method, f"{lr:g}", *epochs]))
    if epochs:
        adapter, setting = lab.sft(method, name, lr=lr, epochs=epochs[0]), f"lr {lr:g}, {epochs[0]} epochs"
    else:
        setting = f"lr {lr:g}"
        if method in VARIANTS and method not in ("dapo", "tapo"):
            adapter = train(lab, method, name, lr=lr)
        else:
            config, loss = dapo_setting(lab.profile) if method == "dapo" else (lab.profile.tapo, lab.profile.loss)
            adapter = lab.rl(name, replace(config, lr=lr), loss)
    said = lab.answers(name, adapter, think=method not in ("sft_answers", "no_think_rl"))
    shares = [float(np.mean([p.correct for p in said if (p.label in lab.labels) == split])) for split in (True, False)]
    figures = {"trained": shares[0], "held_out": shares[1], "mean": harmonic_mean(shares)}
    print(name, figures, flush=True)
    return [{"method": method, "setting": setting} | {key: round(value, 4) for key, value in figures.items()}]


def table(rows: list[dict], *_) -> dict[str, list[dict]]:
    """The rows, and which setting of each method won."""
    found = pd.DataFrame(rows)
    found["won"] = found["mean"] == found.groupby("method")["mean"].transform("max")
    return {"tuning.csv": found.to_dict("records")}


if __name__ == "__main__":
    run("tuning", __doc__, one_setting, table, lambda seeds: [(s, job) for s in seeds for job in JOBS], (100,), prepare)
