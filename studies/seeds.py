"""What the studies share: one command line, and figures of several seeds as a mean with an interval.

A study is a function `one_seed(seed, work) -> rows`. It finds that seed's adapters in the story's folder (`work`,
see `story.Seed`), trains what is missing, and returns one row for each figure: `seed`, what it is of, `value`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from finer1_lite.config import get_profile, versions
from finer1_lite.evaluate.statistics import over_seeds
from finer1_lite.files import write_csv
from studies.story import Seed

SEEDS = (0, 1, 2, 3, 4)


@cache
def lab_of(seed: int, work: Path) -> Seed:
    """One seed of the story in the folder `work`; its pictures and features are made once in each process."""
    torch.set_num_threads(1)  # two seeds at a time, one core each
    return Seed(get_profile("cpu"), seed, work / f"seed{seed}")


def command(name: str, one_seed: Callable[..., list[dict]], what: str, seeds: Sequence[int] = SEEDS) -> None:
    """The command line of a study: seeds, two at a time, to `<out>/<name>.csv` and `<name>_versions.json`."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="the story's folder: adapters are shared")
    args = parser.parse_args()
    with get_context("spawn").Pool(min(2, len(args.seeds))) as pool:
        rows = [row for part in pool.imap(partial(one_seed, work=args.work), args.seeds) for row in part]
    write_csv(args.out / f"{name}.csv", rows)
    (args.out / f"{name}_versions.json").write_text(json.dumps(versions(), indent=1) + "\n")


def paired(rows: pd.DataFrame, column: str, a: str, b: str, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """`over_seeds` of the difference a - b, two values of `column`, seed by seed.

    ValueError where a seed has one of them alone.
    """
    wide = rows[rows[column].isin([a, b])].pivot_table(index=["seed", *by], columns=column, values=value, sort=False)
    if wide.isna().any().any() or {a, b} - set(wide.columns):
        raise ValueError(f"{a!r} and {b!r} of {column!r} are not there for the same seeds and {', '.join(by)}")
    return over_seeds((wide[a] - wide[b]).rename(value).reset_index(), by, value)
