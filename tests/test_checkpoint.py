"""A killed, interrupted or starved run loses at most the steps since the last checkpoint, and goes on bit for bit."""

import json
import multiprocessing
import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import pytest
import torch
from safetensors.torch import load_file, save_file

from finer1_lite import identity
from finer1_lite import loop as loop_module
from finer1_lite.birds.dataset import load_birds
from finer1_lite.config import get_profile
from finer1_lite.losses import RELEASED
from finer1_lite.loop import MAX_BAD_STEPS, CheckpointError, Checkpoints, uninterrupted
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.recipes import answer_rows, look_alike_classes
from finer1_lite.samplers import ConfusionCounts, TripletSampler
from finer1_lite.sft import train_sft
from finer1_lite.tapo import Tapo

torch.set_num_threads(1)  # more threads would not survive a fork
FORK = multiprocessing.get_context("fork")
PROFILE = replace(get_profile("cpu"), max_new_tokens=6)
SETTING = replace(
    PROFILE.tapo, steps=6, questions=2, num_anchor=2, num_positive=2, max_rounds=2, micro_batch=4, temperature=2.0,
    lr=1e-2,
)  # fmt: skip


def on_reward(label: str) -> None:
    """What a test wants to happen at each reward."""


def half_right(completion: str, label: str) -> dict[str, float]:
    """A reward with a signal for any policy: does the text have an even number of letters?"""
    on_reward(label)
    value = float(len(completion) % 2 == 0)
    return {"overall": value, "accuracy": value, "format": 1.0}


def birds(n: int = 16):
    return load_birds(0, {"val": {True: 1, False: 1}, "test": {True: 1, False: 1}})["train"].select(range(n))


