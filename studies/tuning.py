"""How were the CPU profile's settings chosen? One grid for every method, judged on validation images.

`python -m studies.tuning` trains every setting on the split of seed 100, which no result uses, and writes accuracy on
validation images to `tuning.csv`; half an hour. The rule is the same for all methods: the highest accuracy on *seen*
species. Unseen species are reported and not used: whoever has their labels could have trained on them.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from finer1_lite.birds.dataset import PER_CLASS
from finer1_lite.config import RELEASED_SWITCHES, get_profile
from finer1_lite.evaluate.statistics import result_rows
from finer1_lite.losses import TAPO
from finer1_lite.recipes import dapo_setting
from studies.study import Seed, run

SFT_GRID = [(method, lr, epochs) for method in ("sft_answers", "cot_sft") for lr in (5e-4, 1e-3, 2e-3) for epochs in (8, 16)]
RL_GRID = [(method, lr) for lr in (3e-4, 6e-4) for method in ("dapo", "tapo")] + [("tapo_paper", 3e-4)]
LOSSES = {"tapo": RELEASED_SWITCHES, "tapo_paper": TAPO}


@cache
def split_of(seed: int, work: Path) -> Seed:
    """A seed that is asked about validation images, in a folder of its own."""
    torch.set_num_threads(1)  # two processes, one core each
    return Seed(get_profile("cpu"), seed, work / f"tuning{seed}", "val", PER_CLASS | {"val": {True: 4, False: 6}})


def prepare(seed: int, work: Path) -> None:
    """What all settings of Stage 2 start from: CoT SFT with the profile's own setting."""
    split_of(seed, work).sft("cot_sft")


def one_setting(job: tuple, work: Path) -> list[dict]:
    """Train one setting and judge it: a row of the table."""
    seed, (method, lr, *epochs) = job
    lab, name = split_of(seed, work), "-".join(map(str, [method, f"{lr:g}", *epochs]))
    if epochs:
        adapter, setting = lab.sft(method, name, lr=lr, epochs=epochs[0]), f"lr {lr:g}, {epochs[0]} epochs"
    else:
        config, loss = dapo_setting(lab.profile) if method == "dapo" else (lab.profile.tapo, LOSSES[method])
        adapter, setting = lab.rl(name, replace(config, lr=lr), loss), f"lr {lr:g}"
    row = {"method": method, "setting": setting}
    for cell in result_rows(lab.answers(name, adapter, think=method != "sft_answers"), method, "open", seed):
        if cell["metric"] == "accuracy":
            row |= {cell["split"]: cell["value"], f"n_{cell['split']}": cell["n"]}
    print(row, flush=True)
    return [row]


def tables(rows: list[dict], work: Path, seeds: list[int], out: Path) -> dict[str, list[dict]]:
    """The rows, method by method; seen and unseen side by side."""
    columns = ("method", "setting", "seen", "unseen", "n_seen", "n_unseen")
    made = [{column: row[column] for column in columns} for row in rows]
    return {"tuning.csv": sorted(made, key=lambda row: (row["method"], row["setting"]))}


if __name__ == "__main__":
    jobs = lambda seeds: [(seed, setting) for seed in seeds for setting in (*SFT_GRID, *RL_GRID)]  # noqa: E731
    run("tuning", __doc__, one_setting, tables, jobs, seeds=(100,), before=prepare)
