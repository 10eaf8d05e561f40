"""How time and memory of a step grow with the group, the completion and the image; fits and a plot."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .measure import Meter, PeakMemory, facts
from .setting import Step
from .trl_step import SIDES, sides_of, take_turns

# One question, one part: nothing is cut into micro-batches, so nothing hides how it grows.
BASE = Step(questions=1, num_generations=4, max_new_tokens=100, image_size=(224, 224))
SIZES = {64: (224, 224), 256: (448, 448), 640: (560, 896), 1280: (896, 1120)}  # image tokens -> width, height
SWEEPS = {
    "group size": {g: replace(BASE, num_generations=g) for g in (4, 8, 16, 32)},
    "completion tokens": {c: replace(BASE, max_new_tokens=c) for c in (100, 200, 400, 800, 1600)},
    "image tokens": {i: replace(BASE, image_size=size) for i, size in SIZES.items()},
}
LOOKS = {
    "trl": ("TRL GRPO", "s", "--", "0.45"), "dapo": ("ours, the same", "o", "-", "C0"),
    "tapo": ("ours, full TAPO", "^", ":", "C1"),
}  # fmt: skip


def measured(step: Step) -> list[dict]:
    """Bytes alive at the peak of each side's first step, which warms up, and seconds of its second."""
    sides = sides_of(step, 2)
    meters = {name: Meter(*side.watched()) for name, side in sides.items()}
    memory = {name: PeakMemory() for name in sides}
    take_turns(sides, {name: [memory[name], meters[name]] for name in sides})
    return [{"side": name} | meters[name].row() | {"peak_mb": memory[name].peak / 1e6} for name in SIDES]


def sweep() -> pd.DataFrame:
    """One row for each size and side."""
    rows = []
    for axis, steps in SWEEPS.items():
        for size, step in steps.items():
            step = replace(step, micro_batch=step.rollouts)
            made = measured(step)
            rows += [{"axis": axis, "size": size} | row | facts(step.seed) for row in made]
            figures = (f"{r['side']} {r['seconds']:.2f} s, {r['peak_mb']:.0f} MB" for r in made)
            print(f"{axis} {size}: {'; '.join(figures)}", flush=True)
    return pd.DataFrame(rows)


def fits(rows: pd.DataFrame) -> pd.DataFrame:
    """For each line of the plot: intercept + slope x size with its R2, and the power p of size^p."""
    made = []
    for (axis, side), part in rows.groupby(["axis", "side"], sort=False):
        for quantity in ("seconds", "peak_mb"):
            x, y = part["size"].to_numpy(float), part[quantity].to_numpy()
            slope, intercept = np.polyfit(x, y, 1)
            r2 = 1 - ((y - intercept - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
            power = np.polyfit(np.log(x), np.log(y), 1)[0]
            line = {"intercept": intercept, "slope": slope, "r2": r2, "power": power}
            made.append({"axis": axis, "side": side, "quantity": quantity} | line)
    return pd.DataFrame(made)


def draw(rows: pd.DataFrame, fitted: pd.DataFrame, path: Path) -> None:
    """Points as measured, lines as fitted; seconds above, megabytes below."""
    figure, axes = plt.subplots(2, len(SWEEPS), figsize=(12, 6.5), layout="constrained")
    units = {"seconds": "seconds of a step", "peak_mb": "MB alive at the peak"}
    for column, axis in enumerate(SWEEPS):
        for ax, (quantity, unit) in zip(axes[:, column], units.items()):
            for side, looks in LOOKS.items():
                part = rows[(rows.axis == axis) & (rows.side == side)]
                lines = fitted[(fitted.axis == axis) & (fitted.side == side)].set_index("quantity")
                _draw_line(ax, part["size"], part[quantity], lines.loc[quantity], *looks)
            ax.set(xlabel=axis, ylabel=unit, ylim=(0, None))
            ax.legend(fontsize=8)
    figure.suptitle("One optimizer step on one CPU thread: points measured, lines fitted, growth ~ size^p")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_line(ax, sizes, values, fit, name, marker, style, colour) -> None:
    ends = np.array([sizes.min(), sizes.max()])
    ax.plot(sizes, values, marker, color=colour)
    ax.plot(ends, fit.intercept + fit.slope * ends, style, color=colour, label=f"{name}, p = {fit.power:.2f}")
