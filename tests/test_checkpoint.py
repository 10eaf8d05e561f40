"""A killed, interrupted or starved run loses at most the steps since the last checkpoint, and goes on bit for bit."""

import json
import multiprocessing
import random
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finer1_lite.birds.dataset import load_birds
from finer1_lite.config import RELEASED_SWITCHES, get_profile
from finer1_lite.loop import MAX_BAD_STEPS, STATE, TENSORS, CheckpointError, Checkpoints, State, uninterrupted
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.recipes import answer_rows, look_alike_classes
from finer1_lite.samplers import ConfusionCounts, TripletSampler
from finer1_lite.sft import train_sft
from finer1_lite.tapo import Tapo

PROFILE = replace(get_profile("cpu"), max_new_tokens=6)
SETTING = replace(
    PROFILE.tapo, steps=6, questions=2, num_anchor=2, num_positive=2, max_rounds=2, micro_batch=4, temperature=2.0,
    lr=1e-2,
)  # fmt: skip


def half_right(completion: str, label: str) -> dict[str, float]:
    """A reward with a signal for any policy: does the text have an even number of letters?"""
    value = float(len(completion) % 2 == 0)
    return {"overall": value, "accuracy": value, "format": 1.0}


def birds():
    return load_birds(0, {"val": {True: 1, False: 1}, "test": {True: 1, False: 1}})["train"].select(range(16))


def make_loop(data, reward=half_right, setting=SETTING, seed=0) -> Tapo:
    policy = load_policy(PROFILE, seed=seed)
    cache = VisionCache(policy.model, policy.processor, data["image"])
    nearest = look_alike_classes(cache, data["label"])
    confusion = ConfusionCounts(data["label"])
    sampler = TripletSampler(data["label"], nearest, seed, negative="online", confusion=confusion)
    return Tapo(policy, cache, data["label"], sampler, setting, RELEASED_SWITCHES, seed, reward)


