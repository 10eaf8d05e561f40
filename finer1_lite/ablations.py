"""What each switch between paper and released code does: one changed at a time, several seeds.

`python -m finer1_lite.ablations` starts from the CPU profile's TAPO, which takes the released
code's side of these switches, and flips them one by one, then all. Every variant starts from the same CoT SFT
of its seed and has the same number of rollouts and steps and the same learning rate. Writes to `results/`:
`switches.csv` (accuracy of each variant on test images and its paired difference to the unchanged one) and
`switch_curves.csv` (what training looked like), with `switch_versions.json`. A killed run goes on where it was.

Not here, because they change nothing in this loop: clip-higher, dual clip and the ratio's clamp (one update for
each rollout batch, so the ratio is 1), the released group filter (rewards of 0 and 1 give the same groups).
"""

import argparse
import itertools
import json
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .config import RELEASED_SWITCHES, get_profile
from .losses import TAPO, LossConfig
from .report import difference, load_predictions, versions
from .sft import write_csv
from .story import Seed

UNCHANGED = "tapo"
SWITCHES: dict[str, LossConfig] = {
    UNCHANGED: RELEASED_SWITCHES,
    "anchor": replace(RELEASED_SWITCHES, update_image="anchor", old_image="anchor"),
    "paper_kl": replace(RELEASED_SWITCHES, kl_form="paper"),
    "negative_grad": replace(RELEASED_SWITCHES, negative_grad=True),
    "paper": TAPO,
}
STEPS = 20  # half of the profile's: enough to see where each one goes
CURVES = ("accuracy", "inter_kl", "entropy", "grad_norm", "length")


@cache
def lab_of(seed: int, work: Path) -> Seed:
    """One seed's pictures and features, made once in each process."""
    return Seed(get_profile("cpu"), seed, work / f"seed{seed}")


def prepare(seed: int, work: Path) -> None:
    """Stage 1 of one seed, before two processes ask for it at once."""
    torch.set_num_threads(1)
    lab_of(seed, work).sft("cot_sft")


def train_and_answer(name: str, seed: int, work: Path) -> list[dict]:
    """One variant from one seed; returns its training curve."""
    torch.set_num_threads(1)
    lab = lab_of(seed, work)
    run = f"switch_{name}"
    lab.answers(run, lab.rl(run, replace(lab.profile.tapo, steps=STEPS), SWITCHES[name]))
    print(f"[seed {seed}] {name} done", flush=True)
    log = pd.read_csv(lab.out / f"{run}.csv").round(5)
    return [{"variant": name, "seed": seed} | row for row in log[["step", *CURVES]].to_dict("records")]


def accuracy_rows(work: Path, seeds: list[int]) -> list[dict]:
    """For each variant and split: mean accuracy over seeds, each seed's, and the difference to `UNCHANGED`."""
    rows = []
    for name, split in itertools.product(SWITCHES, ("seen", "unseen")):
        answers = [load_predictions(work / f"seed{seed}" / f"switch_{name}_open.jsonl") for seed in seeds]
        means = [np.mean([p.correct for p in said if p.seen == (split == "seen")]) for said in answers]
        gap = difference(work, seeds, f"switch_{name}", f"switch_{UNCHANGED}", "open", lambda _, p: p.seen == (split == "seen"))
        rows.append({
            "variant": name, "split": split, "accuracy": round(float(np.mean(means)), 4),
            "each_seed": " ".join(f"{m:.3f}" for m in means), "minus_tapo": gap["mean"], "low": gap["low"],
            "high": gap["high"], "n": gap["n"],
        })  # fmt: skip
    return rows


def main() -> None:
    """Command line: every variant of every seed, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="the story's folder: CoT SFT is shared")
    args = parser.parse_args()
    with get_context("spawn").Pool(2) as pool:
        pool.starmap(prepare, [(seed, args.work) for seed in args.seeds], chunksize=1)
        jobs = [(name, seed, args.work) for seed in args.seeds for name in SWITCHES]
        curves = [row for rows in pool.starmap(train_and_answer, jobs, chunksize=1) for row in rows]
    write_csv(args.out / "switch_curves.csv", curves)
    write_csv(args.out / "switches.csv", accuracy_rows(args.work, args.seeds))
    (args.out / "switch_versions.json").write_text(json.dumps(versions(), indent=1) + "\n")


if __name__ == "__main__":
    main()
