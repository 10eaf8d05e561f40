"""Which part of the method does the work? One thing changed at a time, every variant against TAPO.

`python -m studies.ablations` goes on from the story's chains and CoT SFT, which all variants of a seed share.
Reinforcement takes STEPS steps with the same number of rollouts and the same learning rate, whatever is changed;
Stage 1 on other chains takes as many steps as on all. About two hours. Writes

    ablations.csv        open-world accuracy of each variant and its paired difference to the last one of its table
    ablation_curves.csv  what training looked like, for the switches between paper and released code
"""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from finer1_lite.birds.diet import direct
from finer1_lite.cot.build import build_chains
from finer1_lite.cot.chains import chat_row, load_chains, parse_prose, question_and_completion, save_chains
from finer1_lite.cot.concepts import split_concepts
from finer1_lite.evaluate.answers import Prediction, load_predictions
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.prompts import question
from finer1_lite.recipes import DESCRIPTIONS_PER_QUESTION, chain_rows, tasks_of
from finer1_lite.rewards import bare_reward
from finer1_lite.samplers import ConfusionCounts
from studies.differences import difference
from studies.study import Seed, run, seed_of
from studies.variants import CHAINS, TABLES, VARIANTS, watched

STEPS = 20  # half of the profile's: enough to see where each one goes
RELEASED_MICRO_BATCH = 4  # rollouts
CURVES = ("tapo", "anchor", "paper_kl", "negative_grad", "paper")


def unstructured(rows: list[dict]) -> list[dict]:
    """The same chains without candidates and comparison: what is seen, then the name."""
    short = []
    for row in rows:
        (asked, completion), label = question_and_completion(row), row["label"]
        thought = f"<think>\n{parse_prose(completion).analysis} {direct(label)}\n</think>\n<answer> {label} </answer>"
        short.append(chat_row(row["image_index"], label, asked, thought))
    return short


def without_selection(lab: Seed) -> list[dict]:
    """Chains whose writer was told every concept that any description held, not the telling ones alone."""
    tasks, (describe, write) = tasks_of(lab.labels, lab.seed), lab.writers()

    def every(captions: list[list[str]]) -> list[list[str]]:
        return [list(dict.fromkeys(c for text in own for c in split_concepts(text))) for own in captions]

    built = build_chains(tasks, describe, write, every, samples=DESCRIPTIONS_PER_QUESTION)
    return chain_rows(tasks, built, lab.cache)


def chains_of(lab: Seed, name: str) -> list[dict]:
    """The chat rows of one of CHAINS."""
    if name == "all_concepts":
        path = lab.out / f"{name}.jsonl"
        if not path.exists():
            save_chains(path, without_selection(lab))
        return load_chains(path)
    rows = lab.chains()
    if name == "unstructured":
        return unstructured(rows)
    order = np.random.default_rng(lab.seed).permutation(len(rows))
    return [rows[i] for i in order[: int(name.removeprefix("chains_"))]]


def first_stage(lab: Seed, name: str) -> Path:
    """The adapter of a method of the story, or of CoT SFT on one of CHAINS."""
    if name not in CHAINS:
        return lab.sft(name)
    rows = chains_of(lab, name)
    return lab.sft("cot_sft", f"ablation_{name}", rows, epochs=lab.same_steps(rows))


def run_variant(lab: Seed, name: str, steps: int = STEPS, protocol: str = "open") -> list[Prediction]:
    """Train one variant from one seed, as far as it is not done, and ask it about the judged images."""
    variant, folder = VARIANTS[name], f"ablation_{name}"
    if variant.loss is None:
        return lab.answers(folder, first_stage(lab, variant.start), protocol)
    anchor, positive = variant.rollouts
    config, how = replace(lab.profile.tapo, steps=steps, num_anchor=anchor, num_positive=positive), {}
    if variant.negative == "online":
        confusion = ConfusionCounts(sorted(set(lab.labels)))
        how = {"confusion": confusion, "reward": watched(confusion)}
    if not variant.think:
        how = {"ask": partial(question, think=False), "reward": bare_reward}
    if variant.loss.aggregation == "micro_batch":  # its parts are part of what it computes
        config = replace(config, micro_batch=RELEASED_MICRO_BATCH)

    def start() -> Policy:
        adapter = None if variant.start == "base" else first_stage(lab, variant.start)
        return load_policy(lab.profile, adapter, seed=lab.seed)

    adapter = lab.rl(folder, config, variant.loss, start, negative=variant.negative, **how)
    return lab.answers(folder, adapter, protocol, variant.think)


def prepare(seed: int, work: Path) -> None:
    """What two processes could ask for at once: Stage 1 on all kinds of chains, and the story's answers."""
    lab = seed_of(seed, work)
    for name in ("base", "sft_answers", "cot_sft"):
        lab.answers(name, lab.adapter(name))
    for name in CHAINS:
        first_stage(lab, name)


def one_variant(job: tuple[str, int], work: Path) -> list[dict]:
    """One variant of one seed: what each step of its training looked like, if it is one of CURVES."""
    (name, seed), kept = job, ["step", "accuracy", "inter_kl", "entropy"]
    run_variant(seed_of(seed, work), name)
    print(f"[seed {seed}] {name} done", flush=True)
    if name not in CURVES:
        return []
    log = pd.read_csv(work / f"seed{seed}" / f"ablation_{name}.csv").round(5)[kept]
    return [{"variant": name, "seed": seed} | row for row in log.to_dict("records")]


def table_rows(work: Path, seeds: list[int]) -> list[dict]:
    """For each table, variant and split: mean accuracy over seeds, each seed's, and the paired difference."""
    rows = []
    for (table, names), split in itertools.product(TABLES.items(), ("seen", "unseen")):
        keep = partial(lambda split, _, p: p.seen == (split == "seen"), split)
        files = {name: f"ablation_{name}" if name in VARIANTS else name for name in names}
        for name, file in files.items():
            answers = [load_predictions(work / f"seed{seed}" / f"{file}_open.jsonl") for seed in seeds]
            means = [np.mean([p.correct for p in said if keep(0, p)]) for said in answers]
            gap = difference(work, seeds, file, files[names[-1]], "open", keep)
            rows.append({
                "table": table, "variant": name, "split": split, "accuracy": round(float(np.mean(means)), 4),
                "each_seed": " ".join(f"{m:.3f}" for m in means), "against": names[-1], "difference": gap["mean"],
                "low": gap["low"], "high": gap["high"], "p": gap["p"], "n": gap["n"],
            })  # fmt: skip
    return rows


if __name__ == "__main__":
    run(
        "ablations", __doc__, one_variant, lambda rows, work, seeds, _:
        {"ablation_curves.csv": rows, "ablations.csv": table_rows(work, seeds)},
        jobs=lambda seeds: itertools.product(VARIANTS, seeds), before=prepare,
    )  # fmt: skip
