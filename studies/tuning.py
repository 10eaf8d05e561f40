"""How were the CPU profile's settings chosen? One grid for every method, judged on validation images.

`python -m studies.tuning` trains every setting on the split of seed 100, which no result uses, and writes `tuning.csv`.
The rule is the same for all methods: the highest accuracy on *seen* species; unseen ones are reported and not used.
"""

import itertools
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

GRID = (
    *itertools.product(("sft_answers", "cot_sft"), (5e-4, 1e-3, 2e-3), (8, 16)),  # method, learning rate, epochs
    *itertools.product(("dapo", "tapo"), (3e-4, 6e-4)), ("tapo_paper", 3e-4),
)  # fmt: skip
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
    rows = result_rows(lab.answers(name, adapter, think=method != "sft_answers"), method, "open", seed)
    seen, unseen = (row for row in rows if row["metric"] == "accuracy")
    figures = {"seen": seen["value"], "unseen": unseen["value"], "n_seen": seen["n"], "n_unseen": unseen["n"]}
    print(name, figures, flush=True)
    return [{"method": method, "setting": setting} | figures]


if __name__ == "__main__":
    in_order = lambda rows, *_: {"tuning.csv": sorted(rows, key=lambda row: (row["method"], row["setting"]))}  # noqa: E731
    run("tuning", __doc__, one_setting, in_order, lambda seeds: itertools.product(seeds, GRID), (100,), prepare)