def adapter(policy) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters() if p.requires_grad}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def untimed(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.fixture(scope="module")
def data():
    return birds()


@pytest.fixture(scope="module")
def straight(data):
    """The uninterrupted run."""
    loop = make_loop(data)
    loop.train()
    return adapter(loop.policy), untimed(loop.history)


# ---- SIGKILL


def run_to_the_end(folder: Path) -> None:
    """The whole life of a process that may be killed at any point of its training."""
    torch.set_num_threads(1)
    loop = make_loop(birds())
    folder.mkdir(exist_ok=True)
    (folder / "training").touch()
    loop.train(checkpoints=Checkpoints(folder / "checkpoints", every=1))
    loop.policy.save(folder / "adapter")


def wait_for(process, condition, limit: float = 60.0) -> None:
    """Until `condition()` or the process's end, or `limit` seconds."""
    end = time.monotonic() + limit
    while process.is_alive() and time.monotonic() < end and not condition():
        time.sleep(0.001)


def test_twenty_kills_at_random_points_change_nothing(tmp_path):
    """Every second kill strikes while a checkpoint is being written."""
    context, rng, folders, last = multiprocessing.get_context("forkserver"), random.Random(0), [], []
    context.set_forkserver_preload(["studies.story"])

    def start(folder):
        (folder / "training").unlink(missing_ok=True)
        process = context.Process(target=run_to_the_end, args=(folder,))
        process.start()
        wait_for(process, (folder / "training").exists)
        return process

    process, began = start(tmp_path / "straight"), time.monotonic()
    process.join()
    assert process.exitcode == 0
    takes = time.monotonic() - began
    while len(last) < 20:
        if not folders or (folders[-1] / "adapter" / "adapter_model.safetensors").exists():  # it was faster than the kill: a new run
            folders.append(tmp_path / f"killed{len(folders)}")
        process = start(folders[-1])
        wait_for(process, lambda: False, rng.uniform(0, takes / 2))
        if len(last) % 2:
            wait_for(process, lambda: any(folders[-1].glob("checkpoints/part-*")))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            last.append((Checkpoints(folders[-1] / "checkpoints").steps() or [0])[-1])
    process = start(folders[-1])
    process.join()
    straight = load_file(tmp_path / "straight" / "adapter" / "adapter_model.safetensors")
    for folder in folders:
        assert same(straight, load_file(folder / "adapter" / "adapter_model.safetensors"))
        left = sorted(p.name for p in (folder / "checkpoints").iterdir())
        assert left == ["step-000005", "step-000006"]
    assert len(set(last)) > 3, f"all kills struck at steps {last}"


# ---- Ctrl-C


@pytest.fixture(autouse=True)
def keyboard():
    """Ctrl-C is an error, as in a terminal; a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(after: int):
    """A reward that presses Ctrl-C once, at its `after`-th call: in the middle of a step."""
    calls = []

    def half_right_(completion, label):
        calls.append(1)
        if len(calls) == after:
            signal.raise_signal(signal.SIGINT)
        return half_right(completion, label)

    half_right_.__name__ = "half_right"
    return half_right_


@pytest.mark.parametrize("again", ["same loop", "new process"])
def test_ctrl_c_in_the_middle_of_a_step_saves_and_goes_on(data, straight, tmp_path, again, capsys):
    loop, checkpoints = make_loop(data, interrupting(after=27)), Checkpoints(tmp_path, every=100)
    with pytest.raises(KeyboardInterrupt):  # a program ends; in a notebook the cell ends
        loop.train(checkpoints=checkpoints)
    done = len(loop.history)
    assert 0 < done < SETTING.steps and checkpoints.steps() == [done]
    assert f"stopped after {done} whole steps, saved in step-00000{done}" in capsys.readouterr().out
    if again == "new process":
        loop = make_loop(data)
    loop.train(checkpoints=checkpoints)
    assert same(adapter(loop.policy), straight[0]) and untimed(loop.history) == straight[1]


def test_in_a_notebook_the_next_cell_works(data, monkeypatch):
    monkeypatch.setattr("finer1_lite.loop.get_ipython", lambda: object())
    loop = make_loop(data, interrupting(after=27))
    history = loop.train()
    assert 0 < len(history) < SETTING.steps
    assert len(loop.train()) == SETTING.steps


def test_a_step_is_not_interrupted_in_its_middle():
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
        return adapter(policy), untimed(history)

    checkpoints = Checkpoints(tmp_path, every=100)
    with pytest.raises(KeyboardInterrupt):
        train(6, checkpoints)
    assert checkpoints.steps() == [7]
    (resumed, history), (whole, expected) = train(checkpoints=checkpoints), train()
    assert same(resumed, whole) and history == expected and len(history) == 16
    with pytest.raises(CheckpointError, match="config was .*0.001.* and is .*0.5"):
        config = replace(config, lr=0.5)
        train(checkpoints=checkpoints)


# ---- what is on disk


@pytest.fixture
def three(tmp_path):
    """Checkpoints of three steps, of which two stay."""
    checkpoints = Checkpoints(tmp_path / "run", every=1, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(State(step, {"adapter/x": torch.full((4,), float(step))}, {"n": step}, {"profile": "cpu"}))
    return checkpoints


def test_the_same_step_again_replaces_the_old_one(three):
    three.save(State(3, {"adapter/x": torch.zeros(4)}, {"n": 33}, {"profile": "cpu"}))
    assert three.load({"profile": "cpu"}).facts == {"n": 33} and three.steps() == [2, 3]
    assert sorted(p.name for p in three.folder.iterdir()) == ["step-000002", "step-000003"]


def test_a_bounded_number_stays_and_the_newest_is_loaded(three):
    assert three.steps() == [2, 3]
    state = three.load({"profile": "cpu"})
    assert state.step == 3 and state.facts == {"n": 3} and state.tensors["adapter/x"].tolist() == [3.0] * 4
    assert Checkpoints(three.folder / "other").load({}) is None
    three.clear()
    assert three.load({"profile": "cpu"}) is None


def test_a_later_checkpoint_that_is_damaged_does_not_push_out_a_whole_one(three):
    (three.path(3) / TENSORS).write_bytes(b"")
    three.keep = 1
    saved = three.save(State(2, {"adapter/x": torch.zeros(4)}, {"n": 22}, {"profile": "cpu"}))
    assert saved.exists() and three.steps() == [2, 3]


@pytest.mark.parametrize("damage", ["cut", "one bit", "no state", "half a state"])
def test_a_damaged_checkpoint_is_named_and_left_and_the_one_before_is_taken(three, damage):
    newest = three.path(3)
    if damage == "cut":
        (newest / TENSORS).write_bytes((newest / TENSORS).read_bytes()[:-3])
    elif damage == "one bit":
        content = bytearray((newest / TENSORS).read_bytes())
        content[-1] ^= 1
        (newest / TENSORS).write_bytes(content)
    elif damage == "no state":
        (newest / STATE).unlink()
    else:
        (newest / STATE).write_text((newest / STATE).read_text()[:20])
    with pytest.warns(RuntimeWarning, match="damaged: step-000003 .*going on from step 2"):
        assert three.load({"profile": "cpu"}).step == 2
    (three.path(2) / TENSORS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-000003.*step-000002.*move this folder away"):
        three.load({"profile": "cpu"})
    assert three.steps() == [2, 3]


def test_another_run_is_refused_by_name(three, data):
    with pytest.raises(CheckpointError, match="profile was 'cpu' and is 'l4'"):
        three.load({"profile": "l4"})
    loop, other = make_loop(data), make_loop(data, setting=replace(SETTING, lr=1.0))
    assert loop.identity() != other.identity()
    for field, value in {"max_new_tokens": 7, "lora_alpha": 16, "quantize": False}.items():
        other = make_loop(data)
        other.policy.profile = replace(other.policy.profile, **{field: value})
        assert loop.identity() != other.identity(), field
    assert loop.identity() == make_loop(data, setting=replace(SETTING, steps=99, micro_batch=1)).identity()


def test_a_loop_that_starts_from_another_adapter_is_another_run(data):
    one, two = make_loop(data), make_loop(data)
    assert one.identity() == two.identity()
    with torch.no_grad():
        two.policy.trainable()[-1].add_(1e-3)
    rest = Tapo(two.policy, two.cache, two.labels, two.sampler, two.config, two.loss, two.seed, half_right)
    assert {k for k, v in rest.identity().items() if v != one.identity()[k]} == {"start"}


def test_another_library_version_is_refused_or_warned_about(three):
    path = three.path(3) / STATE
    text = json.loads(path.read_text())
    text["versions"]["peft"] = "0.1"
    path.write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match=r"made with peft 0.1 \(here .*other_versions=True"):
        three.load({"profile": "cpu"})
    with pytest.warns(UserWarning, match="peft 0.1"):
        assert Checkpoints(three.folder, other_versions=True).load({"profile": "cpu"}).step == 3


def write_with_little_room(folder: Path, outcome) -> None:
    """A process that may write files of 1 KiB at most: what a full disk says, for real."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    try:
        Checkpoints(folder, every=1).save(State(4, {"adapter/x": torch.zeros(10_000)}, {}, {"profile": "cpu"}))
    except CheckpointError as error:
        outcome.send(str(error))


def test_a_full_disk_is_reported_and_the_last_checkpoint_stays(three):
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=write_with_little_room, args=(three.folder, theirs))
    process.start()
    assert ours.poll(60)
    message = ours.recv()
    process.join()
    assert "step 4 was not written" in message and "The one of step 3 is whole" in message and "space" in message
    assert sorted(p.name for p in three.folder.iterdir()) == ["step-000002", "step-000003"]
    assert three.load({"profile": "cpu"}).step == 3


