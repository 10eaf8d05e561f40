"""What every study shares: one seed's pictures, adapters and answers on disk.

A study is a list of jobs and a function `one(job, work) -> rows`, which takes a seed's pictures and adapters from
`seed_of`, trains what is missing, asks, and returns one dictionary for each figure. `command.run` does the rest.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from finer1_lite.birds.dataset import PER_CLASS, load_birds
from finer1_lite.config import Profile, TapoConfig, get_profile
from finer1_lite.cot.build import Sampler, build_chains
from finer1_lite.cot.chains import load_chains, save_chains
from finer1_lite.cot.concepts import choose_phrases
from finer1_lite.evaluate.answers import WITHOUT_CHAIN, Prediction, predict
from finer1_lite.losses import LossConfig
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy, load_base, load_policy
from finer1_lite.recipes import (
    DESCRIPTIONS_PER_QUESTION, TEACHER, answer_rows, chain_rows, dapo_setting, look_alike_classes, sft_rows, tasks_of,
)  # fmt: skip
from finer1_lite.samplers import TripletSampler
from finer1_lite.sft import train_sft
from finer1_lite.tapo import Tapo
from finer1_lite.teachers.policy import sampler_of

SEEDS = (0, 1, 2, 3, 4)
WEIGHTS = "adapter_model.safetensors"  # an adapter's folder is whole once it holds them


class Seed:
    """One seed's pictures, features, chains, adapters and answers; what already lies in `out` is used again.

    judged_on: the split that is asked about, with `per_class` images of a class (see `load_birds`). held_out: the
    share of seen species of which no picture is trained on.
    """

    def __init__(
        self, profile: Profile, seed: int, out: Path, judged_on: str = "test", per_class=PER_CLASS, held_out=0.0
    ):
        out.mkdir(parents=True, exist_ok=True)
        self.profile, self.seed, self.out, data = profile, seed, out, load_birds(seed, per_class)
        names = sorted(set(data["train"]["label"]))
        away = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[: round(held_out * len(names))]}
        data["train"] = data["train"].filter(lambda label: label not in away, input_columns="label")
        self.base, self.labels, self.judged = load_base(profile), data["train"]["label"], data[judged_on]
        self.cache, self.judged_cache = (
            VisionCache(self.base.model, self.base.processor, data[name]["image"]) for name in ("train", judged_on)
        )

    def writers(self) -> tuple[Sampler, Sampler]:
        """The base, which describes pictures, and the bird world's teacher, which writes chains."""
        teacher = load_policy(self.profile, TEACHER)
        return sampler_of(self.base, self.cache, self.seed), sampler_of(teacher, self.cache, self.seed)

    def chains(self) -> list[dict]:
        """Chat rows of the accepted chains."""
        path = self.out / "chains.jsonl"
        if not path.exists():
            tasks = tasks_of(self.labels, self.seed)
            built = build_chains(tasks, *self.writers(), choose_phrases, samples=DESCRIPTIONS_PER_QUESTION)
            save_chains(path, chain_rows(tasks, built, self.cache))
        return load_chains(path)

    def same_steps(self, rows: list[dict]) -> int:
        """How many epochs over `rows` are as many steps as CoT SFT on all chains takes."""
        config = self.profile.sft
        steps = config.epochs * -(-len(self.chains()) // config.batch_size)
        return max(1, round(steps / -(-len(rows) // config.batch_size)))

    def sft(self, method: str, name: str | None = None, rows: list[dict] | None = None, **changes) -> Path:
        """Stage 1 on names ("sft_answers") or on chains ("cot_sft"), of `rows` or all; `changes` to the setting."""
        folder = self.out / (name or method)
        if not (folder / WEIGHTS).exists():
            policy = load_policy(self.profile, seed=self.seed)
            if method == "cot_sft":
                rows = self.chains() if rows is None else rows
                config, made = self.profile.sft, sft_rows(rows, self.cache, self.labels)
            else:
                config, made = self.profile.sft_answers, answer_rows(self.labels, self.cache, self.seed)
            train_sft(policy, made, replace(config, **changes), self.seed, log=self.out / f"{folder.name}.csv")
            policy.save(folder)
        return folder

    def rl(
        self, name: str, config: TapoConfig, loss: LossConfig, start: Callable[[], Policy] = None, pictures=None,
        negative="similar", confusion=None, **asked,
    ) -> Path:  # fmt: skip
        """Stage 2 from this seed's CoT SFT, or from `start()`; writes `name` and `name`.csv.

        pictures: features and labels of other ones than the seed's. asked: `reward` and `ask` of `Tapo`.
        """
        folder, (cache, labels) = self.out / name, pictures or (self.cache, self.labels)
        if not (folder / WEIGHTS).exists():
            policy = start() if start else load_policy(self.profile, self.sft("cot_sft"))
            sampler = TripletSampler(labels, look_alike_classes(cache, labels), self.seed, negative=negative,
                                     confusion=confusion)  # fmt: skip
            Tapo(policy, cache, labels, sampler, config, loss, self.seed, **asked).train(self.out / f"{name}.csv")
            policy.save(folder)
        return folder

    def adapter(self, method: str) -> Path | None:
        """The adapter of one of METHODS, trained where it is missing; None for the base."""
        if method == "base":
            return None
        if method == "dapo":
            return self.rl(method, *dapo_setting(self.profile))
        return self.rl(method, self.profile.tapo, self.profile.loss) if method == "tapo" else self.sft(method)

    def policy(self, method: str) -> Policy:
        """One of METHODS, to be asked."""
        adapter = self.adapter(method)
        return self.base if adapter is None else load_policy(self.profile, adapter, trainable=False)

    def answers(self, name: str, adapter: Path | None, protocol: str = "open", think=None) -> list[Prediction]:
        """What the adapter (None: the base) answers about the judged images, kept in `out`.

        think: ask for a chain; None: as the story asks the method `name`. ValueError for a file of another adapter.
        """
        policy = self.base if adapter is None else load_policy(self.profile, adapter)
        cache, think = self.judged_cache, name not in WITHOUT_CHAIN if think is None else think
        options = look_alike_classes(cache, self.judged["label"]) if protocol == "closed" else None
        path = self.out / f"{name}_{protocol}.jsonl"
        return predict(policy, cache, self.judged, think, self.seed, options, f"{name} {protocol}", path=path)


@cache
def seed_of(seed: int, work: Path) -> Seed:
    """One seed in the story's folder `work`; its pictures and features are made once in each process."""
    torch.set_num_threads(1)  # two processes, one core each
    return Seed(get_profile("cpu"), seed, work / f"seed{seed}")
