"""The command line that every study shares: all jobs, two at a time, its tables, the libraries that made them."""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from finer1_lite.config import RESULTS, versions
from finer1_lite.files import write_csv, write_whole
from studies.study import SEEDS


def rows_of(job, name: str, one: Callable[..., list[dict]], work: Path) -> list[dict]:
    """`one(job, work)`, or what it returned before, which lies in `work`/rows."""
    called = re.sub(r"[^\w.+]+", " ", f"{name} {job}").strip()
    path = work / "rows" / f"{called}.json"
    if not path.exists():
        write_whole(path, json.dumps(one(job, work)))
    return json.loads(path.read_text())


def run(
    name: str, what: str, one: Callable[..., list[dict]], tables: Callable[..., dict] | None = None,
    jobs: Callable[[Sequence[int]], Iterable] = list, seeds: Sequence[int] = SEEDS, before: Callable | None = None,
) -> None:  # fmt: skip
    """The command line of a study: all jobs, two at a time; its tables and its entry in `versions.json`.

    jobs: seeds -> what `one` is called with, by default each seed. before: called as `one` with each seed, before
    them. tables: (rows, work, seeds, out) -> {file: rows}, by default all rows in `<name>.csv`. A killed run goes on
    where it was.
    """
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--out", type=Path, default=RESULTS, help="gets tables and versions")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="gets chains, adapters and answers")
    args = parser.parse_args()
    with get_context("spawn").Pool(2) as pool:
        if before:
            pool.map(partial(before, work=args.work), args.seeds, chunksize=1)
        parts = pool.imap(partial(rows_of, name=name, one=one, work=args.work), jobs(args.seeds))
        rows = [row for part in parts for row in part]
    made = tables(rows, args.work, args.seeds, args.out) if tables else {f"{name}.csv": rows}
    for file, table in made.items():
        write_csv(args.out / file, table)
    path = args.out / "versions.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    write_whole(path, json.dumps(kept | {name: versions()}, indent=1) + "\n")
