"""What each part of the method is worth: one thing changed at a time, five seeds, every variant against TAPO.

`python -m studies.ablations` goes on from the story's folder (`--work`), whose chains and CoT SFT all variants
of a seed share. Reinforcement takes STEPS steps of the CPU profile's TAPO with the same number of rollouts and the
same learning rate, whatever is changed. Writes to `results/`, and again after a kill only what is missing:

    ablations.csv        accuracy of each variant, open-world, and its paired difference to `tapo` (see `TABLES`)
    ablation_curves.csv  what training looked like
    ablation_versions.json

Not here, because they change nothing in this loop: clip-higher, dual clip and the ratio's clamp (one update for each
rollout batch, so the ratio is 1), the released group filter (rewards of 0 and 1 give the same groups), strict rewards (no TAPO
answer to the 5,440 test images holds the label and more).
"""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from finer1_lite.birds.diet import direct
from finer1_lite.config import RELEASED_SWITCHES, versions
from finer1_lite.cot.build import build_chains
from finer1_lite.cot.chains import chat_row, load_chains, parse_prose, question_and_completion, save_chains
from finer1_lite.cot.concepts import split_concepts
from finer1_lite.evaluate.answers import Prediction
from finer1_lite.files import write_csv
from finer1_lite.losses import DAPO, GRPO, TAPO, LossConfig
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.prompts import question
from finer1_lite.recipes import DESCRIPTIONS_PER_QUESTION, chain_rows, sft_rows, tasks_of
from finer1_lite.rewards import bare_reward, extract_answer, normalise, released_reward
from finer1_lite.samplers import ConfusionCounts
from finer1_lite.sft import train_sft
from studies.report import difference, load_predictions
from studies.seeds import SEEDS, lab_of
from studies.story import Seed

STEPS = 20  # half of the profile's: enough to see where each one goes
RELEASED_MICRO_BATCH = 4  # rollouts
CURVES = ("accuracy", "inter_kl", "entropy", "grad_norm", "length")


@dataclass(frozen=True)
class Variant:
    """One way to train. Default: TAPO from CoT SFT on one chain for each seen species."""

    loss: LossConfig | None = RELEASED_SWITCHES  # None: no second stage
    sides: tuple[int, int] = (5, 5)  # rollouts of the anchor and of the positive
    negative: str = "similar"
    start: str = "cot_sft"  # a method of the story, "base", or one of CHAINS
    think: bool = True


_WITHOUT_INTER = replace(RELEASED_SWITCHES, gamma=0.0, eta1=0.0, eta2=0.0)
VARIANTS: dict[str, Variant] = {
    "tapo": Variant(),
    # components: the triplet's two halves
    "dapo": Variant(DAPO, sides=(10, 0)),
    "intra": Variant(_WITHOUT_INTER),
    "inter": Variant(sides=(10, 0)),
    # methods without chains
    "cls_rl": Variant(GRPO, (10, 0), start="base"),
    "no_think_rl": Variant(GRPO, (10, 0), start="base", think=False),
    "answers_rl": Variant(GRPO, (10, 0), start="sft_answers", think=False),
    # rollouts of anchor and positive
    "sides_8_2": Variant(sides=(8, 2)),
    "sides_2_8": Variant(sides=(2, 8)),
    "sides_0_10": Variant(sides=(0, 10)),
    # which look-alike
    "random_negative": Variant(negative="random"),
    "online_negative": Variant(negative="online"),
    # entropies. Without a gradient through pi_neg eta2's term is a constant: `tapo` has eta1's alone, `negative_grad` both.
    "no_entropy": Variant(replace(RELEASED_SWITCHES, eta1=0.0, eta2=0.0)),
    "negative_entropy": Variant(replace(RELEASED_SWITCHES, eta1=0.0, negative_grad=True)),
    # weight of the inter-class KL
    "gamma_0": Variant(replace(RELEASED_SWITCHES, gamma=0.0)),
    "gamma_0.03": Variant(replace(RELEASED_SWITCHES, gamma=0.03)),
    "gamma_0.1": Variant(replace(RELEASED_SWITCHES, gamma=0.1)),
    # paper against released code
    "anchor": Variant(replace(RELEASED_SWITCHES, update_image="anchor", old_image="anchor")),
    "paper_kl": Variant(replace(RELEASED_SWITCHES, kl_form="paper")),
    "negative_grad": Variant(replace(RELEASED_SWITCHES, negative_grad=True)),
    "printed_entropy": Variant(replace(RELEASED_SWITCHES, entropy_sign="printed")),
    "micro_batch": Variant(replace(RELEASED_SWITCHES, aggregation="micro_batch")),
    "paper": Variant(TAPO),
}
CHAINS = ("chains_12", "chains_24", "chains_48", "unstructured", "all_concepts")
VARIANTS |= {name: Variant(None, start=name) for name in CHAINS}
VARIANTS |= {f"{name}+tapo": Variant(start=name) for name in CHAINS}

