"""The two loops train for real on the tiny model: every adapter weight moves, each feature does what it says."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from test_checkpoint import birds, half_right
from test_policy import qwen3_profile

from finer1_lite import loop as loop_module
from finer1_lite.config import SFTConfig, TapoConfig, get_profile
from finer1_lite.cot.chains import chat_row
from finer1_lite.files import write_csv
from finer1_lite.loop import FP16_SCALE, Checkpoints, Loop
from finer1_lite.losses import DAPO, TAPO, LossConfig, group_advantages
from finer1_lite.policy.batching import out_of_memory
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.recipes import answer_rows, look_alike_classes, room_for, sft_rows
from finer1_lite.rewards import ending_reward, released_reward
from finer1_lite.samplers import TripletSampler
from finer1_lite.sft import SFT, epochs_of, fitted, train_sft
from finer1_lite.tapo import Rows, Tapo, rehearse, rollout_rows

PROFILE = get_profile("cpu")
FEW = {"steps": 2, "questions": 2, "num_anchor": 3, "num_positive": 3, "max_rounds": 2, "micro_batch": 6}
SMALL = replace(PROFILE.tapo, **FEW, temperature=2.0)
ANCHOR_ONLY = replace(SMALL, num_anchor=6, num_positive=0)


@pytest.fixture(scope="module")
def data():
    return birds(24)


@pytest.fixture(scope="module")
def cache(data):
    policy = load_policy(PROFILE)
    return VisionCache(policy.model, policy.processor, data["image"])


@pytest.fixture(scope="module")
def rows(data, cache):
    return answer_rows(data["label"], cache, 0)


def loop(cache, data, loss, config=SMALL, seed=0, reward=half_right, **changed):
    policy = load_policy(replace(PROFILE, **changed), seed=seed)
    sampler = TripletSampler(data["label"], look_alike_classes(cache, data["label"]), seed)
    return Tapo(policy, cache, data["label"], sampler, config, loss, seed, reward)


def test_sft_lowers_the_loss_and_moves_every_adapter_weight_and_no_other(rows):
    policy = load_policy(PROFILE)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    trained = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    history = train_sft(policy, rows, replace(PROFILE.sft_answers, epochs=6, batch_size=8), seed=0)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert {n for n, p in policy.model.named_parameters() if not torch.equal(p, before[n])} == trained


def test_sft_gradients_do_not_depend_on_the_cut_into_micro_batches(rows):
    grads = []
    for size in (8, 3):
        sft = SFT(load_policy(PROFILE), rows[:8], PROFILE.sft, 0)
        sft.gather_gradients(rows[:8], size)
        grads.append([p.grad for p in sft.policy.trainable()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_an_epoch_uses_every_row_once_and_needs_one():
    batches = list(epochs_of(10, 4, 3, seed=1))
    assert [len(b) for b in batches] == [4, 4, 2] * 3
    assert sorted(sum(batches[:3], [])) == list(range(10)) and batches[:3] != batches[3:6]
    with pytest.raises(ValueError, match="no rows"):
        train_sft(None, [], PROFILE.sft, 0)


@pytest.mark.parametrize("n, steps, warm", [(28, 70, 6), (5, 50, 5), (1, 10, 1)])
def test_few_rows_get_enough_steps_and_are_not_all_warm_up(rows, n, steps, warm):
    sft = SFT(load_policy(PROFILE), (rows * 2)[:n], fitted(SFTConfig(lr=1.0), n), 0)
    rates = []
    for _ in range(sft.steps):
        rates.append(sft.schedule.get_last_lr()[0])
        sft.optimizer.step()
        sft.schedule.step()
    assert (len(rates), rates.index(max(rates))) == (steps, warm)


def test_the_answer_s_limit_follows_the_longest_chain(rows):
    processor = load_policy(PROFILE).processor
    assert room_for(PROFILE, processor, ["a tarn"]) == PROFILE
    assert room_for(PROFILE, processor, ["a tarn", "x " * 150]).max_new_tokens == math.ceil(1.25 * 301)


def test_a_tracker_and_a_table_of_rollouts_hang_on_a_step(cache, data, tmp_path):
    class Tracker(GeneralTracker):
        name, requires_logging_directory, rows = "mine", False, {}
        tracker = property(lambda self: self.rows)

        def store_init_configuration(self, values):
            self.rows["config"] = values

        def log(self, values, step):
            self.rows[step] = values

    accelerator, rl = Accelerator(cpu=True, log_with=(mine := Tracker())), loop(cache, data, DAPO, ANCHOR_ONLY)
    accelerator.init_trackers("finer1", config={"seed": 0})

    def on_step(row):
        accelerator.log(row, step=row["step"])
        write_csv(tmp_path / f"{row['step']}.csv", rollout_rows(rl.groups))

    history = rl.train(on_step=on_step)
    assert [mine.rows[step] for step in range(2)] == history and mine.rows["config"] == {"seed": 0}
    made = pd.read_csv(tmp_path / "1.csv")
    assert list(made.text) == [text for g in rl.groups for text in g.texts]
    assert list(made.rewards) == [half_right(text, "")["overall"] for text in made.text]


def test_a_run_that_is_done_is_not_trained_again_and_its_log_is_a_csv_file(cache, data, rows, tmp_path):
    """Its last step is kept, however rare checkpoints are: what comes after it may be killed too."""
    config, policies = replace(PROFILE.sft, epochs=1, batch_size=2), [load_policy(PROFILE) for _ in range(2)]
    checkpoints = Checkpoints(tmp_path / "sft", every=50)
    ran, again = (train_sft(p, rows[:4], config, 0, tmp_path / "log.csv", None, checkpoints) for p in policies)
    done = [(policies, ran, again, pd.read_csv(tmp_path / "log.csv"))]
    loops, checkpoints = [loop(cache, data, TAPO) for _ in range(2)], Checkpoints(tmp_path / "tapo", every=50)
    ran, again = (rl.train(tmp_path / "log.csv", checkpoints=checkpoints) for rl in loops)
    done.append(([rl.policy for rl in loops], ran, again, pd.read_csv(tmp_path / "log.csv")))
    for policies, ran, again, log in done:
        assert len(ran) == 2 and ran == again == log.to_dict("records")
        assert all(torch.equal(a, b) for a, b in zip(*(p.trainable() for p in policies)))


@pytest.mark.parametrize("loss", [TAPO, DAPO, LossConfig(update_image="own", old_image="own", negative_grad=False)])
def test_rl_moves_every_adapter_weight(cache, data, loss):
    rl = loop(cache, data, loss, ANCHOR_ONLY if loss is DAPO else SMALL)
    before, history = [p.detach().clone() for p in rl.policy.trainable()], rl.train()
    assert len(history) == 2 and all(row["groups_kept"] for row in history)
    # The first step moves only B (A's gradient is B times something, and B starts at 0); the second moves both.
    assert not any(torch.equal(a, b) for a, b in zip(before, rl.policy.trainable()))


def test_a_qwen3_trains_in_both_stages(data, tmp_path):
    profile = replace(qwen3_profile(tmp_path), max_new_tokens=9)
    policy = load_policy(profile)
    cache = VisionCache(policy.model, policy.processor, data["image"])
    sampler = TripletSampler(data["label"], look_alike_classes(cache, data["label"]), 0)
    rl = Tapo(policy, cache, data["label"], sampler, replace(SMALL, steps=1), TAPO, 0, half_right)
    config = replace(profile.sft, epochs=1, batch_size=8, warmup_steps=0)
    sft = SFT(policy, answer_rows(data["label"], cache, 0)[:8], config, 0)
    for stage in (sft, rl):
        before = [p.detach().clone() for p in policy.trainable()]
        assert math.isfinite(stage.train()[0]["loss"]) and len(stage.history) == 1
        assert not all(torch.equal(a, b) for a, b in zip(before, policy.trainable()))


def test_groups_pool_anchor_and_positive(cache, data):
    for config in (SMALL, replace(SMALL, num_anchor=2, num_positive=4)):  # in one batch, in two
        rl = loop(cache, data, TAPO, config)
        one, two = rl.roll_out(rl.sampler.next(2))
        t = one.triplet
        assert len(one.texts) == len(one.rewards) == 6 and one.label == data["label"][t.anchor]
        assert data["label"][t.positive] == one.label != data["label"][t.negative] and t.positive != t.anchor
        rows = Rows.of([one, two], config.num_anchor)
        assert rows.own[:6] == [t.anchor] * config.num_anchor + [t.positive] * config.num_positive
        assert rows.groups[5] is one and rows.groups[6] is two
        ids = [row[mask.bool()] for row, mask in zip(rows.completion_ids, rows.completion_mask)]
        assert one.texts + two.texts == rl.policy.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_groups_without_a_signal_are_dropped_and_others_drawn(cache, data):
    dull = set(sorted(set(data["label"]))[::2])  # names whose answers are all right
    reward = lambda text, label: half_right("" if label in dull else text, label)  # noqa: E731
    groups, facts = loop(cache, data, TAPO, replace(SMALL, max_rounds=20), reward=reward).collect()
    assert len(groups) == facts["groups_kept"] == 2 < facts["groups_drawn"]
    assert all(0 < g.accuracies.sum() < 6 and g.label not in dull for g in groups)


def test_a_step_without_any_group_changes_nothing_and_is_logged(cache, data):
    rl = loop(cache, data, TAPO, replace(SMALL, steps=1), reward=lambda *_: half_right("", ""))
    with pytest.warns(RuntimeWarning, match="dynamic sampling kept 0"):
        row = rl.train()[0]
    assert row["groups_kept"] == 0 and "loss" not in row and not rl.optimizer.state


def test_at_step_one_the_ratio_is_one_and_the_loss_is_minus_the_mean_advantage(cache, data):
    rl = loop(cache, data, DAPO, ANCHOR_ONLY)
    groups, _ = rl.collect()
    metrics = rl.update(groups)
    advantages = torch.cat([group_advantages(g.rewards, 6) for g in groups])
    lengths = torch.cat([g.completion_mask.sum(-1) for g in groups])  # longer completions weigh more
    assert metrics["loss"] == pytest.approx(float(-(advantages * lengths / lengths.sum()).sum()), abs=1e-5)
    assert metrics["grad_norm"] > 1e-4 and metrics["ratio"] == pytest.approx(1, abs=1e-6)


def test_update_does_not_depend_on_the_cut_into_micro_batches(cache, data):
    loops = [loop(cache, data, TAPO, replace(SMALL, micro_batch=size)) for size in (6, 12)]
    one, other = (rl.update(rl.collect()[0]) for rl in loops)
    for figure in ("loss", "grad_norm"):
        assert one[figure] == pytest.approx(other[figure], rel=1e-4)


def test_a_reward_needs_no_format_and_no_decimals(cache, data):
    own = loop(cache, data, DAPO, reward=lambda text, label: dict.fromkeys(("overall", "accuracy"), len(text) % 2))
    groups, facts = own.collect()
    assert facts["groups_kept"] and math.isnan(facts["format"]) and math.isfinite(own.update(groups)["loss"])


def test_a_chain_of_other_data_is_refused_by_name(cache, data):
    labels = data["label"]
    chain = chat_row(4, labels[4], "Which?", "<think>x</think>", pixels=cache.about(4)[1].hex()[:16])
    assert [row[2] for row in sft_rows([chain], cache, labels)] == ["<think>x</think>"]
    assert sft_rows([{k: v for k, v in chain.items() if k != "pixels"}], cache, labels)  # of another tool
    moved, gone = chain | {"image_index": 5}, chain | {"image_index": 99}
    for row, known in ((moved, labels), (chain, labels[::-1]), (gone, labels)):
        with pytest.raises(ValueError, match=f"chain 1 is about a picture of '{labels[4]}'.*the data have changed"):
            sft_rows([row], cache, known)


@pytest.mark.parametrize("made", [
    0.5, None, {"overall": 1.0}, {"overall": math.nan, "accuracy": 1}, {"overall": math.inf, "accuracy": 1},
    {"overall": 0.5, "accuracy": 0.5}, {"overall": None, "accuracy": 0},
])  # fmt: skip
def test_a_reward_that_is_none_is_named_where_it_is_made(cache, data, made):
    with pytest.raises(ValueError, match='the reward gave .* with the label .*"accuracy", 0 or 1'):
        loop(cache, data, DAPO, reward=lambda text, label: made).collect()


def test_more_processes_than_questions_are_refused_at_once(cache, data, monkeypatch):
    monkeypatch.setattr(loop_module, "Team", lambda: SimpleNamespace(rank=0, size=3))
    with pytest.raises(ValueError, match="3 processes for 2 questions"):
        loop(cache, data, DAPO)


def test_one_image_of_a_class_is_enough_without_a_positive_alone(cache, data):
    """The first image of each class: DAPO trains on it, TAPO says what it lacks before anything is sampled."""
    labels, policy = list(dict.fromkeys(data["label"])), load_policy(PROFILE)
    images = data.select([data["label"].index(label) for label in labels])["image"]
    one = VisionCache(policy.model, policy.processor, images)
    sampler = TripletSampler(labels, look_alike_classes(one, labels), 0)
    assert Tapo(policy, one, labels, sampler, ANCHOR_ONLY, DAPO, 0, half_right).train()[-1]["groups_kept"]
    with pytest.raises(ValueError, match=f"class '{sorted(labels)[0]}' has one image.*num_positive to 0"):
        Tapo(policy, one, labels, sampler, SMALL, TAPO, 0, half_right)


def test_the_log_tells_how_many_answers_end(cache, data):
    rl = loop(cache, data, TAPO, reward=None, max_new_tokens=40)  # the profile's own reward asks for the form
    groups, facts = rl.collect()
    for group in rl.roll_out(rl.sampler.next(2)):
        assert group.ended.tolist() == [int(n) < 40 for n in group.completion_mask.sum(-1)]
        assert group.formats.tolist() == [ending_reward(text, group.label)["format"] for text in group.texts]
    assert 0.0 <= facts["ended"] <= 1.0 and {"reward", "accuracy", "format", "ended", "length"} <= set(facts)


def test_answers_that_are_cut_are_named_where_no_group_has_a_signal(cache, data):
    rl = loop(cache, data, TAPO, reward=released_reward, max_new_tokens=4)  # no answer is reached
    with pytest.warns(RuntimeWarning, match="most answers have the 4 tokens of max_new_tokens"):
        groups, facts = rl.collect()
    assert not groups and facts["length"] > 3.5


def test_in_fp16_gradients_are_scaled_and_a_process_that_has_scaled_nothing_yet_takes_its_step():
    weight = torch.nn.Parameter(torch.ones(3))
    profile, device = SimpleNamespace(dtype="float16"), torch.device("cpu")
    policy = SimpleNamespace(
        trainable=lambda: [weight], device=device, profile=profile, model=torch.nn.Module(), runs=()
    )
    first, other = (Loop(policy, TapoConfig(lr=0.1, weight_decay=0.0), 1.0, 0) for _ in range(2))
    first.backward(weight.sum() * 2.0**-26)  # would be rounded to 0 in fp16
    assert weight.grad.half().tolist() == [FP16_SCALE * 2.0**-26] * 3
    weight.grad = torch.full((3,), FP16_SCALE)  # the other processes' sum, each 1
    assert other.step(0.0)["grad_norm"] == pytest.approx(3**0.5)
    assert torch.allclose(weight, torch.tensor(0.9))


def test_full_memory_is_known_by_all_its_names():
    said = map(RuntimeError, ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert all(out_of_memory(error) for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), *said))
    assert not out_of_memory(RuntimeError("shape mismatch"))


def test_a_rehearsal_is_a_step_at_full_length_and_leaves_everything_as_it_was(cache, data, monkeypatch, capsys):
    straight, rl = (loop(cache, data, TAPO, max_new_tokens=24) for _ in range(2))
    update, seen = rl.update, []
    monkeypatch.setattr(rl, "update", lambda groups: seen.append((groups, update(groups))) or seen[-1][1])
    for steps in (0, 1):  # before the first step, when the optimizer knows nothing, and after it
        rl.steps = straight.steps = steps
        straight.train()
        rl.train()
        (tensors, facts), global_state = rl.state(), torch.get_rng_state()
        told = rehearse(rl)
        groups, figures = seen[-1]
        assert len(groups) == 2 and all((g.completion_mask.sum(-1) == 24).all() for g in groups)
        assert figures["grad_norm"] > 0  # a real step, which
        after = rl.state()  # is undone
        assert after[1] == facts and tensors.keys() == after[0].keys()
        assert all(torch.equal(t, after[0][name]) for name, t in tensors.items())
        assert torch.equal(global_state, torch.get_rng_state())
        assert told.keys() == {"rollout_s", "update_s"} and min(told.values()) > 0
        assert f"rollout_s {told['rollout_s']:.1f}" in capsys.readouterr().out
    rl.steps = straight.steps = 2
    for row, other in zip(rl.train(), straight.train(), strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}
    assert all(torch.equal(a, b) for a, b in zip(rl.policy.trainable(), straight.policy.trainable()))
