"""The two loops train for real on the tiny model: every adapter weight moves, the same seed repeats itself."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from finer1_lite.birds.dataset import load_birds
from finer1_lite.config import get_profile
from finer1_lite.loop import Checkpoints, Stepper, Team
from finer1_lite.losses import DAPO, GRPO, TAPO, LossConfig, group_advantages
from finer1_lite.policy.batching import out_of_memory
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.prompts import ANSWER_INSTRUCTION, THINK_INSTRUCTION, question
from finer1_lite.recipes import answer_rows, dapo_setting, look_alike_classes
from finer1_lite.rewards import bare_reward, released_reward
from finer1_lite.samplers import TripletSampler
from finer1_lite.sft import answer_loss, epochs_of, gather_gradients, train_sft
from finer1_lite.tapo import Rows, Tapo, own_images

PROFILE = get_profile("cpu")
SMALL = replace(PROFILE.tapo, steps=2, questions=2, num_anchor=3, num_positive=3, max_rounds=2, micro_batch=6, temperature=2.0)


@pytest.fixture(scope="module")
def data():
    return load_birds(0, {"val": {True: 1, False: 1}, "test": {True: 1, False: 1}})["train"].select(range(24))


@pytest.fixture(scope="module")
def cache(data):
    policy = load_policy(PROFILE)
    return VisionCache(policy.model, policy.processor, data["image"])


def adapter(policy):
    return {n: p.detach().clone() for n, p in policy.model.named_parameters() if p.requires_grad}


def half_right(completion: str, label: str) -> dict[str, float]:
    """A reward with a signal for any policy: does the text have an even number of letters?"""
    value = float(len(completion) % 2 == 0)
    return {"overall": value, "accuracy": value, "format": 1.0}


def loop(cache, data, loss, config=SMALL, seed=0):
    policy = load_policy(PROFILE, seed=seed)
    sampler = TripletSampler(data["label"], look_alike_classes(cache, data["label"]), seed)
    return Tapo(policy, cache, data["label"], sampler, config, loss, seed, half_right)


def test_sft_lowers_the_loss_and_moves_every_adapter_weight(cache, data):
    policy = load_policy(PROFILE)
    before, frozen = adapter(policy), {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    rows = answer_rows(data["label"], cache, 0)
    history = train_sft(policy, rows, replace(PROFILE.sft_answers, epochs=6, batch_size=8), seed=0)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert [n for n, p in adapter(policy).items() if torch.equal(p, before[n])] == []
    assert all(torch.equal(p, frozen[n]) for n, p in policy.model.named_parameters() if n in frozen)


def test_sft_gradients_do_not_depend_on_the_cut_into_micro_batches(cache, data):
    rows = answer_rows(data["label"], cache, 0)[:8]
    grads = []
    for size in (8, 3):
        policy = load_policy(PROFILE)
        stepper = Stepper(policy.trainable(), torch.optim.AdamW(policy.trainable()), 1.0)
        gather_gradients(policy, stepper, rows, 8192, Team(), size)
        grads.append([p.grad for p in policy.trainable()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_answer_loss_counts_the_end_token(cache, data):
    policy = load_policy(PROFILE)
    row = answer_rows(data["label"], cache, 0)[:1]
    _, n = answer_loss(policy, row)
    assert n == len(policy.processor.tokenizer(row[0][2])["input_ids"]) + 1


def test_a_run_that_is_done_is_not_trained_again(cache, data, tmp_path):
    """Its last step is kept, however rare checkpoints are: what comes after it may be killed too."""
    rows, config = answer_rows(data["label"], cache, 0)[:4], replace(PROFILE.sft, epochs=1, batch_size=2)
    first = load_policy(PROFILE)
    history = train_sft(first, rows, config, 0, checkpoints=Checkpoints(tmp_path / "sft", every=50))
    again = load_policy(PROFILE)
    assert train_sft(again, rows, config, 0, checkpoints=Checkpoints(tmp_path / "sft", every=50)) == history
    assert len(history) == 2 and all(torch.equal(a, b) for a, b in zip(first.trainable(), again.trainable()))
    one, two = (loop(cache, data, TAPO) for _ in range(2))
    log = one.train(checkpoints=Checkpoints(tmp_path / "tapo", every=50))
    assert two.train(checkpoints=Checkpoints(tmp_path / "tapo", every=50)) == log
    assert all(torch.equal(a, b) for a, b in zip(one.policy.trainable(), two.policy.trainable()))


def test_epochs_use_every_row_once():
    batches = list(epochs_of(10, 4, 3, seed=1))
    assert [len(b) for b in batches] == [4, 4, 2] * 3
    assert sorted(sum(batches[:3], [])) == list(range(10)) and batches[:3] != batches[3:6]


def test_sft_without_rows_says_so():
    with pytest.raises(ValueError, match="no rows"):
        train_sft(None, [], PROFILE.sft, 0)


@pytest.mark.parametrize("loss", [TAPO, DAPO, LossConfig(update_image="own", old_image="own", negative_grad=False)])
def test_rl_moves_every_adapter_weight(cache, data, loss):
    setting = replace(SMALL, num_anchor=6, num_positive=0) if loss is DAPO else SMALL
    rl = loop(cache, data, loss, setting)
    before = adapter(rl.policy)
    history = rl.train()
    assert len(history) == 2 and all(row["groups_kept"] for row in history)
    # The first step moves only B (A's gradient is B times something, and B starts at 0); the second moves both.
    assert [n for n, p in adapter(rl.policy).items() if torch.equal(p, before[n])] == []


def test_the_same_seed_trains_the_same_adapter(cache, data):
    runs = []
    for _ in range(2):
        rl = loop(cache, data, TAPO)
        rl.train()
        runs.append(adapter(rl.policy))
    assert all(torch.equal(p, runs[1][n]) for n, p in runs[0].items())


def test_groups_pool_anchor_and_positive(cache, data):
    rl = loop(cache, data, TAPO)
    group = rl.roll_out(rl.sampler.next(1))[0]
    t = group.triplet
    assert own_images(group, 3) == [t.anchor] * 3 + [t.positive] * 3
    assert len(group.texts) == len(group.rewards) == 6 and group.label == data["label"][t.anchor]
    assert data["label"][t.positive] == group.label != data["label"][t.negative] and t.positive != t.anchor


def test_at_step_one_the_ratio_is_one_and_the_loss_is_minus_the_mean_advantage(cache, data):
    setting = replace(SMALL, num_anchor=6, num_positive=0)
    for aggregation in ("token", "sequence"):
        rl = loop(cache, data, replace(DAPO, aggregation=aggregation), setting)
        groups, _ = rl.collect()
        metrics = rl.update(groups)
        advantages = torch.cat([group_advantages(g.rewards, 6) for g in groups])
        lengths = torch.cat([g.completion_mask.sum(-1) for g in groups])
        # Over sequences the advantages of a group cancel; over tokens the longer completions weigh more.
        weights = lengths / lengths.sum() if aggregation == "token" else 1 / len(advantages)
        assert metrics["loss"] == pytest.approx(float(-(advantages * weights).sum()), abs=1e-5)
        assert metrics["grad_norm"] > 1e-4 and metrics["ratio"] == pytest.approx(1, abs=1e-6)
    assert abs(metrics["loss"]) < 1e-5


def test_update_does_not_depend_on_the_cut_into_micro_batches(cache, data):
    moved = []
    for size in (6, 12):
        rl = loop(cache, data, TAPO, replace(SMALL, micro_batch=size))
        groups, _ = rl.collect()
        metrics = rl.update(groups)
        moved.append((metrics["loss"], metrics["grad_norm"]))
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)


def test_a_micro_batch_is_whole_questions_or_part_of_one(cache, data, monkeypatch):
    rl = loop(cache, data, TAPO, replace(SMALL, questions=3, micro_batch=4))
    groups, parts = rl.roll_out(rl.sampler.next(3)), []
    score = rl.score
    monkeypatch.setattr(rl, "score", lambda rows: parts.append([id(g) for g in rows.groups]) or score(rows))
    rl.update(groups)
    first, second, third = map(id, groups)
    assert parts == [[first] * 4, [first] * 2, [second] * 4, [second] * 2, [third] * 4, [third] * 2]


def test_without_gradients_a_gradient_through_the_negative_keeps_nothing(cache, data):
    own = loop(cache, data, TAPO)
    groups = own.roll_out(own.sampler.next(1))
    rows = Rows.of(groups, own.config.num_anchor)
    assert TAPO.negative_grad and all(t.requires_grad for t in own.score(rows)[::2])
    with torch.no_grad():
        assert not any(t.requires_grad for t in own.score(rows))


def test_a_reward_needs_no_format_and_no_decimals(cache, data):
    own = loop(cache, data, DAPO)
    own.reward = lambda completion, label: {"overall": len(completion) % 2, "accuracy": len(completion) % 2}
    groups, facts = own.collect()
    assert facts["groups_kept"] and math.isnan(facts["format"]) and math.isfinite(own.update(groups)["loss"])


def test_more_processes_than_questions_are_refused_at_once(cache, data, monkeypatch):
    monkeypatch.setattr("finer1_lite.tapo.Team", lambda: SimpleNamespace(rank=0, size=3))
    with pytest.raises(ValueError, match="3 processes for 2 questions"):
        loop(cache, data, DAPO)


def test_dapo_has_as_many_rollouts_as_tapo_and_no_triplet_terms():
    config, loss = dapo_setting(PROFILE)
    assert config.num_anchor == PROFILE.tapo.num_anchor + PROFILE.tapo.num_positive and not config.num_positive
    assert loss.gamma == loss.eta1 == loss.eta2 == 0


def test_overlong_shaping_lowers_the_reward_of_long_completions(cache, data):
    plain, shaped = (loop(cache, data, DAPO, replace(SMALL, overlong_buffer=b)) for b in (0, 110))
    limit = plain.policy.profile.max_new_tokens
    ours, theirs = (rl.roll_out(rl.sampler.next(2)) for rl in (plain, shaped))
    for a, b in zip(ours, theirs):
        assert a.texts == b.texts
        for reward, lower, n in zip(a.rewards, b.rewards, a.completion_mask.sum(-1)):
            assert float(lower - reward) == pytest.approx(max(-1.0, min(0.0, (limit - 110 - int(n)) / 110)))
    assert any((b.rewards < a.rewards).any() for a, b in zip(ours, theirs))


def test_no_thinking_rl_and_cls_rl_are_settings_of_the_same_loop(cache, data):
    """GRPO, all rollouts from the anchor; with the bare question and reward, or with the thinking ones."""
    setting = replace(SMALL, num_anchor=6, num_positive=0, steps=1)
    policy = load_policy(PROFILE)
    for think, reward in ((False, bare_reward), (True, released_reward)):
        sampler = TripletSampler(data["label"], look_alike_classes(cache, data["label"]), 0)
        rl = Tapo(policy, cache, data["label"], sampler, setting, GRPO, 0, reward, partial(question, think=think))
        groups, _ = rl.collect()
        assert len(groups) == 2  # no group is dropped
        assert all((THINK_INSTRUCTION in g.question) is think for g in groups)
        assert all((ANSWER_INSTRUCTION in g.question) is not think for g in groups)
        assert rl.update(groups)["grad_norm"] >= 0
        assert rl.identity()["reward"] == reward.__name__


def test_answers_that_are_cut_are_named_where_no_group_has_a_signal(cache, data):
    rl = loop(cache, data, TAPO)
    rl.policy.profile, rl.reward = replace(PROFILE, max_new_tokens=4), released_reward  # no answer is reached
    with pytest.warns(RuntimeWarning, match="most answers have the 4 tokens of max_new_tokens"):
        groups, facts = rl.collect()
    assert not groups and facts["length"] > 3.5


def test_in_fp16_a_process_that_has_scaled_nothing_yet_takes_its_step():
    """Its gradients are those of the other processes."""
    weight = torch.nn.Parameter(torch.ones(3))
    stepper = Stepper([weight], torch.optim.SGD([weight], lr=0.1), 1.0, half=True)
    weight.grad = torch.full((3,), 2.0**10)  # scaled by the others, each 1
    assert stepper.step(0.0)["grad_norm"] == pytest.approx(3**0.5)
    assert torch.allclose(weight, 1 - 0.1 / torch.tensor(3.0).sqrt())


@pytest.mark.parametrize("error, full", [
    (torch.OutOfMemoryError("CUDA out of memory"), True), (MemoryError(), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
    (RuntimeError("CUDA error: out of memory"), True), (RuntimeError("shape mismatch"), False),
])  # fmt: skip
def test_full_memory_is_known_by_all_its_names(error, full):
    assert out_of_memory(error) is full
