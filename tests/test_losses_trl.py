"""TRL as an oracle: with gamma = eta = 0 our loss is that of a real `GRPOTrainer`, in value and gradient."""

import pytest
import torch
from benchmarks.setting import Step, TheirSide

from finer1_lite import losses as L

pytest.importorskip("trl")

ROWS, TOKENS, LENGTH = 6, 7, 7  # LENGTH: max_completion_length, the constant of Dr. GRPO
CLIP = {"gamma": 0.0, "eta1": 0.0, "eta2": 0.0}
CONFIGS = {
    "grpo": L.LossConfig(**CLIP, aggregation="sequence"),
    "bnpo": L.LossConfig(**CLIP, aggregation="token"),  # the mean of the local batch
    "dr_grpo": L.LossConfig(**CLIP, aggregation="constant", constant_length=LENGTH),
    "dapo": L.LossConfig(**CLIP, aggregation="token"),  # the mean of the whole step
}


@pytest.fixture(scope="module")
def trainer():
    made = TheirSide(Step(questions=1, num_generations=2, max_new_tokens=LENGTH, micro_batch=2), 1).trainer
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


def make_batch(seed):
    """What TRL's `_compute_loss` reads, with ratios beyond every clip bound; prompt of 3 tokens."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (ROWS, 1), generator=g)).long()
    return {
        "prompt_ids": torch.randint(2, 18, (ROWS, 3), generator=g),
        "prompt_mask": torch.ones(ROWS, 3, dtype=torch.long),
        "completion_ids": torch.randint(2, 18, (ROWS, TOKENS), generator=g), "completion_mask": mask,
        "advantages": L.group_advantages(torch.rand(ROWS, generator=g, dtype=torch.float64), 2),
        "old_per_token_logps": -3 * torch.rand(ROWS, TOKENS, generator=g, dtype=torch.float64),
        "num_items_in_batch": mask.sum(),
    }


def their_loss(trainer, batch, loss_type, logps, monkeypatch):
    trainer.loss_type, given = loss_type, (logps, torch.zeros_like(logps), None)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: given)
    return trainer._compute_loss(trainer.model, batch)


def given_logps(batch, seed):
    noise = torch.randn(ROWS, TOKENS, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
    return (batch["old_per_token_logps"] + 0.5 * noise).requires_grad_()


def our_loss(logps, batch, config, rows=slice(None), num_items=None):
    rest = (batch[name][rows] for name in ("old_per_token_logps", "advantages", "completion_mask"))
    return L.tapo_loss(logps[rows], *rest, config=config, num_items=num_items)


@pytest.mark.parametrize("loss_type", CONFIGS)
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_on_the_same_tensors(trainer, monkeypatch, loss_type, seed):
    batch = make_batch(seed)
    logps = given_logps(batch, seed)
    theirs = their_loss(trainer, batch, loss_type, logps, monkeypatch)
    ours, metrics = our_loss(logps, batch, CONFIGS[loss_type])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert gradients[0].abs().sum() > 0 and metrics["clip_ratio_low"] + metrics["clip_ratio_high"] > 0


@pytest.mark.parametrize("loss_type, how", [("dapo", "token"), ("grpo", "sequence"), ("dr_grpo", "constant")])
def test_gradient_accumulation(trainer, monkeypatch, loss_type, how):
    batch = make_batch(9)
    logps = given_logps(batch, 9)
    config, items = CONFIGS[loss_type], L.count_items(batch["completion_mask"], how)
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 3)
    monkeypatch.setattr(trainer.args, "steps_per_generation", 3)
    theirs = ours = 0.0
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        part = {name: value if value.dim() == 0 else value[rows] for name, value in batch.items()}
        theirs = theirs + their_loss(trainer, part, loss_type, logps[rows], monkeypatch)
        ours = ours + our_loss(logps, batch, config, rows, items)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, our_loss(logps, batch, config)[0], rtol=1e-12, atol=1e-12)
