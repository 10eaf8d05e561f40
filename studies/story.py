"""The whole story without notebooks: chains, SFT, DAPO, TAPO, evaluation; for several seeds.

`python -m studies.story --seeds 0 1 2 3 4 --out results` writes `results.csv`. The notebooks
call the same functions one by one. A seed draws everything: which species are seen, the order of the
training rows, the adapters' start, the rollouts.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset

from finer1_lite.birds.dataset import PER_CLASS, load_birds
from finer1_lite.config import Profile, TapoConfig, get_profile, versions
from finer1_lite.cot.build import Sampler
from finer1_lite.cot.chains import load_chains, save_chains
from finer1_lite.evaluate.answers import METHODS, WITHOUT_CHAIN, Prediction, predict
from finer1_lite.evaluate.statistics import result_rows, table
from finer1_lite.files import write_csv
from finer1_lite.losses import LossConfig
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy, load_base, load_policy
from finer1_lite.prompts import QUESTIONS, question
from finer1_lite.recipes import (
    TEACHER,
    answer_rows,
    chain_rows,
    dapo_setting,
    look_alike_classes,
    make_chains,
    reinforce,
    sft_rows,
)
from finer1_lite.sft import train_sft
from finer1_lite.teachers.policy import sampler_of
from studies.report import draw_poster, paired_differences, where_triplets_matter


class Seed:
    """One seed's pictures, their features, chains, adapters and answers; what already lies in `out` is used again.

    judged_on: the split that is asked about, with `per_class` images of a class (see `load_birds`).
    data, questions: own pictures, "train" and `judged_on` with columns image, label, seen (`data.splits.few_shot`), and
    what is asked about them (`questions_for`). Their chains must lie in `out`.
    """

    def __init__(
        self, profile: Profile, seed: int, out: Path, judged_on: str = "test", per_class=PER_CLASS,
        data: Mapping[str, Dataset] | None = None, questions: Sequence[str] = QUESTIONS,
    ):  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        self.profile, self.seed, self.out, self.questions, self.own = profile, seed, out, questions, data is not None
        data = data or load_birds(seed, per_class)
        self.base, self.labels, self.judged = load_base(profile), data["train"]["label"], data[judged_on]
        self.cache, self.judged_cache = (
            VisionCache(self.base.model, self.base.processor, data[name]["image"]) for name in ("train", judged_on)
        )

    def voices(self) -> tuple[Sampler, Sampler]:
        """Who describes and who writes chains: the base and the bird world's teacher. ValueError for own pictures."""
        if self.own:
            raise ValueError(f"the kit's teacher knows birds alone: write your chains (chapter 7) to {self.out / 'chains.jsonl'}")
        writers = (self.base, load_policy(self.profile, TEACHER))
        describe, write = (sampler_of(policy, self.cache, self.seed) for policy in writers)
        return describe, write

    def chains(self) -> list[dict]:
        """Chat rows of the accepted chains."""
        path = self.out / "chains.jsonl"
        if not path.exists():
            save_chains(path, chain_rows(*make_chains(*self.voices(), self.labels, self.seed)))
        return load_chains(path)

    def sft(self, method: str, name: str | None = None, **changes) -> Path:
        """Stage 1 on chains ("cot_sft") or bare names ("sft_answers"); `changes` to the profile's setting."""
        folder = self.out / (name or method)
        if not (folder / "adapter_model.safetensors").exists():
            policy = load_policy(self.profile, seed=self.seed)
            if method == "cot_sft":
                config, rows = self.profile.sft, sft_rows(self.chains(), self.cache)
            else:
                config, rows = self.profile.sft_answers, answer_rows(self.labels, self.cache, self.seed, self.questions)
            train_sft(policy, rows, replace(config, **changes), self.seed, log=self.out / f"{folder.name}.csv")
            policy.save(folder)
        return folder

    def rl(self, name: str, config: TapoConfig, loss: LossConfig, start: Callable[[], Policy] | None = None, **how) -> Path:
        """Stage 2 from this seed's CoT SFT, or from `start()`; writes `name` and `name`.csv. how: see `reinforce`."""
        folder = self.out / name
        if not (folder / "adapter_model.safetensors").exists():
            policy = start() if start else load_policy(self.profile, self.sft("cot_sft"))
            how = {"ask": partial(question, questions=self.questions)} | how
            reinforce(policy, self.cache, self.labels, config, loss, self.seed, self.out / f"{name}.csv", **how)
            policy.save(folder)
        return folder

    def adapter(self, method: str) -> Path | None:
        """The adapter of one of METHODS, trained where it is missing; None for the base."""
        if method == "base":
            return None
        if method == "dapo":
            return self.rl(method, *dapo_setting(self.profile))
        return self.rl(method, self.profile.tapo, self.profile.loss) if method == "tapo" else self.sft(method)

    def answers(self, name: str, adapter: Path | None, protocol: str = "open", think: bool = True) -> list[Prediction]:
        """What the adapter (None: the base) answers on the judged images, kept in `out`.

        A killed call goes on where it was. ValueError where the file holds answers of another adapter.
        """
        policy = self.base if adapter is None else load_policy(self.profile, adapter)
        options = look_alike_classes(self.judged_cache, self.judged["label"]) if protocol == "closed" else None
        asked = (think, self.seed, options, f"{name} {protocol}", self.questions)
        path = self.out / f"{name}_{protocol}.jsonl"
        return predict(policy, self.judged_cache, self.judged, *asked, path=path)