# What stands beside what; the last one of each is what the others are compared with.
TABLES: dict[str, tuple[str, ...]] = {
    "methods": ("base", "sft_answers", "cls_rl", "no_think_rl", "answers_rl", "cot_sft", "tapo"),
    "components": ("cot_sft", "dapo", "intra", "inter", "tapo"),
    "sides": ("inter", "sides_8_2", "sides_2_8", "sides_0_10", "tapo"),
    "chains, Stage 1": ("chains_12", "chains_24", "chains_48", "cot_sft"),
    "chains, both stages": ("chains_12+tapo", "chains_24+tapo", "chains_48+tapo", "tapo"),
    "kind of chain, Stage 1": ("unstructured", "all_concepts", "cot_sft"),
    "kind of chain, both stages": ("unstructured+tapo", "all_concepts+tapo", "tapo"),
    "negatives": ("random_negative", "online_negative", "tapo"),
    "entropies": ("no_entropy", "negative_entropy", "negative_grad", "tapo"),
    "KL weight": ("gamma_0", "gamma_0.03", "gamma_0.1", "tapo"),
    "switches": ("anchor", "paper_kl", "negative_grad", "printed_entropy", "micro_batch", "paper", "tapo"),
}


NAMES = {
    "base": "base", "sft_answers": "SFT on answers", "cot_sft": "CoT SFT alone", "tapo": "TAPO", "dapo": "DAPO",
    "intra": "DAPO + intra-class", "inter": "DAPO + inter-class (10:0)", "cls_rl": "CLS-RL (no SFT)",
    "no_think_rl": "No-Thinking-RL (no SFT)", "answers_rl": "No-Thinking-RL after SFT on answers",
    "sides_8_2": "8:2", "sides_2_8": "2:8", "sides_0_10": "0:10", "random_negative": "random negative",
    "online_negative": "negative by own confusions", "no_entropy": "no entropy term",
    "negative_entropy": "H[pi_neg] alone",
    "gamma_0": "KL weight 0", "gamma_0.03": "KL weight 0.03", "gamma_0.1": "KL weight 0.1",
    "anchor": "update on the anchor", "paper_kl": "the paper's KL ratio", "negative_grad": "gradient through pi_neg",
    "printed_entropy": "H as printed", "micro_batch": "mean per micro-batch of 4", "paper": "all of the paper's side",
    "chains_12": "12 chains", "chains_24": "24 chains", "chains_48": "48 chains", "unstructured": "chains without comparison",
    "all_concepts": "all concepts told",
}  # fmt: skip


def label_of(variant: str) -> str:
    """A variant in words.

    >>> label_of("chains_12+tapo"), label_of("paper_kl")
    ('12 chains', "the paper's KL ratio")
    """
    return NAMES[variant.removesuffix("+tapo")]


# ---- Stage 1 on other chains


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
    tasks, (describe, write) = tasks_of(lab.labels, lab.seed), lab.voices()

    def every(captions: list[list[str]]) -> list[list[str]]:
        return [list(dict.fromkeys(c for text in own for c in split_concepts(text))) for own in captions]

    return chain_rows(tasks, build_chains(tasks, describe, write, every, samples=DESCRIPTIONS_PER_QUESTION))


def chains_of(lab: Seed, name: str) -> list[dict]:
    """The chat rows of one of CHAINS."""
    if name == "all_concepts":
        path = lab.out / f"{name}.jsonl"
        if not path.exists():
            save_chains(path, without_selection(lab))
        return load_chains(path)
    if name == "unstructured":
        return unstructured(lab.chains())
    rows = lab.chains()
    order = np.random.default_rng(lab.seed).permutation(len(rows))
    return [rows[i] for i in order[: int(name.removeprefix("chains_"))]]


