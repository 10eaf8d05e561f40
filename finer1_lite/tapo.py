"""Stage 2: Triplet-Augmented Policy Optimization; also DAPO, by a configuration without triplets.

`collect`: draw triplets -> roll out anchor and positive -> reward -> drop groups without a signal, draw more.
`update`: advantages in one pooled group -> log-probs under anchor (or own image) and negative -> loss -> step.

Departures from the paper: LoRA on NF4; one optimizer step for each rollout batch (fully on-policy), where the paper
takes three of 128 questions from a batch of 384.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence

from .config import TapoConfig
from .identity import told
from .loop import Loop
from .losses import (
    LossConfig, condition_logps, count_items, group_advantages, keep_groups, tapo_loss,
)  # fmt: skip
from .policy.batching import cut, halved_until_it_fits
from .policy.inputs import VisionCache
from .policy.load import Policy
from .policy.rollout import rollout
from .policy.scoring import completion_logps
from .prompts import question
from .samplers import Triplet, TripletSampler, fill_batch


@dataclass
class Group:
    """All rollouts of a question, first those of the anchor; ids and mask (G, C), rewards and the like (G,)."""

    triplet: Triplet
    question: str
    label: str
    texts: list[str]
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    rewards: torch.Tensor
    accuracies: torch.Tensor
    formats: torch.Tensor
    ended: torch.Tensor


def rollout_rows(groups: list[Group]) -> list[dict]:
    """A row for each rollout, to read or to write with `files.write_csv`: image, question, label, text, rewards."""
    shown = ("rewards", "accuracies", "formats")
    return [
        {"anchor": g.triplet.anchor, "question": g.question, "label": g.label, "text": text}
        | {name: float(getattr(g, name)[i]) for name in shown}
        for g in groups for i, text in enumerate(g.texts)
    ]  # fmt: skip


class Tapo(Loop):
    """The loop of Stage 2; num_positive = 0 in `config` and gamma = eta1 = eta2 = 0 in `loss` make it DAPO.

    `labels[i]` is the class of image `i` of `cache`. `reward(completion, label)` returns "overall", "accuracy" and,
    for the log, "format"; without one the profile's is taken. `ask(rng, image)` returns a prompt about image `image`.
    ValueError if there are more processes than questions in a step, or for a class with one image where a positive is
    wanted.
    """

    stage = "RL"

    def __init__(
        self, policy: Policy, cache: VisionCache, labels: list[str], sampler: TripletSampler, config: TapoConfig,
        loss: LossConfig, seed: int, reward: Callable | None = None,
        ask: Callable = lambda rng, image: question(rng),
    ):  # fmt: skip
        super().__init__(policy, config, config.max_grad_norm, seed)
        self.cache, self.labels, self.sampler, self.loss = cache, labels, sampler, loss
        self.reward, self.ask, self.steps = reward or policy.profile.reward, ask, config.steps
        self.num_generations, self.groups = config.num_anchor + config.num_positive, []
        alone = [name for name, images in sampler.images.items() if len(images) == 1]
        if alone and config.num_positive:
            raise ValueError(f"class {alone[0]!r} has one image, so no positive: set num_positive to 0, or add images")
        if self.team.size > config.questions:
            raise ValueError(f"{self.team.size} processes for {config.questions} questions; raise `questions`")
        own_seed = seed + 10_000 * self.team.rank
        self.generator = torch.Generator(policy.device).manual_seed(own_seed)
        self.rng = np.random.default_rng(own_seed)

    def roll_out(self, triplets: list[Triplet], min_new_tokens: int = 0) -> list[Group]:
        """Sample and reward the rollouts of `triplets`, one group for each."""
        c = self.config
        asked = [self.ask(self.rng, t.anchor) for t in triplets]
        sides = [([t.anchor for t in triplets], c.num_anchor), ([t.positive for t in triplets], c.num_positive)]
        if c.num_anchor == c.num_positive:  # both in one batch
            sides = [(sides[0][0] + sides[1][0], c.num_anchor)]
        rows: list[list[tuple]] = [[] for _ in triplets]
        for images, n in (side for side in sides if side[1]):
            prompts, settings = list(zip(asked * 2, self.cache.get(images))), (c.temperature, c.top_p)
            made = rollout(self.policy, prompts, n, self.generator, *settings, min_new_tokens=min_new_tokens)
            for i, row in enumerate(zip(made.completion_ids, made.completion_mask, made.texts, made.ended)):
                rows[i // n % len(triplets)].append(row)
        return [self._group(*parts) for parts in zip(triplets, asked, rows)]

    def _group(self, triplet: Triplet, asked: str, rows: list[tuple]) -> Group:
        label, (ids, masks, texts, ended) = self.labels[triplet.anchor], zip(*rows)
        ids, masks = (pad_sequence(part, batch_first=True) for part in (ids, masks))
        scores = [checked(self.reward(text, label), text, label) for text in texts]
        shares = [[s["overall"], s["accuracy"], s.get("format", torch.nan)] for s in scores]
        rewards, accuracies, formats = torch.tensor(shares, dtype=torch.float32).unbind(-1)
        return Group(triplet, asked, label, list(texts), ids, masks, rewards, accuracies, formats, torch.tensor(ended))

    def collect(self) -> tuple[list[Group], dict[str, float]]:
        """This process's groups with a signal for one step (dynamic sampling), and figures of all drawn ones."""
        drawn: list[Group] = []
        wanted = len(self.team.share(range(self.config.questions)))

        def draw(n):
            drawn.extend(self.roll_out(self.team.share(self.sampler.next(n * self.team.size))))
            return drawn[-n:]

        def keep(groups):
            accuracies = torch.cat([g.accuracies for g in groups])
            return keep_groups(accuracies, self.num_generations, self.loss.filter_rule).tolist()

        kept = fill_batch(draw, keep, wanted, self.config.max_rounds).items
        limit, lengths = self.policy.profile.max_new_tokens, torch.cat([g.completion_mask.sum(-1) for g in drawn])
        if not kept and (lengths == limit).float().mean() > 0.5:
            advice = f"most answers have the {limit} tokens of max_new_tokens: raise it above the longest chain"
            warnings.warn(f"no group had a signal, and {advice}", RuntimeWarning, 2)
        values = {"reward": "rewards", "accuracy": "accuracies", "format": "formats", "ended": "ended"}
        figures = {name: torch.cat([getattr(g, key) for g in drawn]) for name, key in values.items()}
        means = {name: v.float().mean().item() for name, v in (figures | {"length": lengths}).items()}
        facts = {name: self.team.sum(mean) / self.team.size for name, mean in means.items()}
        counts = {"groups_drawn": len(drawn), "groups_kept": len(kept)}
        return kept, facts | {name: int(self.team.sum(n)) for name, n in counts.items()}

    def score(self, rows: "Rows") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs (B, C) of rollouts: current with gradient, old, and under the negative."""

        def under(images):
            prompts = [(g.question, s) for g, s in zip(rows.groups, self.cache.get(images))]
            completions = (rows.completion_ids, rows.completion_mask)
            return completion_logps(self.policy, prompts, *completions, self.config.temperature)

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
        """One optimizer step on this process's `groups`; returns its figures, none if no process has a group.

        They stay in `groups`, for `on_step` of `train`: `rollout_rows` makes a table of them.
        """
        self.groups = groups
        if not self.team.sum(len(groups)):
            return {}
        self.policy.scoring_mode()
        how, mine = self.loss.aggregation, {}
        items = sum(count_items(g.completion_mask, how, len(g.texts)) for g in groups)
        run = partial(self._gradients, groups, self.team.sum(items))
        if groups:
            mine, fits = halved_until_it_fits(run, self.config.micro_batch, "rows of a micro-batch (micro_batch)")
            self.config = replace(self.config, micro_batch=fits)
        metrics = _added(gather_object([mine]))
        return metrics | self.step(metrics["loss"])

    def _gradients(self, groups: list[Group], items: float, micro_batch: int) -> dict[str, float]:
        self.optimizer.zero_grad()  # an earlier try may have run out of memory
        rows = Rows.of(groups, self.config.num_anchor)
        loss, device = self.loss, self.policy.device
        rewards, correct = (torch.cat([getattr(g, k) for g in groups]).to(device) for k in ("rewards", "accuracies"))
        advantages = group_advantages(rewards, self.num_generations, loss.advantage_scale)
        if loss.gamma or loss.eta2:  # now, so that no image is encoded while a graph waits
            self.cache.get(g.triplet.negative for g in groups)
        parts = cut(rows.costs(self.cache), self.config.micro_tokens, micro_batch, self.num_generations)
        if loss.aggregation == "micro_batch":  # a process's micro-batches weigh together what its questions do
            items = items * len(parts) / len(groups)
        figures = []
        for part in parts:
            picked, i = rows.pick(part), slice(part.start, part.stop)
            current, old, negative = self.score(picked)
            mask, counted = picked.completion_mask.to(device), {"num_items": items, "correct": correct[i]}
            counted["question_tokens"] = torch.tensor([int(g.completion_mask.sum()) for g in picked.groups]).to(device)
            value, metrics = tapo_loss(current, old, advantages[i], mask, negative, loss, **counted)
            self.backward(value)
            figures.append(metrics)
        return _added(figures)

    def position(self) -> dict:
        """Everything that drawing and sampling advance."""
        drawn = {"sampler": self.sampler.state_dict(), "rng": self.rng.bit_generator.state}
        return drawn | {"generator": self.generator.get_state().tolist()}

    def go_to(self, position: dict) -> None:
        """Draw and sample from `position` on."""
        self.sampler.load_state_dict(position["sampler"])
        self.rng.bit_generator.state = position["rng"]
        self.generator.set_state(torch.tensor(position["generator"], dtype=torch.uint8))

    def about(self) -> dict:
        """See `Loop.about`; also the loss, the reward, how is asked, and the classes."""
        task = {"prompt": self.ask(np.random.default_rng(self.seed), 0), "classes": sorted(set(self.labels))}
        return super().about() | asdict(self.loss) | {"reward": told(self.reward)[0]} | task

    def identity(self) -> dict:
        """What must be the same for a checkpoint to fit; the number of steps may grow."""
        pictures = hashlib.sha256(b"".join(self.cache.about(i)[1] for i in range(len(self.labels)))).hexdigest()[:16]
        asked = [self.ask(np.random.default_rng(i), i % len(self.labels)) for i in range(16)]  # most phrasings
        run = {"start": self.start, "pictures": pictures, "sampler": self.sampler.identity(), "loss": asdict(self.loss)}
        return super().identity() | run | {"reward": told(self.reward), "questions": asked}


def checked(score: dict, text: str, label: str) -> dict:
    """What a reward returned, or a ValueError that says what is wrong with it, before it poisons a step."""
    numbers = (int, float, np.number)
    whole = isinstance(score, dict) and all(isinstance(score.get(k), numbers) for k in ("overall", "accuracy"))
    if not whole or not math.isfinite(score["overall"]) or score["accuracy"] not in (0, 1):
        need = 'a dict with "overall", a finite number, and "accuracy", 0 or 1'
        raise ValueError(f"the reward gave {score!r} for {text[:60]!r} with the label {label!r}; it should be {need}")
    return score


def _added(parts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:  # not `sum`, which adds in another way since Python 3.12
        total = {k: total.get(k, 0.0) + part.get(k, 0.0) for k in total | part}
    return total


@dataclass
class Rows:
    """Rollouts of some groups, one below the other: ids and mask (B, C), each row's group and own image."""

    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    groups: list[Group]
    own: list[int]

    @classmethod
    def of(cls, groups: list[Group], num_anchor: int) -> "Rows":
        """All rows of `groups`."""
        ids, masks = ([row for g in groups for row in getattr(g, k)] for k in ("completion_ids", "completion_mask"))
        owners, own = [g for g in groups for _ in g.texts], []
        for t, n in ((g.triplet, len(g.texts)) for g in groups):
            own += [t.anchor] * num_anchor + [t.positive] * (n - num_anchor)
        return cls(pad_sequence(ids, batch_first=True), pad_sequence(masks, batch_first=True), owners, own)

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


def rehearse(loop: Tapo) -> dict[str, float]:
    """Whether and how fast a step runs on this machine: a rollout and an update with answers of full length.

    Prints and returns the seconds of both, rollout_s and update_s, and on a GPU memory_gib, the most that it took.
    Afterwards the loop is as before, bit for bit. MemoryError, with what to lower, where a step does not fit.
    """
    before, profile, config = loop.state(), loop.policy.profile, loop.config
    cuda, start = loop.policy.device.type == "cuda", time.perf_counter()
    if cuda:
        torch.cuda.reset_peak_memory_stats(loop.policy.device)
    try:
        groups = loop.roll_out(loop.team.share(loop.sampler.next(config.questions)), profile.max_new_tokens)
        sampled = time.perf_counter()
        loop.update(groups)
        figures = {"rollout_s": sampled - start, "update_s": time.perf_counter() - sampled}
    finally:
        loop.policy.profile, loop.config = profile, config
        loop.restore(*before)
    if cuda:
        figures["memory_gib"] = torch.cuda.max_memory_reserved(loop.policy.device) / 2**30
    print("a step at full length: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    return figures
