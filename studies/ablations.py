"""Which part of the method does the work? One thing changed at a time, every variant against TAPO.

`python -m studies.ablations` goes on from the story's chains and CoT SFT, which all variants of a seed share.
Reinforcement takes 12 steps, where the story takes 40, with the same number of rollouts and the same learning rate,
whatever is changed; Stage 1 on other chains takes as many steps as on all. Writes `ablations.csv`: rows as in
`results.csv`.
"""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from finer1_lite.birds.dataset import load_birds
from finer1_lite.birds.diet import direct
from finer1_lite.cot.chains import chat_row, parse_prose, question_and_completion
from finer1_lite.evaluate.answers import Prediction
from finer1_lite.evaluate.statistics import result_rows
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.prompts import question
from finer1_lite.samplers import ConfusionCounts
from studies.command import run
from studies.study import Seed, seed_of
from studies.variants import ABLATIONS, CHAINS, CLOSED, VARIANTS, watched

SHARED = ("cot_sft",)  # a method of the story that stands beside the variants


def shortened(rows: list[dict], candidates: bool) -> list[dict]:
    """The same chains without the comparison: what is seen, the candidates if they are wanted, and the name."""
    short = []
    for row in rows:
        (asked, completion), label = question_and_completion(row), row["label"]
        chain = parse_prose(completion)
        listed = f"\nCandidates: {'; '.join(chain.options)}.\n" if candidates else " "
        thought = f"<think>\n{chain.analysis}{listed}{direct(label)}\n</think>\n<answer> {label} </answer>"
        short.append(chat_row(row["image_index"], label, asked, thought))
    return short


def chains_of(lab: Seed, name: str) -> list[dict]:
    """The chat rows of one of CHAINS."""
    rows = lab.chains()
    if name in ("generic", "no_comparison"):
        return shortened(rows, name == "no_comparison")
    order = np.random.default_rng(lab.seed).permutation(len(rows))
    return [rows[i] for i in order[: int(name.removeprefix("chains_"))]]


def first_stage(lab: Seed, name: str) -> Path:
    """The adapter of a method of the story, or of CoT SFT on one of CHAINS."""
    if name not in CHAINS:
        return lab.sft(name)
    rows = chains_of(lab, name)
    return lab.sft("cot_sft", f"ablation_{name}", rows, epochs=lab.same_steps(rows))


def pictures(lab: Seed, shots: int) -> tuple[VisionCache, list[str]]:
    """Features and labels of the first `shots` training pictures of each seen species."""
    if shots == 4:
        return lab.cache, lab.labels
    none = {True: 0, False: 0}
    data = load_birds(lab.seed, {"train": {True: shots, False: 0}, "val": none, "test": none})["train"]
    return VisionCache(lab.base.model, lab.base.processor, data["image"]), data["label"]


def train(lab: Seed, name: str, folder: str = "", **changes) -> Path:
    """The adapter of one of VARIANTS, trained where `folder` lacks it. changes: to the settings of stage 2."""
    variant = VARIANTS[name]
    if variant.loss is None:
        return first_stage(lab, variant.start)
    anchor, positive = variant.rollouts
    own = {key: value for key in ("lr", "steps") if (value := getattr(variant, key))}
    config = replace(lab.profile.tapo, num_anchor=anchor, num_positive=positive, **own | changes)
    reward, how = variant.reward or lab.profile.reward, {"negative": variant.negative}
    cache, labels = pictures(lab, variant.shots)
    if variant.negative == "online":
        how["confusion"] = ConfusionCounts(sorted(set(labels)))
        reward = watched(how["confusion"], reward)
    if not variant.think:
        how["ask"] = lambda rng, image: question(rng, think=False)

    def start() -> Policy:
        adapter = None if variant.start == "base" else first_stage(lab, variant.start)
        return load_policy(lab.profile, adapter, seed=lab.seed)

    folder = folder or f"ablation_{name}"
    return lab.rl(folder, config, variant.loss, start, (cache, labels), reward=reward, **how)


def ask(lab: Seed, name: str, protocol: str = "open") -> list[Prediction]:
    """What one of VARIANTS answers about the judged images; trained where it is missing."""
    return lab.answers(f"ablation_{name}", train(lab, name), protocol, VARIANTS[name].think)


def prepare(seed: int, work: Path) -> None:
    """What two processes could ask for at once: Stage 1 on all kinds of chains, and the story's answers."""
    lab = seed_of(seed, work)
    for name in ("cot_sft", *CHAINS):
        first_stage(lab, name)
    lab.answers("cot_sft", lab.adapter("cot_sft"))


def one_variant(job: tuple[str, int], work: Path) -> list[dict]:
    """Rows of one variant of one seed."""
    (name, seed), rows = job, []
    lab = seed_of(seed, work)
    for protocol in ("open", "closed") if name in CLOSED else ("open",):
        said = lab.answers(name, lab.adapter(name)) if name in SHARED else ask(lab, name, protocol)
        rows += result_rows(said, name, protocol, seed)
    print(f"[seed {seed}] {name} done", flush=True)
    return rows


if __name__ == "__main__":
    jobs = partial(itertools.product, (*SHARED, *ABLATIONS))
    run("ablations", __doc__, one_variant, jobs=jobs, before=prepare)