def test_bad_settings_say_so(tmp_path):
    with pytest.raises(ValueError, match="every is 0"):
        Checkpoints(tmp_path, every=0)


# ---- bad steps, little memory


def test_a_step_that_is_not_finite_is_left_out_and_counted(data):
    loop = make_loop(data)
    broken = {1, 3}  # steps whose gradient is spoilt
    parameter = loop.policy.trainable()[0]
    parameter.register_hook(lambda g: g * torch.nan if len(loop.history) in broken else g)
    before = {}

    def look(row):
        if row["skipped"]:
            assert same(before["weights"], adapter(loop.policy))
        before["weights"] = adapter(loop.policy)

    history = loop.train(on_step=look)
    assert [row["skipped"] for row in history] == [0, 1, 0, 1, 0, 0]
    assert all(p.isfinite().all() for p in loop.policy.trainable())


def test_many_bad_steps_in_a_row_stop_the_run_with_the_last_good_adapter(data, tmp_path):
    loop = make_loop(data, setting=replace(SETTING, steps=20))
    loop.policy.trainable()[0].register_hook(lambda g: g * torch.inf if len(loop.history) >= 2 else g)
    checkpoints = Checkpoints(tmp_path, every=2)
    with pytest.raises(FloatingPointError, match=f"{MAX_BAD_STEPS} steps in a row .*learning rate"):
        loop.train(checkpoints=checkpoints)
    assert checkpoints.steps()[-1] == 6 and loop.history[-1]["skipped"]
    saved = checkpoints.load(loop.identity())
    assert all(t.isfinite().all() for t in saved.tensors.values() if t.is_floating_point())


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_micro_batch_that_does_not_fit_is_halved_once_and_for_all(data, where):
    """The fault is what CUDA raises, while more than two rows are scored; the result is that of smaller parts."""
    small, tight = make_loop(data, setting=replace(SETTING, micro_batch=2)), make_loop(data)
    groups = small.collect()[0]
    small.update(groups)

    def full(gradient=None):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def at_forward(module, arguments, keywords):
        if torch.is_grad_enabled() and len(keywords["input_ids"]) > 2:
            full()

    def at_backward(module, arguments, keywords, output):
        if torch.is_grad_enabled() and len(keywords["input_ids"]) > 2:
            output.last_hidden_state.register_hook(full)

    if where == "forward":
        tight.policy.backbone.register_forward_pre_hook(at_forward, with_kwargs=True)
    else:
        tight.policy.backbone.register_forward_hook(at_backward, with_kwargs=True)
    tight.collect()
    with pytest.warns(RuntimeWarning, match="micro_batch.* lowered from 4 to 2"):
        tight.update(groups)
    assert tight.config.micro_batch == 2
    assert same(adapter(tight.policy), adapter(small.policy))
