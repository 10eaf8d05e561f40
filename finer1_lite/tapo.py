"""Stage 2: Triplet-Augmented Policy Optimization; also DAPO, by a configuration without triplets.

One step: draw triplets -> roll out anchor and positive -> reward -> advantages in one pooled group ->
drop groups without a signal, draw more -> log-probs under anchor (or own image) and negative -> loss.
`collect` does the first half, `update` the second; the notebook calls them one by one.

Departures from the paper: LoRA on NF4; one optimizer step for each rollout batch (fully on-policy),
where the paper takes three of 128 questions from a batch of 384.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .config import TapoConfig
from .losses import LossConfig, condition_logps, count_items, group_advantages, keep_groups, tapo_loss
from .policy.inputs import VisionCache
from .policy.load import Policy
from .policy.rollout import Rollouts, rollout
from .policy.scoring import completion_logps, widen
from .prompts import question
from .rewards import released_reward
from .samplers import Triplet, TripletSampler, fill_batch
from .sft import write_csv

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
    with gamma = eta1 = eta2 = 0 is DAPO. `reward(completion, label)` returns "overall", "format" and
    "accuracy".
    """

    def __init__(
        self, policy: Policy, cache: VisionCache, labels: list[str], sampler: TripletSampler, config: TapoConfig,
        loss: LossConfig, seed: int, reward: Reward = released_reward,
    ):  # fmt: skip
        self.policy, self.cache, self.labels, self.sampler = policy, cache, labels, sampler
        self.config, self.loss, self.reward = config, loss, reward
        self.generator = torch.Generator(policy.model.device).manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.optimizer = torch.optim.AdamW(policy.trainable(), lr=config.lr, weight_decay=config.weight_decay)

    @property
    def num_generations(self) -> int:
        """Rollouts in one advantage group."""
        return self.config.num_anchor + self.config.num_positive

    def roll_out(self, triplets: list[Triplet]) -> list[Group]:
        """Sample and reward the rollouts of `triplets`, one group for each."""
        c = self.config
        asked = [question(self.rng) for _ in triplets]
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
        figures = (torch.tensor([s[key] for s in scores]) for key in ("overall", "accuracy", "format"))
        return Group(triplet, asked, label, texts, ids, mask, *figures)

    def collect(self) -> tuple[list[Group], dict[str, float]]:
        """Groups with a signal for one step (dynamic sampling), and what all drawn groups were like."""
        drawn: list[Group] = []

        def draw(n):
            drawn.extend(self.roll_out(self.sampler.next(n)))
            return drawn[-n:]

        def keep(groups):
            accuracies = torch.cat([g.accuracies for g in groups])
            return keep_groups(accuracies, self.num_generations, self.loss.filter_rule).tolist()

        filled = fill_batch(draw, keep, self.config.questions, self.config.max_rounds)

        def mean(of):
            return torch.cat([of(g) for g in drawn]).float().mean().item()

        facts = {
            "reward": mean(lambda g: g.rewards), "accuracy": mean(lambda g: g.accuracies),
            "format": mean(lambda g: g.formats), "length": mean(lambda g: g.completion_mask.sum(-1)),
            "groups_drawn": len(drawn), "groups_kept": len(filled.items),
        }  # fmt: skip
        return filled.items, facts

    def score(self, groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs (B, C) of some groups' rollouts: current with gradient, old, and under the negative."""
        ids, mask, owners = stack(groups, self.config.num_anchor)

        def under(images):
            prompts = [(g.question, s) for g, s in zip(owners, self.cache.get(images))]
            return completion_logps(self.policy, prompts, ids, mask, self.config.temperature)

        anchor = [g.triplet.anchor for g in owners]
        own = [i for g in groups for i in own_images(g, self.config.num_anchor)]
        need = {self.loss.update_image, self.loss.old_image}
        anchor_logps = under(anchor) if "anchor" in need or own == anchor else None
        own_logps = anchor_logps if own == anchor else under(own) if "own" in need else None
        current, old = condition_logps(anchor_logps, own_logps, self.loss.update_image, self.loss.old_image)
        if not self.loss.gamma and not self.loss.eta2:
            return current, old, None
        with torch.set_grad_enabled(self.loss.negative_grad):
            return current, old, under([g.triplet.negative for g in owners])

    def update(self, groups: list[Group]) -> dict[str, float]:
        """One optimizer step on `groups`; returns the loss's parts and the gradient norm."""
        self.policy.model.eval()  # there is no dropout; eval keeps the paths of rollout and update the same
        device = self.policy.model.device
        _, whole_mask, _ = stack(groups, self.config.num_anchor)
        per = max(1, self.config.micro_batch // self.num_generations)
        rows = per * self.num_generations
        items = count_items(whole_mask, self.loss.aggregation, rows)
        metrics: dict[str, float] = {}
        for start in range(0, len(groups), per):
            part = groups[start : start + per]
            mask = stack(part, self.config.num_anchor)[1].to(device)
            rewards = torch.cat([g.rewards for g in part]).to(device)
            advantages = group_advantages(rewards, self.num_generations, self.loss.advantage_scale)
            correct = torch.cat([g.accuracies for g in part]).to(device)
            current, old, negative = self.score(part)
            loss, parts = tapo_loss(
                current, old, advantages, mask, negative, self.loss, num_items=items, correct=correct
            )
            loss.backward()
            metrics = {k: metrics.get(k, 0.0) + v for k, v in parts.items()}
        norm = nn.utils.clip_grad_norm_(self.policy.trainable(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return metrics | {"grad_norm": float(norm)}

    def train(self, log: Path | None = None, on_step: Callable[[dict], None] | None = None) -> list[dict]:
        """`config.steps` steps; returns a row of figures for each. `on_step` gets each row."""
        history, start = [], time.perf_counter()
        for step in tqdm(range(self.config.steps), desc="RL", mininterval=5):
            groups, facts = self.collect()
            parts = self.update(groups) if groups else {}
            history.append({"step": step} | facts | parts | {"seconds": time.perf_counter() - start})
            if on_step:
                on_step(history[-1])
        if log:
            write_csv(log, history)
        return history


def own_images(group: Group, num_anchor: int) -> list[int]:
    """The image that each rollout of a group was sampled from."""
    n = len(group.texts)
    return [group.triplet.anchor] * num_anchor + [group.triplet.positive] * (n - num_anchor)


def stack(groups: list[Group], num_anchor: int) -> tuple[torch.Tensor, torch.Tensor, list[Group]]:
    """completion_ids and completion_mask (B, C) of all rollouts, and the group of each row."""
    width = max(int(g.completion_mask.sum(-1).max()) for g in groups)
    ids = torch.cat([widen(g.completion_ids[:, :width], width, 0) for g in groups])
    mask = torch.cat([widen(g.completion_mask[:, :width], width, 0) for g in groups])
    return ids, mask, [g for g in groups for _ in g.texts]
