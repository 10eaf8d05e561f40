"""The whole story without notebooks: chains, SFT, DAPO, TAPO, evaluation; for several seeds.

`python -m finer1_lite.story --seeds 0 1 2 --out results` writes `results.csv`. The notebooks
call the same functions one by one. A seed draws everything: which species are seen, the order of the
training rows, the adapters' start, the rollouts.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .birds.dataset import load_birds
from .config import ASSETS, Profile, get_profile
from .cot.chains import chat_row, load_chains, question_and_completion, save_chains, to_completion
from .cot.concepts import choose_concepts
from .cot.teacher import Built, Sampler, Task, build_chains
from .evaluate import predict, result_rows
from .losses import DAPO, LossConfig
from .policy.inputs import VisionCache
from .policy.load import Policy, load_base, load_policy
from .policy.rollout import rollout
from .prompts import QUESTIONS, THINK_INSTRUCTION, question
from .report import (
    draw_poster, load_predictions, paired_differences, save_predictions, table, versions, where_triplets_matter,
)  # fmt: skip
from .samplers import TripletSampler, nearest_classes
from .sft import Row, train_sft, write_csv
from .tapo import Tapo

TEACHER = ASSETS / "teacher"
DESCRIPTIONS_PER_QUESTION = 2


def one_per_class(labels: list[str]) -> list[int]:
    """The first image of each class: Stage 1 uses one image per seen class."""
    return [labels.index(c) for c in sorted(set(labels))]


def sampler_of(policy: Policy, cache: VisionCache, seed: int, temperature: float = 1.0) -> Sampler:
    """A teacher's voice: (image index, prompt) pairs to sampled texts."""
    generator = torch.Generator(policy.model.device).manual_seed(seed)

    def sample(asked: list[tuple[int, str]]) -> list[str]:
        prompts = [(prompt, cache.get([i])[0]) for i, prompt in asked]
        return rollout(policy, prompts, 1, generator, temperature).texts

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
        prompt = f"{task.question} {THINK_INSTRUCTION}"
        completion = to_completion(attempt.chain)
        rows.append(chat_row(task.image_index, task.label, prompt, completion, f"train/{task.image_index:05d}.png"))
    return rows


def sft_rows(rows: list[dict], cache: VisionCache) -> list[Row]:
    """Chat rows as (question, seen, answer) rows for `train_sft`."""
    pairs = [question_and_completion(row) for row in rows]
    return [(q, s, a) for (q, a), s in zip(pairs, cache.get([row["image_index"] for row in rows]))]


def answer_rows(labels: list[str], cache: VisionCache, seed: int) -> list[Row]:
    """The baseline's rows: every training image with its bare name."""
    rng = np.random.default_rng(seed)
    seen = cache.get(range(len(labels)))
    return [(question(rng, think=False), s, f"<answer> {label} </answer>") for label, s in zip(labels, seen)]


def look_alike_classes(cache: VisionCache, labels: list[str]) -> dict[str, list[str]]:
    """Every class's other classes, most similar first, by the mean image tokens of the policy's own tower."""
    means = torch.stack([s.tokens.float().mean(0) for s in cache.get(range(len(labels)))])
    return nearest_classes(labels, means - means.mean(0))


def dapo_setting(profile: Profile):
    """DAPO at TAPO's cost in rollouts: all of them from the anchor, no triplet terms, its own learning rate."""
    config = profile.tapo
    everything = config.num_anchor + config.num_positive
    return replace(config, num_anchor=everything, num_positive=0, lr=profile.dapo_lr), DAPO


def reinforce(
    policy: Policy, cache: VisionCache, labels: list[str], config, loss: LossConfig, seed: int,
    log: Path | None = None, on_step: Callable[[dict], None] | None = None,
) -> Tapo:  # fmt: skip
    """Train `policy` in place with DAPO or TAPO; returns the loop with its state."""
    sampler = TripletSampler(labels, look_alike_classes(cache, labels), seed)
    loop = Tapo(policy, cache, labels, sampler, config, loss, seed)
    loop.train(log, on_step)
    return loop


def run_seed(profile: Profile, seed: int, out: Path, say=print) -> list[dict]:
    """All five methods from one seed; writes chains, adapters and logs under `out`, returns result rows.

    What already lies in `out` is used again, so a killed run goes on where it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data, rows = load_birds(seed), []
    base = load_base(profile)
    caches = {name: VisionCache(base.model, base.processor, data[name]["image"]) for name in ("train", "test")}
    labels, test = data["train"]["label"], data["test"]
    options = look_alike_classes(caches["test"], test["label"])

    def judged(policy, method, think):
        for protocol, nearest in (("open", None), ("closed", options)):
            path = out / f"{method}_{protocol}.jsonl"
            if not path.exists():
                said = predict(policy, caches["test"], test, think, seed, nearest, f"{method} {protocol}")
                save_predictions(path, said)
            made = load_predictions(path)
            rows.extend(result_rows(made, method, protocol, seed))
        say(f"{method}: {open_accuracy(rows, method)}, {time.perf_counter() - start:.0f} s")

    judged(base, "base", think=False)
    if not (out / "chains.jsonl").exists():
        teacher = sampler_of(load_policy(profile, TEACHER), caches["train"], seed)
        tasks, built = make_chains(sampler_of(base, caches["train"], seed), teacher, labels, seed)
        save_chains(out / "chains.jsonl", chain_rows(tasks, built))
        say(f"chains: {len(built.accepted)} accepted, {len(built.rejected)} rejected")

    for method, config in (("sft_answers", profile.sft_answers), ("cot_sft", profile.sft)):
        if not (out / method / "adapter_model.safetensors").exists():
            policy = load_policy(profile, seed=seed)
            chains = sft_rows(load_chains(out / "chains.jsonl"), caches["train"])
            examples = chains if method == "cot_sft" else answer_rows(labels, caches["train"], seed)
            train_sft(policy, examples, config, seed, log=out / f"{method}.csv")
            policy.save(out / method)
        judged(load_policy(profile, out / method), method, think=method == "cot_sft")
    for method, (config, loss) in (("dapo", dapo_setting(profile)), ("tapo", (profile.tapo, profile.loss))):
        if not (out / method / "adapter_model.safetensors").exists():
            policy = load_policy(profile, out / "cot_sft")
            reinforce(policy, caches["train"], labels, config, loss, seed, out / f"{method}.csv")
            policy.save(out / method)
        judged(load_policy(profile, out / method), method, think=True)
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
