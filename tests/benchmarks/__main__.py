"""How fast a step is beside TRL's on one CPU thread: python -m tests.benchmarks step|exact, from the root, alone.

Writes `results/step.csv` (timed steps), `ratios.csv` (our seconds over theirs), `exact.csv` (exact counts)."""

import argparse
import warnings
from contextlib import nullcontext

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from .measure import RESULTS, Meter, PeakMemory, add_rows, facts, together
from .setting import PATCHES, OurSide, Step, TheirSide, fixed_length

SIDES = ("trl", "dapo", "tapo")  # in the order in which they take turns


def sides_of(step: Step, steps: int) -> dict[str, TheirSide | OurSide]:
    """Plain GRPO by TRL, the same by our loop, and full TAPO: half of each group from the positive."""
    return {"trl": TheirSide(step, steps), "dapo": OurSide(step, "dapo"), "tapo": OurSide(step, "tapo")}


def take_turns(sides: dict, contexts: dict[str, list]) -> None:
    """After each step of TRL's trainer ours take one. Step i of a side runs in its contexts[i]."""

    def ours(i: int) -> None:
        for name in SIDES[1:]:
            sides[name].take(contexts[name][i])

    with fixed_length():
        sides["trl"].take_all(contexts["trl"], then=ours)


def timed_steps(step: Step, pairs: int) -> list[dict]:
    """`pairs` rounds after a warm-up; one row for each side and round."""
    sides = sides_of(step, 1 + pairs)
    meters = {name: [Meter(side.visual) for _ in range(pairs)] for name, side in sides.items()}
    take_turns(sides, {name: [nullcontext(), *made] for name, made in meters.items()})
    what = {"precision": "nf4" if step.quantize else "fp32", "rollouts": step.rollouts, "tokens": step.max_new_tokens}
    turns = [(i, side) for i in range(pairs) for side in SIDES]
    return [what | {"pair": i, "side": side} | meters[side][i].row() | facts(step.seed) for i, side in turns]


def exact_counts(step: Step) -> list[dict]:
    """Patches, operations and peak bytes of one step of each side, in fp32: 4-bit products are not counted.

    Operations: of matrix products, attention and convolutions, as `FlopCounterMode` counts them.
    """
    sides, rows = sides_of(step, 1), []
    counters = {n: (Meter(s.visual), FlopCounterMode(display=False), PeakMemory()) for n, s in sides.items()}
    take_turns(sides, {name: [together(*made)] for name, made in counters.items()})
    for name, (meter, flops, memory) in counters.items():
        counts = {
            "side": name, "rollouts": step.rollouts, "tokens": step.max_new_tokens,
            "distinct_images": sides[name].distinct_images(), "image_encodings": meter.patches // PATCHES,
            "patches": meter.patches, "gflop": flops.get_total_flops() / 1e9, "peak_mb": memory.peak / 1e6,
        }  # fmt: skip
        rows.append(counts | facts(step.seed))
    return rows


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Our seconds over TRL's of the same pair: median, lowest, highest; by the wall clock and by CPU time."""
    made = []
    for (machine, precision), part in rows.groupby(["machine", "precision"], sort=False):
        for side in SIDES[1:]:
            for clock in ("seconds", "cpu_seconds"):
                wide = part.pivot(index="pair", columns="side", values=clock)
                ratio = wide[side] / wide["trl"]
                made.append({
                    "machine": machine, "precision": precision, "side": side, "clock": clock, "pairs": len(wide),
                    "ratio": ratio.median(), "lowest": ratio.min(), "highest": ratio.max(),
                    "ours": wide[side].median(), "trl": wide["trl"].median(),
                })  # fmt: skip
    return pd.DataFrame(made)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=("step", "exact"))
parser.add_argument("--pairs", type=int, default=5, help="timed rounds for each precision")
args = parser.parse_args()
torch.set_num_threads(1)
warnings.simplefilter("ignore")
if args.what == "step":
    steps = [row for nf4 in (True, False) for row in timed_steps(Step(quantize=nf4), args.pairs)]
    found = ratios(add_rows(RESULTS / "step.csv", steps, replaces=["machine"]))
    found.to_csv(RESULTS / "ratios.csv", index=False, float_format="%.6g")
    print(found.round(3).to_string(index=False))
exact = pd.DataFrame(exact_counts(Step(quantize=False)))
exact.to_csv(RESULTS / "exact.csv", index=False, float_format="%.6g")
print(exact[["side", "distinct_images", "image_encodings", "gflop", "peak_mb"]].to_string(index=False))
