"""The whole story without notebooks: chains, SFT, DAPO, TAPO, evaluation; for several seeds.

`python -m finer1_lite.story --seeds 0 1 2 3 4 --out results` writes `results.csv`. The notebooks
call the same functions one by one. A seed draws everything: which species are seen, the order of the
training rows, the adapters' start, the rollouts.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from .birds.dataset import PER_CLASS, load_birds
from .config import ASSETS, Profile, TapoConfig, get_profile
from .cot.chains import chat_row, load_chains, question_and_completion, save_chains, spelt, to_completion
from .cot.concepts import choose_concepts
from .cot.endpoint import Answers
from .cot.teacher import Built, Sampler, Task, build_chains
from .evaluate import METHODS, WITHOUT_CHAIN, Prediction, fingerprint, predict, result_rows
from .losses import DAPO, LossConfig
from .policy.inputs import VisionCache
from .policy.load import Policy, load_base, load_policy
from .policy.rollout import rollout
from .prompts import QUESTIONS, instructed, question
from .report import draw_poster, paired_differences, table, versions, where_triplets_matter
from .samplers import ConfusionCounts, TripletSampler, nearest_classes
from .sft import Row, train_sft, write_csv
from .tapo import Tapo

TEACHER = ASSETS / "teacher"
DESCRIPTIONS_PER_QUESTION = 2


def one_per_class(labels: list[str]) -> list[int]:
    """The first image of each class: Stage 1 uses one image per seen class."""
    return [labels.index(c) for c in sorted(set(labels))]


def sampler_of(
    policy: Policy, cache: VisionCache, seed: int, temperature: float = 1.0, kept: Path | None = None
) -> Sampler:
    """A teacher's voice: (image index, prompt) pairs to sampled texts.

    kept: a file for its answers. A run that was killed asks again from the start and gets the same, from the file as
    far as it goes; each batch then has draws of its own.
    """
    generator, store = torch.Generator(policy.device).manual_seed(seed), Answers(kept) if kept else None
    voice, batches = fingerprint(policy) if kept else "", count()
    size = policy.profile.rollout_batch  # as it is now: a batch that did not fit would cut the next ones otherwise

    def write(part: list[tuple[int, str]]) -> list[str]:
        prompts = [(prompt, seen) for (_, prompt), seen in zip(part, cache.get(i for i, _ in part))]
        return rollout(policy, prompts, 1, generator, temperature).texts

    def write_once(part: list[tuple[int, str]]) -> list[str]:
        number = next(batches)
        said = repr((voice, seed, temperature, number, part, [cache.about(i)[1] for i, _ in part])).encode()
        keys = [f"{hashlib.sha256(said).hexdigest()[:32]} {row}" for row in range(len(part))]
        if any(key not in store.rows for key in keys):
            generator.manual_seed(seed + 1_000_003 * (number + 1))
            for key, text in zip(keys, write(part)):
                store.add({"key": key, "text": text, "unusable": None})
        return [store.rows[key]["text"] for key in keys]

    def sample(asked: list[tuple[int, str]]) -> list[str]:
        texts = []
        for start in tqdm(range(0, len(asked), size), desc="write", mininterval=5, disable=len(asked) <= size):
            texts += (write_once if kept else write)(asked[start : start + size])
        return texts

    return sample


def tasks_of(labels: list[str], seed: int) -> list[Task]:
    """One image of each class with a question."""
    rng = np.random.default_rng(seed)
    return [Task(i, labels[i], QUESTIONS[int(rng.integers(len(QUESTIONS)))]) for i in one_per_class(labels)]


def make_chains(base: Sampler, teacher: Sampler, labels: list[str], seed: int) -> tuple[list[Task], Built]:
    """The chains of Stage 1: described, told the label, written, checked, sampled again."""
    tasks = tasks_of(labels, seed)
    return tasks, build_chains(tasks, base, teacher, choose_concepts, samples=DESCRIPTIONS_PER_QUESTION)


def chain_rows(tasks: list[Task], built: Built) -> list[dict]:
    """Accepted chains as chat rows, with the student's prompt and completion."""
    rows = []
    for attempt in built.accepted:
        task = tasks[attempt.task]
        completion = to_completion(spelt(attempt.chain, task.label))
        rows.append(chat_row(task.image_index, task.label, instructed(task.question), completion))
    return rows


def sft_rows(rows: list[dict], cache: VisionCache) -> list[Row]:
    """Chat rows as (question, seen, answer) rows for `train_sft`."""
    pairs = [question_and_completion(row) for row in rows]
    return [(q, s, a) for (q, a), s in zip(pairs, cache.get([row["image_index"] for row in rows]))]


def answer_rows(
    labels: list[str], cache: VisionCache, seed: int, questions: Sequence[str] = QUESTIONS
) -> list[Row]:
    """The baseline's rows: every training image with its bare name."""
    rng = np.random.default_rng(seed)
    seen = cache.get(range(len(labels)))
    return [(question(rng, False, questions), s, f"<answer> {label} </answer>") for label, s in zip(labels, seen)]


def look_alike_classes(cache: VisionCache, labels: list[str]) -> dict[str, list[str]]:
    """Every class's other classes, most similar first, by the mean image tokens of the policy's own tower."""
    parts = (range(len(labels))[start : start + 64] for start in range(0, len(labels), 64))  # all may not fit into memory
    means = torch.stack([s.tokens.float().mean(0) for part in parts for s in cache.get(part)])
    return nearest_classes(labels, means - means.mean(0))


def dapo_setting(profile: Profile):
    """DAPO at TAPO's cost in rollouts: all of them from the anchor, no triplet terms, its own learning rate."""
    config = profile.tapo
    everything = config.num_anchor + config.num_positive
    return replace(config, num_anchor=everything, num_positive=0, lr=profile.dapo_lr), DAPO


def reinforce(
    policy: Policy, cache: VisionCache, labels: list[str], config, loss: LossConfig, seed: int,
    log: Path | None = None, on_step: Callable[[dict], None] | None = None,
    negative: str = "similar", confusion: ConfusionCounts | None = None, **asked,
) -> Tapo:  # fmt: skip
    """Train `policy` in place with DAPO or TAPO; returns the loop with its state.

    negative, confusion: how negatives are drawn, see `TripletSampler`. asked: `reward` and `ask` of `Tapo`.
    """
    nearest = look_alike_classes(cache, labels)
    sampler = TripletSampler(labels, nearest, seed, negative=negative, confusion=confusion)
    loop = Tapo(policy, cache, labels, sampler, config, loss, seed, **asked)
    loop.train(log, on_step)
    return loop


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
    parser.add_argument("--out", type=Path, default=Path("results"), help="gets tables, picture and versions")
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
