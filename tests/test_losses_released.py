"""The released code (commit 84cdc5c) as an oracle: its values and gradients in fp32, kept in a fixture, to 1e-6.

Its `advantages` are doubled where a row fills the whole width; its losses were computed with the plain ones."""

import json
from pathlib import Path

import pytest
import torch

from finer1_lite import losses as L
from finer1_lite import rewards as R

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "released_reference.json").read_text())
by_seed = pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: f"seed{case['seed']}")


def close(actual, expected):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-6, atol=1e-6)


def tensors(case):
    names = ("old_per_token_logps", "negative_per_token_logps", "completion_mask")
    batch = {name: torch.tensor(case[name]) for name in names}
    batch["per_token_logps"] = torch.tensor(case["per_token_logps"], requires_grad=True)
    batch["advantages"] = L.group_advantages(torch.tensor(case["rewards"]), case["num_generations"])
    return batch


def check(loss, batch, recorded):
    close(loss, recorded["value"])
    (gradient,) = torch.autograd.grad(loss, batch["per_token_logps"])
    close(gradient, recorded["grad"])


@by_seed
def test_advantages(case):
    recorded = torch.tensor(case["advantages"]) / (1 + torch.tensor(case["completion_mask"])[:, -1])
    close(tensors(case)["advantages"], recorded.tolist())


@by_seed
@pytest.mark.parametrize("dual", ["3", "1e+09"])
@pytest.mark.parametrize("mode, how", [("token", "micro_batch"), ("token", "token"), ("seq", "sequence")])
def test_policy_loss(case, dual, mode, how):
    batch, recorded = tensors(case), case[f"policy_loss[{mode},dual={dual}]"]
    arguments = (batch["per_token_logps"], batch["old_per_token_logps"], batch["advantages"])
    settings = {"epsilon_low": 0.2, "epsilon_high": 0.28, "dual_clip": float(dual)}
    check(L.aggregate(L.policy_loss_terms(*arguments, **settings), batch["completion_mask"], how), batch, recorded)
    flags = L.clip_indicators(*arguments, **settings)
    close(L.aggregate(flags["low"] + flags["high"], batch["completion_mask"]), recorded["clipfrac_higher"])
    close(L.aggregate(flags["dual"], batch["completion_mask"]), recorded["clipfrac_lower"])


@by_seed
def test_inter_class_kl(case):
    batch = tensors(case)
    branches = (batch["per_token_logps"], batch["negative_per_token_logps"])
    kl = L.inter_class_kl(*branches, "released", negative_grad=False)
    check(L.aggregate(kl, batch["completion_mask"], "micro_batch"), batch, case["inter_kl[low_var_kl]"])


@by_seed
def test_whole_loss(case):
    batch = tensors(case)
    loss, metrics = L.tapo_loss(**batch, config=L.RELEASED)
    check(loss, batch, case["tapo_loss[released]"])
    assert metrics["policy_loss"] == pytest.approx(case["policy_loss[token,dual=3]"]["value"], abs=1e-6)
    assert metrics["inter_kl"] == pytest.approx(case["inter_kl[low_var_kl]"]["value"], abs=1e-6)
    assert metrics["clip_ratio_low"] + metrics["clip_ratio_high"] == pytest.approx(
        case["policy_loss[token,dual=3]"]["clipfrac_higher"], abs=1e-6)


@pytest.mark.parametrize("row", FIXTURE["rewards"], ids=lambda row: row["completion"][:40].replace("\n", " "))
def test_rewards(row):
    scores = R.released_reward(row["completion"], row["ground_truth"])
    assert scores == {name: pytest.approx(row[name], abs=1e-12) for name in ("overall", "format", "accuracy")}