def first_stage(lab: Seed, name: str) -> Path:
    """The adapter of a method of the story, or of CoT SFT on one of CHAINS for as many steps as on all."""
    if name not in CHAINS:
        return lab.sft(name)
    folder = lab.out / f"ablation_{name}"
    if not (folder / "adapter_model.safetensors").exists():
        rows, config = chains_of(lab, name), lab.profile.sft
        steps = config.epochs * -(-len(lab.chains()) // config.batch_size)
        epochs = max(1, round(steps / -(-len(rows) // config.batch_size)))
        policy = load_policy(lab.profile, seed=lab.seed)
        train_sft(policy, sft_rows(rows, lab.cache), replace(config, epochs=epochs), lab.seed)
        policy.save(folder)
    return folder


# ---- runs


def watched(confusion: ConfusionCounts) -> Callable[[str, str], dict[str, float]]:
    """The released reward, which also tells `confusion` what was taken for what."""
    spelt = {normalise(name): name for name in confusion.counts}

    def reward(completion: str, label: str) -> dict[str, float]:
        confusion.update(label, spelt.get(normalise(extract_answer(completion) or "")))
        return released_reward(completion, label)

    return reward


def start_of(lab: Seed, name: str) -> Policy:
    """The policy that the second stage starts from."""
    return load_policy(lab.profile, None if name == "base" else first_stage(lab, name), seed=lab.seed)


def run_variant(lab: Seed, name: str, steps: int = STEPS) -> list[Prediction]:
    """Train one variant from one seed, as far as it is not done, and ask it about the judged images."""
    variant, run = VARIANTS[name], f"ablation_{name}"
    if variant.loss is None:
        return lab.answers(run, first_stage(lab, variant.start))
    anchor, positive = variant.sides
    config, how = replace(lab.profile.tapo, steps=steps, num_anchor=anchor, num_positive=positive), {}
    if variant.negative == "online":
        confusion = ConfusionCounts(sorted(set(lab.labels)))
        how = {"confusion": confusion, "reward": watched(confusion)}
    if not variant.think:
        how = {"ask": partial(question, think=False, questions=lab.questions), "reward": bare_reward}
    if variant.loss.aggregation == "micro_batch":  # its parts are part of what it computes
        config = replace(config, micro_batch=RELEASED_MICRO_BATCH)
    start = partial(start_of, lab, variant.start)
    adapter = lab.rl(run, config, variant.loss, start, negative=variant.negative, **how)
    return lab.answers(run, adapter, think=variant.think)


def _job(job: tuple[str, int], work: Path) -> None:
    name, seed = job
    run_variant(lab_of(seed, work), name)
    print(f"[seed {seed}] {name} done", flush=True)


def prepare(seed: int, work: Path) -> None:
    """The story's part of one seed, before two processes ask for it at once."""
    lab = lab_of(seed, work)
    lab.answers("base", None)
    lab.answers("sft_answers", lab.sft("sft_answers"), think=False)
    lab.answers("cot_sft", lab.sft("cot_sft"))
    for name in CHAINS:
        first_stage(lab, name)


# ---- tables


def _file(name: str) -> str:
    return f"ablation_{name}" if name in VARIANTS else name


def table_rows(work: Path, seeds: list[int]) -> list[dict]:
    """For each table, variant and split: mean accuracy over seeds, each seed's, and the paired difference.

    low, high: 95% t-interval of the difference over seeds; p: the paired t-test that goes with it.
    """
    rows = []
    for (table, names), split in itertools.product(TABLES.items(), ("seen", "unseen")):
        def keep(_, p, split=split):
            return p.seen == (split == "seen")

        for name in names:
            answers = [load_predictions(work / f"seed{seed}" / f"{_file(name)}_open.jsonl") for seed in seeds]
            means = [np.mean([p.correct for p in said if keep(0, p)]) for said in answers]
            gap = difference(work, seeds, _file(name), _file(names[-1]), "open", keep)
            rows.append({
                "table": table, "variant": name, "split": split, "accuracy": round(float(np.mean(means)), 4),
                "each_seed": " ".join(f"{m:.3f}" for m in means), "against": names[-1], "difference": gap["mean"],
                "low": gap["low"], "high": gap["high"], "p": gap["p"], "n": gap["n"],
            })  # fmt: skip
    return rows


def points(share: float) -> str:
    """A difference of shares in points, with a decimal; never "-0.0".

    >>> points(0.058), points(-0.0002)
    ('+5.8', '+0.0')
    """
    return f"{round(100 * share, 1) + 0:+.1f}"


def verdict(row: dict) -> str:
    """What one row of the table shows, in a sentence: points of accuracy with the interval.

    >>> verdict({"variant": "dapo", "against": "tapo", "split": "unseen", "difference": 0.016, "low": -0.02, "high": 0.05})
    'DAPO: no difference to TAPO that these seeds can tell on unseen species (+1.6 points, -2.0 to +5.0).'
    """
    low, high = row["low"], row["high"]
    found = "better than" if low > 0 else "worse than" if high < 0 else "no difference to"
    doubt = "" if low > 0 or high < 0 else " that these seeds can tell"
    return (
        f"{label_of(row['variant'])}: {found} {label_of(row['against'])}{doubt} on {row['split']} species "
        f"({points(row['difference'])} points, {points(low)} to {points(high)})."
    )


def curve_rows(work: Path, seeds: list[int]) -> list[dict]:
    """What each step of each reinforced variant looked like."""
    rows = []
    for name, seed in itertools.product((n for n, v in VARIANTS.items() if v.loss), seeds):
        log = pd.read_csv(work / f"seed{seed}" / f"ablation_{name}.csv").round(5)
        kept = log[["step", *(c for c in CURVES if c in log)]].to_dict("records")
        rows += [{"variant": name, "seed": seed} | row for row in kept]
    return rows


def main() -> None:
    """Command line: every variant of every seed, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="the story's folder: CoT SFT is shared")
    args = parser.parse_args()
    with get_context("spawn").Pool(2) as pool:
        pool.map(partial(prepare, work=args.work), args.seeds, chunksize=1)
        jobs = list(itertools.product(VARIANTS, args.seeds))
        pool.map(partial(_job, work=args.work), jobs, chunksize=1)
    write_csv(args.out / "ablation_curves.csv", curve_rows(args.work, args.seeds))
    write_csv(args.out / "ablations.csv", table_rows(args.work, args.seeds))
    (args.out / "ablation_versions.json").write_text(json.dumps(versions(), indent=1) + "\n")


if __name__ == "__main__":
    main()