def run_seed(profile: Profile, seed: int, out: Path, say=print) -> list[dict]:
    """All five methods from one seed; writes chains, adapters and logs under `out`, returns result rows.

    A killed run goes on where it was.
    """
    start, rows, lab = time.perf_counter(), [], Seed(profile, seed, out)
    for method in METHODS:
        adapter, think = lab.adapter(method), method not in WITHOUT_CHAIN
        for protocol in ("open", "closed"):
            rows += result_rows(lab.answers(method, adapter, protocol, think), method, protocol, seed)
        say(f"{method}: {open_accuracy(rows, method)}, {time.perf_counter() - start:.0f} s")
    write_csv(out / "results.csv", rows)
    return rows


def open_accuracy(rows: list[dict], method: str) -> str:
    """Open-world accuracy of `method` in words."""
    wanted = {r["split"]: r["value"] for r in rows
              if (r["method"], r["protocol"], r["metric"]) == (method, "open", "accuracy")}  # fmt: skip
    return ", ".join(f"{split} {value:.1%}" for split, value in wanted.items())


def _one(job: tuple[int, Path]) -> list[dict]:
    seed, out = job
    torch.set_num_threads(1)  # one core for each seed
    say = partial(print, f"[seed {seed}]", flush=True)
    return run_seed(get_profile("cpu"), seed, out / f"seed{seed}", say)


def main() -> None:
    """Command line: run seeds, two at a time, or print the table of a finished run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("studies/results"), help="gets tables, picture and versions")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="gets chains, adapters and logs")
    parser.add_argument("--report", type=Path, help="only print the table of this folder's results.csv")
    args = parser.parse_args()
    if args.report:
        print(table(pd.read_csv(args.report / "results.csv")))
        print(f"\nchapters, plots, adapters and results.csv: {args.report}")
        return
    with get_context("spawn").Pool(min(2, len(args.seeds))) as pool:
        rows = [row for part in pool.imap(_one, [(seed, args.work) for seed in args.seeds]) for row in part]
    write_csv(args.out / "results.csv", rows)
    write_csv(args.out / "differences.csv", paired_differences(args.work, args.seeds))
    write_csv(args.out / "where.csv", where_triplets_matter(args.work, args.seeds))
    draw_poster(pd.DataFrame(rows), args.out / "story.png")
    (args.out / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")
    print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