def make_loop(data, reward=half_right, setting=SETTING, seed=0) -> Tapo:
    policy = load_policy(PROFILE, seed=seed)
    cache = VisionCache(policy.model, policy.processor, data["image"])
    nearest = look_alike_classes(cache, data["label"])
    confusion = ConfusionCounts(data["label"])
    sampler = TripletSampler(data["label"], nearest, seed, negative="online", confusion=confusion)
    return Tapo(policy, cache, data["label"], sampler, setting, RELEASED, seed, reward)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def untimed(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.fixture(scope="module")
def data():
    return birds()


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The uninterrupted run, each step of which counts as slow: tensors, history, seconds, steps that were kept."""
    loop, kept = make_loop(data), Checkpoints(tmp_path_factory.mktemp("slow"), every=100, keep=100, minutes=0.0)
    history = loop.train(checkpoints=kept)
    return loop.state()[0], untimed(history), history[-1]["seconds"], kept.steps()


def test_a_slow_step_is_kept_at_once(straight):
    assert straight[3] == list(range(1, SETTING.steps + 1))


def run_to_the_end(loop: Tapo, folder: Path) -> None:
    loop.train(checkpoints=Checkpoints(folder / "checkpoints", every=1))
    save_file(loop.state()[0], folder / "end")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_points_change_nothing(data, straight, tmp_path, kills):
    """Every second kill strikes while a checkpoint is being written. Each process gets a loop that has not begun."""
    rng, folders, last, loop = random.Random(0), [tmp_path / "0"], [], make_loop(data)
    while len(last) < kills:
        if (folders[-1] / "end").exists():  # it was faster than the kill: a new run
            folders.append(tmp_path / str(len(folders)))
        process = FORK.Process(target=run_to_the_end, args=(loop, folders[-1]))
        process.start()
        process.join(rng.uniform(0, straight[2]))
        while len(last) % 2 and process.is_alive() and not any(folders[-1].glob("checkpoints/*.part-*")):
            time.sleep(0.001)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            last.append((Checkpoints(folders[-1] / "checkpoints").steps() or [0])[-1])
    run_to_the_end(loop, folders[-1])
    for folder in folders:
        assert same(straight[0], load_file(folder / "end"))
        left = sorted(p.name for p in (folder / "checkpoints").iterdir())
        assert left == ["step-000005.safetensors", "step-000006.safetensors"]
    assert kills == 2 or len(set(last)) > 3, f"all kills struck at steps {last}"


@pytest.fixture(autouse=True)
def keyboard():
    """Ctrl-C is an error, as in a terminal; a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(monkeypatch, after: int) -> None:
    """Ctrl-C is pressed at the `after`-th reward: in the middle of a step."""
    calls = iter(range(1, 10_000))
    pressed = lambda label: signal.raise_signal(signal.SIGINT) if next(calls) == after else None  # noqa: E731
    monkeypatch.setitem(globals(), "on_reward", pressed)


@pytest.mark.parametrize("again", ["same loop", "new process", "notebook"])
def test_ctrl_c_in_the_middle_of_a_step_saves_and_goes_on(data, straight, tmp_path, again, capsys, monkeypatch):
    interrupting(monkeypatch, after=27)
    loop, checkpoints = make_loop(data), Checkpoints(tmp_path, every=100)
    if again == "notebook":  # the next cell runs
        monkeypatch.setattr(loop_module, "get_ipython", lambda: object())
        assert loop.train(checkpoints=checkpoints) is loop.history
    else:  # a program ends
        with pytest.raises(KeyboardInterrupt):
            loop.train(checkpoints=checkpoints)
    done = len(loop.history)
    assert 0 < done < SETTING.steps and checkpoints.steps() == [done]
    assert f"stopped after {done} whole steps, saved in step-00000{done}" in capsys.readouterr().out
    if again == "new process":
        loop = make_loop(data)
    loop.train(checkpoints=checkpoints)
    assert same(loop.state()[0], straight[0]) and untimed(loop.history) == straight[1]


def test_an_update_is_not_interrupted_in_its_middle():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")
    assert done == ["whole"]


def test_interrupted_sft_goes_on_bit_for_bit(data, tmp_path):
    config = replace(PROFILE.sft_answers, epochs=4, batch_size=4, lr=1e-3)

    def train(steps=None, checkpoints=None):
        policy = load_policy(PROFILE)
        rows = answer_rows(data["label"], VisionCache(policy.model, policy.processor, data["image"]), 0)

        def on_step(row):
            if row["step"] == steps:
                signal.raise_signal(signal.SIGINT)

        history = train_sft(policy, rows, config, 0, on_step=on_step, checkpoints=checkpoints)
        return loop_module.digest(loop_module.adapter_tensors(policy.model)), untimed(history)

    checkpoints = Checkpoints(tmp_path, every=100)
    with pytest.raises(KeyboardInterrupt):
        train(6, checkpoints)
    assert checkpoints.steps() == [7]
    resumed, whole = train(checkpoints=checkpoints), train()
    assert resumed == whole and len(whole[1]) == 16
    config = replace(config, lr=0.5)
    with pytest.raises(CheckpointError, match="config was .*0.001.* and is .*0.5"):
        train(checkpoints=checkpoints)


RUN = {"profile": "cpu"}


def put(checkpoints: Checkpoints, step: int, value: float) -> Path:
    return checkpoints.save(step, {"adapter/x": torch.full((4,), float(value))}, {"n": value}, RUN)


@pytest.fixture
def three(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", every=1, keep=2)
    for step in (1, 2, 3):
        put(checkpoints, step, step)
    return checkpoints


def test_a_bounded_number_stays_the_newest_is_loaded_and_the_same_step_again_replaces_it(three):
    assert three.steps() == [2, 3]
    tensors, facts = three.load(RUN)
    assert facts == {"n": 3} and tensors["adapter/x"].tolist() == [3.0] * 4
    put(three, 3, 33)
    assert three.load(RUN)[1] == {"n": 33} and len(list(three.folder.iterdir())) == 2
    three.path(3).write_bytes(b"")
    three.keep = 1  # what is newer can only be damaged: it does not count
    assert put(three, 2, 22).exists() and three.steps() == [2, 3]
    three.clear()
    assert three.load(RUN) is None


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:-3], lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    lambda content: content.replace(b'n\\": 3', b'n\\": 4'), lambda content: content.replace(b"sha256", b"sha255"),
])  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_left_and_the_one_before_is_taken(three, damage):
    whole = three.path(3).read_bytes()
    three.path(3).write_bytes(damage(whole))
    assert three.path(3).read_bytes() != whole
    with pytest.warns(RuntimeWarning, match="damaged: step-000003.* .*going on from step 2"):
        assert three.load(RUN)[1] == {"n": 2}
    three.path(2).write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-000003.*step-000002.*move this folder away"):
        three.load(RUN)
    assert three.steps() == [2, 3]


