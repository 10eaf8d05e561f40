"""One optimizer step of ours and of TRL's trainer, in alternating pairs in one process."""

from contextlib import nullcontext

import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from .measure import Meter, PeakMemory, facts, together
from .setting import OurSide, Step, TheirSide, fixed_length

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
    meters = {name: Meter(side.visual) for name, side in sides.items()}
    flops = {name: FlopCounterMode(display=False) for name in sides}
    memory = {name: PeakMemory() for name in sides}
    take_turns(sides, {name: [together(meters[name], flops[name], memory[name])] for name in sides})
    for name, side in sides.items():
        patches = meters[name].patches
        counts = {
            "side": name, "rollouts": step.rollouts, "tokens": step.max_new_tokens,
            "distinct_images": side.distinct_images(), "image_encodings": patches // step.patches_per_image,
            "patches": patches, "gflop": flops[name].get_total_flops() / 1e9, "peak_mb": memory[name].peak / 1e6,
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
