"""Stage 2: Triplet-Augmented Policy Optimization; also DAPO, by a configuration without triplets.

One step: draw triplets -> roll out anchor and positive -> reward -> advantages in one pooled group ->
drop groups without a signal, draw more -> log-probs under anchor (or own image) and negative -> loss.
`collect` does the first half, `update` the second; the notebook calls them one by one.

Departures from the paper: LoRA on NF4; one optimizer step for each rollout batch (fully on-policy),
where the paper takes three of 128 questions from a batch of 384.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .config import TapoConfig
from .files import write_csv
from .loop import (
    Checkpoints,
    State,
    Stepper,
    Team,
    adapter_tensors,
    digest,
    optimizer_tensors,
    restore_adapter,
    restore_optimizer,
    stopped,
    uninterrupted,
)  # fmt: skip
from .losses import (
    LossConfig,
    condition_logps,
    count_items,
    group_advantages,
    keep_groups,
    overlong_penalty,
    tapo_loss,
)  # fmt: skip
from .policy.batching import cut_groups, halved_until_it_fits
from .policy.inputs import VisionCache
from .policy.load import Policy
from .policy.rollout import Rollouts, rollout
from .policy.scoring import completion_logps, widen
from .prompts import question
from .rewards import released_reward
from .samplers import Triplet, TripletSampler, fill_batch

Reward = Callable[[str, str], dict[str, float]]


@dataclass
class Group:
    """All rollouts of one question: the first num_anchor of the anchor, the rest of the positive.

    completion_ids, completion_mask: (G, C). rewards, accuracies: (G,).
    """

    triplet: Triplet
    question: str
    label: str
    texts: list[str]
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    rewards: torch.Tensor
    accuracies: torch.Tensor
    formats: torch.Tensor


class Tapo:
    """The loop's state: policy, images, triplets, optimizer, random generators.

    `labels[i]` is the class of image `i` of `cache`. A `config` with num_positive = 0 and a `loss`
    with gamma = eta1 = eta2 = 0 is DAPO. `reward(completion, label)` returns "overall", "accuracy" and, for the
    log, "format"; `ask(rng)` a prompt. ValueError if there are more processes than questions in a step.
    """

    def __init__(
        self, policy: Policy, cache: VisionCache, labels: list[str], sampler: TripletSampler, config: TapoConfig,
        loss: LossConfig, seed: int, reward: Reward = released_reward, ask: Callable[..., str] = question,
    ):  # fmt: skip
        self.policy, self.cache, self.labels, self.sampler = policy, cache, labels, sampler
        self.config, self.loss, self.reward, self.ask, self.seed = config, loss, reward, ask, seed
        self.team = Team()  # of one, unless `accelerate launch` started more
        if self.team.size > config.questions:
            raise ValueError(f"{self.team.size} processes for {config.questions} questions a step; raise `questions`")
        own_seed = seed + 10_000 * self.team.rank
        self.generator, self.rng = torch.Generator(policy.device).manual_seed(own_seed), np.random.default_rng(own_seed)
        optimizer = torch.optim.AdamW(policy.trainable(), lr=config.lr, weight_decay=config.weight_decay)
        self.stepper = Stepper(policy.trainable(), optimizer, config.max_grad_norm, policy.profile.dtype == "float16")
        self.history: list[dict] = []  # a row of figures for each step so far
        self.start = digest(adapter_tensors(policy.model))[:16]  # a checkpoint that began elsewhere is of another run

    @property
    def num_generations(self) -> int:
        """Rollouts in one advantage group."""
        return self.config.num_anchor + self.config.num_positive

    def roll_out(self, triplets: list[Triplet]) -> list[Group]:
        """Sample and reward the rollouts of `triplets`, one group for each."""
        c = self.config
        asked = [self.ask(self.rng) for _ in triplets]
        anchors, positives = [t.anchor for t in triplets], [t.positive for t in triplets]
        if c.num_anchor == c.num_positive:  # both sides in one batch
            made = self._sample(asked * 2, anchors + positives, c.num_anchor)
            sides = list(zip(made[: len(asked)], made[len(asked) :]))
        else:
            parts = [self._sample(asked, i, n) for i, n in ((anchors, c.num_anchor), (positives, c.num_positive)) if n]
            sides = list(zip(*parts))
        return [self._group(t, q, rows) for t, q, rows in zip(triplets, asked, sides)]

    def _sample(self, asked: list[str], images: list[int], n: int) -> list[Rollouts]:
        """`n` completions for each (question, image), as one `Rollouts` each."""
        c = self.config
        prompts = list(zip(asked, self.cache.get(images)))
        made = rollout(self.policy, prompts, n, self.generator, c.temperature, c.top_p)
        rows = [slice(i, i + n) for i in range(0, n * len(prompts), n)]
        return [Rollouts(made.completion_ids[r], made.completion_mask[r], made.texts[r]) for r in rows]

    def _group(self, triplet: Triplet, asked: str, sides: tuple[Rollouts, ...]) -> Group:
        label = self.labels[triplet.anchor]
        texts = [text for side in sides for text in side.texts]
        width = max(side.completion_ids.shape[1] for side in sides)
        ids = torch.cat([widen(side.completion_ids, width, 0) for side in sides])
        mask = torch.cat([widen(side.completion_mask, width, 0) for side in sides])
        scores = [self.reward(text, label) for text in texts]
        shares = [[s["overall"], s["accuracy"], s.get("format", torch.nan)] for s in scores]
        rewards, accuracies, formats = torch.tensor(shares, dtype=torch.float32).unbind(-1)
        if self.config.overlong_buffer:
            limit = self.policy.profile.max_new_tokens
            rewards = rewards + overlong_penalty(mask.sum(-1), limit, self.config.overlong_buffer)
        return Group(triplet, asked, label, texts, ids, mask, rewards, accuracies, formats)

    def collect(self) -> tuple[list[Group], dict[str, float]]:
        """This process's groups with a signal for one step (dynamic sampling), and what all drawn groups were like."""
        drawn: list[Group] = []
        wanted = len(self.team.share(range(self.config.questions)))

        def draw(n):
            drawn.extend(self.roll_out(self.team.share(self.sampler.next(n * self.team.size))))
            return drawn[-n:]

        def keep(groups):
            accuracies = torch.cat([g.accuracies for g in groups])
            return keep_groups(accuracies, self.num_generations, self.loss.filter_rule).tolist()

        filled = fill_batch(draw, keep, wanted, self.config.max_rounds)
        limit, lengths = self.policy.profile.max_new_tokens, torch.cat([g.completion_mask.sum(-1) for g in drawn])
        if not filled.items and (lengths == limit).float().mean() > 0.5:
            warnings.warn(
                f"no group had a signal, and most answers have the {limit} tokens of max_new_tokens: they were cut before "
                "they said a name. Raise it above the longest chain.", RuntimeWarning, stacklevel=2,
            )  # fmt: skip

        def mean(of):
            return torch.cat([of(g) for g in drawn]).float().mean().item()

        means = {
            "reward": mean(lambda g: g.rewards), "accuracy": mean(lambda g: g.accuracies),
            "format": mean(lambda g: g.formats), "length": mean(lambda g: g.completion_mask.sum(-1)),
        }  # fmt: skip
        counts = {"groups_drawn": len(drawn), "groups_kept": len(filled.items)}
        return filled.items, self.team.mean_of(means) | {k: int(self.team.sum(n)) for k, n in counts.items()}

    def score(self, rows: "Rows") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs (B, C) of rollouts: current with gradient, old, and under the negative."""

        def under(images):
            prompts = [(g.question, s) for g, s in zip(rows.groups, self.cache.get(images))]
            return completion_logps(
                self.policy, prompts, rows.completion_ids, rows.completion_mask, self.config.temperature
            )

        anchor = [g.triplet.anchor for g in rows.groups]
        need = {self.loss.update_image, self.loss.old_image}
        anchor_logps = under(anchor) if "anchor" in need or rows.own == anchor else None
        own_logps = anchor_logps if rows.own == anchor else under(rows.own) if "own" in need else None
        current, old = condition_logps(anchor_logps, own_logps, self.loss.update_image, self.loss.old_image)
        if not self.loss.gamma and not self.loss.eta2:
            return current, old, None
        with torch.set_grad_enabled(self.loss.negative_grad and torch.is_grad_enabled()):
            return current, old, under([g.triplet.negative for g in rows.groups])

    def update(self, groups: list[Group]) -> dict[str, float]:
        """One optimizer step on `groups`; returns the loss's parts, the gradient norm and whether it was skipped.

        With several processes each gives its own groups, of which there may be none.
        """
        self.policy.scoring_mode()
        self.stepper.forget()
        rows = Rows.of(groups, self.config.num_anchor) if groups else None
        how = self.loss.aggregation
        items = self.team.sum(count_items(rows.completion_mask, how) if rows and how != "micro_batch" else 0)
        mine: dict[str, float] = {}
        if rows:
            run = partial(self._gradients, groups, rows, items)
            mine, fits = halved_until_it_fits(run, self.config.micro_batch, "rows of a micro-batch (micro_batch)")
            self.config = replace(self.config, micro_batch=fits)
        metrics = added(self.team.everyones(mine))
        self.team.sum_gradients(self.stepper.parameters)
        return metrics | self.stepper.step(metrics["loss"])

    def _gradients(self, groups: list[Group], rows: "Rows", items: float, micro_batch: int) -> dict[str, float]:
        """Gather the step's gradients in parts of `micro_batch` rows at most; returns the loss's parts."""
        self.stepper.forget()  # of a try that ran out of memory
        loss, device = self.loss, self.policy.device
        rewards, correct = (torch.cat([getattr(g, k) for g in groups]).to(device) for k in ("rewards", "accuracies"))
        advantages = group_advantages(rewards, self.num_generations, loss.advantage_scale)
        if loss.gamma or loss.eta2:  # now, so that no image is encoded while a graph waits
            self.cache.get(g.triplet.negative for g in groups)
        parts = cut_groups(rows.costs(self.cache), self.num_generations, self.config.micro_tokens, micro_batch)
        if loss.aggregation == "micro_batch":
            items = len(parts) * self.team.size
        figures = []
        for part in parts:
            picked, i = rows.pick(part), slice(part.start, part.stop)
            current, old, negative = self.score(picked)
            value, metrics = tapo_loss(
                current, old, advantages[i], picked.completion_mask.to(device), negative, loss, num_items=items,
                correct=correct[i],
            )  # fmt: skip
            self.stepper.backward(value)
            figures.append(metrics)
        return added(figures)

    def train(
        self, log: Path | None = None, on_step: Callable[[dict], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> list[dict]:  # fmt: skip
        """Go on to `config.steps` steps; returns a row of figures for each step so far, which `on_step` gets too.

        With `checkpoints` it starts where the newest one ends. After Ctrl-C the state is that of the last
        whole step, and it is saved.
        """
        if checkpoints and not self.history and (saved := checkpoints.load(self.identity())):
            self.restore(saved)
        spent, start = self.history[-1]["seconds"] if self.history else 0.0, time.perf_counter()
        bar = tqdm(
            total=self.config.steps, initial=len(self.history), desc="RL", mininterval=5, disable=not self.team.main
        )
        whole, before = -1, {}
        try:
            while len(self.history) < self.config.steps:
                whole, before = len(self.history), self._position()
                groups, facts = self.collect()
                with uninterrupted():
                    parts = self.update(groups) if facts["groups_kept"] else {}
                    seconds = spent + time.perf_counter() - start
                    self.history.append({"step": whole} | facts | parts | {"seconds": seconds})
                bar.update()
                if checkpoints and (checkpoints.due(len(self.history)) or len(self.history) == self.config.steps):
                    self._save(checkpoints)
                if on_step:
                    on_step(self.history[-1])
        except KeyboardInterrupt:
            if len(self.history) == whole:  # inside a step
                self._back_to(before)
            alone = self.team.size == 1  # others may be anywhere in their step
            stopped(len(self.history), self._save(checkpoints) if checkpoints and alone else None)
        bar.close()
        if log and self.team.main:
            write_csv(log, self.history)
        return self.history

    # ---- where the loop stands

    def identity(self) -> dict:
        """What must be the same for a checkpoint of this loop to fit; the number of steps may grow."""
        config = {k: v for k, v in asdict(self.config).items() if k != "steps" and not k.startswith("micro")}
        return {
            **self.policy.identity(), "stage": "RL",
            "seed": self.seed, "start": self.start, "processes": self.team.size, "data": self.sampler.state_dict()["labels"],
            "reward": getattr(self.reward, "func", self.reward).__name__, "question": self.ask(np.random.default_rng(0)),
            "config": config, "loss": asdict(self.loss),
        }  # fmt: skip

    def _position(self) -> dict:
        """Everything that drawing and sampling advances."""
        return {"sampler": self.sampler.state_dict(), "rng": self.rng.bit_generator.state,
                "generator": self.generator.get_state()}  # fmt: skip

    def _back_to(self, position: dict) -> None:
        """Draw and sample from `position` on; drops the gradients of a step that was begun."""
        self.sampler.load_state_dict(position["sampler"])
        self.rng.bit_generator.state = position["rng"]
        self.generator.set_state(position["generator"])
        self.stepper.forget()

    def state(self) -> State:
        """What a checkpoint holds; with several processes all of them must ask for it."""
        tensors = adapter_tensors(self.policy.model) | optimizer_tensors(self.stepper.optimizer)
        positions = self.team.everyones(self._position())
        tensors |= {f"generator/{rank}": position.pop("generator") for rank, position in enumerate(positions)}
        facts = {"positions": positions, "stepper": self.stepper.state(), "history": self.history}
        return State(len(self.history), tensors, facts, self.identity())

    def _save(self, checkpoints: Checkpoints) -> Path | None:
        """Write a checkpoint, in the main process."""
        state = self.state()
        return checkpoints.save(state) if self.team.main else None

    def restore(self, saved: State) -> None:
        """Go on as the loop that gave `saved`."""
        restore_adapter(self.policy.model, saved.tensors)
        restore_optimizer(self.stepper.optimizer, saved.tensors)
        self.stepper.restore(saved.facts["stepper"])
        self.history, rank = saved.facts["history"], self.team.rank
        self._back_to(saved.facts["positions"][rank] | {"generator": saved.tensors[f"generator/{rank}"]})


def added(parts: list[dict[str, float]]) -> dict[str, float]:
    """The figures of the parts of a step, added up."""
    total: dict[str, float] = {}
    for part in parts:
        total = {k: total.get(k, 0.0) + part.get(k, 0.0) for k in total | part}
    return total


def own_images(group: Group, num_anchor: int) -> list[int]:
    """The image that each rollout of a group was sampled from."""
    n = len(group.texts)
    return [group.triplet.anchor] * num_anchor + [group.triplet.positive] * (n - num_anchor)


@dataclass
class Rows:
    """Rollouts of some groups one below the other. completion_ids, completion_mask (B, C); group, image: B each."""

    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    groups: list[Group]
    own: list[int]

    @classmethod
    def of(cls, groups: list[Group], num_anchor: int) -> "Rows":
        """All rows of `groups`."""
        width = max(g.completion_ids.shape[1] for g in groups)
        ids, masks = ([widen(getattr(g, k), width, 0) for g in groups] for k in ("completion_ids", "completion_mask"))
        owners = [g for g in groups for _ in g.texts]
        return cls(torch.cat(ids), torch.cat(masks), owners, [i for g in groups for i in own_images(g, num_anchor)])

    def pick(self, rows: range) -> "Rows":
        """Some rows, as narrow as their longest completion."""
        i = slice(rows.start, rows.stop)
        width = int(self.completion_mask[i].sum(-1).max())
        narrow = (t[i, :width] for t in (self.completion_ids, self.completion_mask))
        return Rows(*narrow, self.groups[i], self.own[i])

    def costs(self, cache: VisionCache) -> list[int]:
        """Tokens of each row: its completion, and the image where a new prompt begins."""
        lengths = self.completion_mask.sum(-1).tolist()
        new = [i == 0 or self.own[i] != self.own[i - 1] for i in range(len(self.own))]
        images = [len(s.tokens) if n else 0 for s, n in zip(cache.get(self.own), new)]
        return [a + b for a, b in zip(lengths, images)]