def test_another_run_or_library_version_is_refused_by_name(three, data, monkeypatch):
    with pytest.raises(CheckpointError, match="of another run: profile was 'cpu' and is 'l4'"):
        three.load({"profile": "l4"})
    with monkeypatch.context() as other, pytest.raises(CheckpointError, match="peft was .* and is .99."):
        other.setitem(loop_module.VERSIONS, "peft", "99")
        three.load(RUN)
    loop = make_loop(data)
    one = loop.identity()

    def differs(other):
        return {key for key, value in other.identity().items() if value != one[key]}

    def like(**changed):
        given = {"policy": loop.policy, "config": SETTING, "reward": half_right, "cache": loop.cache} | changed
        return Tapo(labels=loop.labels, loss=loop.loss, seed=0, **{"sampler": loop.sampler} | given)

    assert differs(like(config=replace(SETTING, steps=99, micro_batch=1))) == set()  # these may change
    assert differs(like(config=replace(SETTING, lr=1.0))) == {"config"}
    assert differs(like(reward=lambda completion, label: {})) == {"reward"}
    assert differs(like(ask=lambda rng, image: f"Which bird? {rng.integers(2)}")) == {"questions"}
    for kind in ({"negative": "random"}, {"hardness": 0.5}, {"seed": 1, "confusion": ConfusionCounts(["a"], 0.5)}):
        how = {"negative": "online", "confusion": loop.sampler.confusion, "seed": 0} | kind
        nearest = {name: others[:2] for name, others in loop.sampler.rankings.items()} if "hardness" in kind else None
        sampler = TripletSampler(loop.labels, nearest or loop.sampler.rankings, **how)
        assert differs(like(sampler=sampler)) == {"sampler"}
    darker = [image.point(lambda value: value // 2) for image in data["image"]]
    cache = VisionCache(loop.policy.model, loop.policy.processor, darker)
    assert differs(like(cache=cache)) == {"pictures"}
    norm = loop.policy.backbone.language_model.norm.weight
    with torch.no_grad():  # another base in a folder of the same name
        norm.mul_(2)
        assert differs(like()) == {"base"}
        norm.div_(2)
    loop.policy.profile = replace(PROFILE, max_new_tokens=7, lora_alpha=16, quantize=False)
    assert differs(loop) == {"max_new_tokens", "lora_alpha", "quantize"}
    loop.policy.profile = PROFILE
    with torch.no_grad():
        loop.policy.trainable()[-1].add_(1e-3)
    assert differs(like()) == {"start"}  # another adapter to begin with


def credit(completion, label, share):
    return {"overall": share, "accuracy": 0}


class Reward:
    """An object without a name; what it holds decides what it pays."""

    def __init__(self, **values):
        vars(self).update(values)

    def __call__(self, completion, label):
        return {"overall": 0.0, "accuracy": 0}


def test_two_rewards_are_told_apart_by_source_and_bound_values():
    def bound(share):
        return lambda completion, label: {"overall": share, "accuracy": 0}

    apart = [credit, partial(credit, share=0.1), partial(credit, share=0.2), bound(0.1), bound(0.2), Reward(),
             Reward(share=0.1), Reward(inner=credit), Reward(inner=partial(credit, share=0.1))]  # fmt: skip
    told = [json.dumps(identity.told(reward)) for reward in apart]
    assert len(set(told)) == len(apart) and told[1] == json.dumps(identity.told(partial(credit, share=0.1)))
    unknown = Reward(lock=Lock())
    with pytest.raises(ValueError, match="cannot be told from another one.*an attribute `identity`"):
        identity.told(unknown)
    unknown.identity = "mine, version 2"
    assert identity.told(unknown) == ["mine, version 2"]


def test_a_run_is_not_gone_on_with_fewer_steps_nor_by_two_at_once(data, tmp_path):
    checkpoints, loop = Checkpoints(tmp_path / "run", every=1), make_loop(data, setting=replace(SETTING, steps=2))
    with checkpoints.alone():
        with pytest.raises(CheckpointError, match="another process trains in .*run: stop it, or give another folder"):
            make_loop(data).train(checkpoints=checkpoints)
    loop.train(checkpoints=checkpoints)
    with pytest.raises(CheckpointError, match="has done 2 steps, 1 are asked for"):
        make_loop(data, setting=replace(SETTING, steps=1)).train(checkpoints=checkpoints)


def test_an_adapter_tells_what_really_trained_it_also_when_it_was_set_back(data, tmp_path):
    policy = load_policy(PROFILE)
    cache = VisionCache(policy.model, policy.processor, data["image"])
    train_sft(policy, answer_rows(data["label"], cache, 0)[:4], replace(PROFILE.sft_answers, epochs=1), 5)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    labels = data["label"]
    for gamma in (0.5, 0.25):  # from the same start, as chapter 4 compares two
        policy.model.load_state_dict(before, strict=False)
        sampler = TripletSampler(labels, look_alike_classes(cache, labels), 0)
        loss = replace(RELEASED, gamma=gamma)
        Tapo(policy, cache, labels, sampler, replace(SETTING, steps=1), loss, 0, half_right).train()
    policy.save(tmp_path)
    sft, rl = load_policy(PROFILE, tmp_path).runs
    assert (sft["stage"], sft["seed"], sft["steps"], rl["stage"], rl["gamma"]) == ("SFT", 5, 1, "RL", 0.25)
    assert rl["reward"] == "half_right" and rl["lr"] == SETTING.lr


def test_without_checkpoints_nobody_is_told_that_all_goes_on(data, capsys, monkeypatch):
    interrupting(monkeypatch, after=17)
    with pytest.raises(KeyboardInterrupt):
        make_loop(data).train()
    assert "not saved: this loop's own `train` goes on, a new one starts at step 0" in capsys.readouterr().out


def test_a_full_disk_is_reported_and_the_last_checkpoints_stay_and_one_that_cannot_flush_is_used(three, monkeypatch):
    def refuse(*_):
        raise OSError(*error)

    monkeypatch.setattr("os.fsync", refuse)
    error = (28, "No space left on device")
    with pytest.raises(CheckpointError, match="step 4 was not written.*No space.*are as they were"):
        put(three, 4, 4)
    assert len(list(three.folder.iterdir())) == 2 and three.load(RUN)[1] == {"n": 3}
    error = (22, "Invalid argument")
    assert put(three, 4, 4).exists()


def test_a_step_that_is_not_finite_is_left_out_and_counted(data):
    loop, weights = make_loop(data), []
    loop.policy.trainable()[0].register_hook(lambda g: g * torch.nan if len(loop.history) in (1, 3) else g)
    history = loop.train(on_step=lambda row: weights.append(loop.state()[0]))
    assert [row["skipped"] for row in history] == [0, 1, 0, 1, 0, 0]
    assert [same(a, b) for a, b in zip(weights, weights[1:])] == [True, False, True, False, False]
    assert all(p.isfinite().all() for p in loop.policy.trainable())


def test_many_bad_steps_in_a_row_stop_the_run_with_the_last_good_adapter(data, tmp_path):
    loop = make_loop(data, setting=replace(SETTING, steps=20))
    loop.policy.trainable()[0].register_hook(lambda g: g * torch.inf if len(loop.history) >= 2 else g)
    checkpoints = Checkpoints(tmp_path, every=2)
    with pytest.raises(FloatingPointError, match=f"{MAX_BAD_STEPS} steps in a row .*learning rate"):
        loop.train(checkpoints=checkpoints)
    assert checkpoints.steps()[-1] == 6 and loop.history[-1]["skipped"]
    tensors, facts = checkpoints.load(loop.identity())
    assert facts["bad_steps"] == 4 and all(t.isfinite().all() for t in tensors.values())


def test_a_micro_batch_that_does_not_fit_is_halved_once_and_for_all(data):
    """The fault is CUDA's, in the backward pass of more than two rows; the result is that of smaller parts."""
    small, tight = make_loop(data, setting=replace(SETTING, micro_batch=2)), make_loop(data)
    groups = small.collect()[0]
    small.update(groups)

    def full(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def watch(module, arguments, keywords, output):
        if torch.is_grad_enabled() and len(keywords["input_ids"]) > 2:
            output.last_hidden_state.register_hook(full)

    tight.policy.backbone.register_forward_hook(watch, with_kwargs=True)
    tight.collect()
    with pytest.warns(RuntimeWarning, match="micro_batch.* lowered from 4 to 2"):
        tight.update(groups)
    assert tight.config.micro_batch == 2
    assert same(tight.state()[0], small.state()[0])
