"""The command line: see the package."""

import argparse
import time
import warnings
from pathlib import Path

import pandas as pd
import torch

from . import growth, trl_step
from .setting import Step

RESULTS = Path(__file__).parent / "results"


def save(name: str, rows) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.6g")
    return table


def beside_other_machines(steps: list[dict]) -> pd.DataFrame:
    """These rows, behind those that other machines have left in `step.csv`."""
    rows, path = pd.DataFrame(steps), RESULTS / "step.csv"
    before = pd.read_csv(path) if path.exists() else rows[:0]
    return pd.concat([before[~before["machine"].isin(rows["machine"])], rows], ignore_index=True)


def compare(pairs: int) -> None:
    """Step times in both precisions, and the exact counts."""
    steps = [row for nf4 in (True, False) for row in trl_step.timed_steps(Step(quantize=nf4), pairs)]
    found = save("ratios", trl_step.ratios(save("step", beside_other_machines(steps))))
    print(found.round(3).to_string(index=False))
    exact = save("exact", trl_step.exact_counts(Step(quantize=False)))
    print(exact[["side", "distinct_images", "image_encodings", "gflop", "peak_mb"]].to_string(index=False))


def grow() -> None:
    """The sweeps, their fits and the plot."""
    rows = save("growth", growth.sweep())
    growth.draw(rows, save("growth_fits", growth.fits(rows)), RESULTS / "growth.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("step", "growth", "all"), default="all")
    parser.add_argument("--pairs", type=int, default=5, help="timed rounds for each precision")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    RESULTS.mkdir(exist_ok=True)
    start = time.perf_counter()
    if args.what != "growth":
        compare(args.pairs)
    if args.what != "step":
        grow()
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes; results in tests/benchmarks/results")


main()
