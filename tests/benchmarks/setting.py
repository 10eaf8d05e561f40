"""The same step for TRL's `GRPOTrainer` and our `Tapo`: model, LoRA, questions, images, lengths, groups, optimizer.

Where they cannot be equal the advantage is TRL's, but that it computes the entropy of each token for its log."""

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
from datasets import Dataset
from peft.tuners.lora import LoraLayer
from PIL import Image
from transformers import PrinterCallback, TrainerCallback

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.config import PROFILES, Profile, TapoConfig
from finer1_lite.losses import DAPO, RELEASED
from finer1_lite.policy import rollout as rollout_module
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import Policy, load_policy
from finer1_lite.prompts import question
from finer1_lite.samplers import TripletSampler
from finer1_lite.tapo import Tapo

CLASSES, IMAGES_PER_CLASS = 32, 4
PATCHES = (112 // 14) ** 2  # of an image


@dataclass(frozen=True)
class Step:
    questions: int = 8
    num_generations: int = 10
    max_new_tokens: int = 96  # about the mean of the chains that SFT learns from
    micro_batch: int = 40
    quantize: bool = True
    seed: int = 0

    @property
    def rollouts(self) -> int:
        return self.questions * self.num_generations

    def profile(self) -> Profile:
        sizes = {"max_new_tokens": self.max_new_tokens, "rollout_batch": self.rollouts}
        return replace(PROFILES["cpu"], quantize=self.quantize, **sizes)

    def config(self, num_positive: int) -> TapoConfig:
        """`num_positive` of the rollouts of a question come from the positive."""
        rollouts = {"num_anchor": self.num_generations - num_positive, "num_positive": num_positive}
        sizes = {"questions": self.questions, "micro_batch": self.micro_batch, "micro_tokens": 10**9}
        return replace(PROFILES["cpu"].tapo, **rollouts, **sizes)


def birds() -> tuple[list[Image.Image], list[str]]:
    """Pictures and their labels."""
    species = evaluation_species()[:CLASSES]
    pictures = [draw(s, i) for s in species for i in range(IMAGES_PER_CLASS)]
    return pictures, [s.name for s in species for _ in range(IMAGES_PER_CLASS)]


def sampler_of(labels: list[str], seed: int) -> TripletSampler:
    """Triplets whose negative is of any other class; how alike they look changes no time."""
    classes = sorted(set(labels))
    return TripletSampler(labels, {c: [o for o in classes if o != c] for c in classes}, seed)


def our_reward(completion: str, label: str = "") -> dict[str, float]:
    """A reward with a signal for any policy: does the text have an even number of characters?"""
    value = float(len(completion) % 2 == 0)
    return {"overall": value, "accuracy": value, "format": 1.0}


def their_reward(completions: list[list[dict]], **_) -> list[float]:
    return [our_reward(message["content"])["overall"] for (message,) in completions]


@contextmanager
def fixed_length():
    """Inside, our rollouts cannot sample the end token, as TRL's cannot under `min_new_tokens`."""
    known = rollout_module.forbidden_ids
    with patch.object(
        rollout_module, "forbidden_ids", lambda model: [*known(model), model.config.get_text_config().eos_token_id]
    ):
        yield


class OurSide:
    """`Tapo` on birds. "dapo": all rollouts from the anchor, no triplet terms: what TRL's trainer does. "tapo": half
    of each group from the positive; the negative scored too; the CPU profile's switches."""

    def __init__(self, step: Step, name: str):
        images, labels = birds()
        policy = load_policy(step.profile(), seed=step.seed)
        cache = VisionCache(policy.model, policy.processor, images)
        num_positive, loss = {"dapo": (0, DAPO), "tapo": (step.num_generations // 2, RELEASED)}[name]
        config, loss = step.config(num_positive), replace(loss, filter_rule="none")
        sampler = sampler_of(labels, step.seed)
        self.loop = Tapo(policy, cache, labels, sampler, config, loss, step.seed, our_reward)
        self.visual, self.groups = policy.backbone.visual, []

    def take(self, context) -> dict[str, float]:
        """Draw, roll out, score and update once in `context`, with no image encoded yet; returns what was logged."""
        loop = self.loop
        with context:
            loop.cache = VisionCache(loop.policy.model, loop.policy.processor, loop.cache.images)
            self.groups, figures = loop.collect()
            return figures | loop.update(self.groups)

    def distinct_images(self) -> int:
        names = ("anchor", "positive", "negative") if self.loop.config.num_positive else ("anchor",)
        return len({getattr(g.triplet, name) for g in self.groups for name in names})


def their_rows(step: Step, steps: int) -> Dataset:
    """The questions and images that our loop draws in its first `steps` steps, in that order."""
    images, labels = birds()
    sampler, rng = sampler_of(labels, step.seed), np.random.default_rng(step.seed)
    prompts, pictures = [], []
    for _ in range(steps):
        triplets = sampler.next(step.questions)
        prompts += [[{"role": "user", "content": question(rng)}] for _ in triplets]
        pictures += [images[t.anchor] for t in triplets]
    return Dataset.from_dict({"prompt": prompts, "image": pictures})


class Around(TrainerCallback):
    """Runs step i of a trainer inside `contexts[i]`, and `then(i)` after it."""

    def on_step_begin(self, args, state, control, **_):
        self.contexts[state.global_step].__enter__()

    def on_step_end(self, args, state, control, **_):
        done = state.global_step - 1
        self.contexts[done].__exit__(None, None, None)
        self.then(done)


class TheirSide:
    """TRL's `GRPOTrainer`, for `steps` steps on the tiny model and birds, or on another policy with its rows.

    changed: arguments that are not those of `their_arguments`.
    """

    def __init__(self, step: Step, steps: int, policy: Policy | None = None, rows: Dataset | None = None, **changed):
        import trl  # an extra

        policy, self.around = policy or load_policy(step.profile(), seed=step.seed), Around()
        for layer in policy.model.modules():  # PEFT's own forward, as TRL has it
            if isinstance(layer, LoraLayer):
                vars(layer).pop("forward", None)
        self.folder, self.visual = tempfile.TemporaryDirectory(), policy.backbone.visual
        arguments = trl.GRPOConfig(self.folder.name, **their_arguments(step, steps) | changed)
        self.trainer = trl.GRPOTrainer(
            policy.model, their_reward, arguments, rows or their_rows(step, steps),
            processing_class=policy.processor, callbacks=[self.around],
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)
        for p in policy.trainable():
            p.data = p.data.float()

    def distinct_images(self) -> int:
        return self.trainer.args.generation_batch_size // self.trainer.num_generations

    def take_all(self, contexts: list, then=lambda i: None) -> None:
        self.around.contexts, self.around.then = contexts, then
        self.trainer.train()


def their_arguments(step: Step, steps: int) -> dict:
    """Of `GRPOConfig`: our loop's settings by TRL's names, and nothing written to disk."""
    ours, length = step.config(0), step.max_new_tokens
    return {
        "max_steps": steps, "seed": step.seed, "shuffle_dataset": False,
        "per_device_train_batch_size": step.micro_batch,
        "gradient_accumulation_steps": step.rollouts // step.micro_batch,
        "num_generations": step.num_generations, "num_iterations": 1,
        "max_completion_length": length, "generation_kwargs": {"min_new_tokens": length},
        "temperature": ours.temperature, "top_p": ours.top_p,
        "loss_type": "dapo", "beta": 0.0, "epsilon": DAPO.epsilon_low, "epsilon_high": DAPO.epsilon_high,
        "learning_rate": ours.lr, "lr_scheduler_type": "constant", "weight_decay": ours.weight_decay,
        "max_grad_norm": ours.max_grad_norm, "gradient_checkpointing": False, "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
