"""A teacher over HTTP: against `transformers serve` with the tiny teacher, and against a server that misbehaves."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species
from finer1_lite.config import ASSETS
from finer1_lite.cot.build import Task, build_chains
from finer1_lite.cot.concepts import choose_concepts
from finer1_lite.teachers.endpoint import Answers, Endpoint, EndpointError

RED = Image.new("RGB", (20, 10), "red")
SECRET = "sk-very-secret-4711"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def bad():
    """The address of the server that misbehaves."""
    server = subprocess.Popen([sys.executable, Path(__file__).with_name("bad_server.py")], stdout=subprocess.PIPE)
    yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    server.kill()
    server.wait()


@pytest.fixture
def teacher(bad, tmp_path):
    """Makes endpoints: the name of the model says how the server behaves."""

    def make(model, images=(RED,), store="answers.jsonl", **how):
        how = {"base_url": f"{bad}/v1", "key_variable": "TEACHER_KEY", "max_retries": 1, "timeout": 10} | how
        return Endpoint(model, images, tmp_path / store, **how)

    return make


def requests(bad, model):
    with urllib.request.urlopen(f"{bad}/log") as log:
        return [row for row in json.load(log) if row["model"] == model]


def lines(endpoint):
    return [json.loads(line) for line in endpoint.answers.path.read_text().splitlines()]


# ---- what is asked, and in which order it comes back


def test_texts_come_in_the_order_asked_whatever_finishes_first(bad, teacher):
    prompts = [f"wait {wait} {i}" for i, wait in enumerate((1.0, 0.5, 0.0))]
    endpoint = teacher("order")
    assert endpoint([(0, prompt) for prompt in prompts]) == [f"{prompt} #1" for prompt in prompts]
    assert [row["prompt"] for row in lines(endpoint)] == prompts[::-1]  # the disk has them as they came


def test_no_more_requests_at_once_than_allowed(bad, teacher):
    start = time.time()
    teacher("narrow", concurrency=2)([(0, f"wait 0.3 {i}") for i in range(6)])
    assert time.time() - start >= 0.9  # three times two


def test_pictures_are_bounded_and_upright(bad, teacher):
    photo, turned, glass = Image.new("RGB", (800, 400)), Image.new("RGB", (30, 20)), Image.new("RGBA", (8, 4))
    turned.getexif()[0x0112] = 6  # the camera was held upright
    teacher("pictures", [photo, turned, glass], max_pixels=400 * 200, concurrency=1)([(i, "see") for i in range(3)])
    sent = [(row["kind"], row["size"]) for row in requests(bad, "pictures")]
    jpeg, png = "data:image/jpeg;base64", "data:image/png;base64"
    assert sent == [(jpeg, [400, 200]), (png, [20, 30]), (png, [8, 4])]


def test_tokens_and_cost_are_counted(teacher):
    endpoint = teacher("cost", price=(2.0, 50.0))
    endpoint([(0, "a"), (0, "b")])
    usage = endpoint.usage
    assert (usage.requests, usage.from_disk, usage.prompt_tokens, usage.completion_tokens) == (2, 0, 20, 4)
    assert usage.cost == pytest.approx(20 * 2e-6 + 4 * 50e-6)
    uncounted = teacher("no usage")
    assert uncounted([(0, "a")]) == ["fine"] and uncounted.usage.prompt_tokens == 0
    assert str(usage) == "20 + 4 tokens, cost 0.0002" and teacher("cost").usage.cost is None


# ---- what is on the disk is not asked again


def test_each_ask_is_a_new_draw_and_a_new_endpoint_replays_them(bad, teacher):
    first = teacher("draws", concurrency=1)
    texts = first([(0, "a"), (0, "a"), (0, "b")]), first([(0, "a")])
    assert texts == (["a #1", "a #2", "b #1"], ["a #3"])
    again = teacher("draws")
    assert (again([(0, "a"), (0, "a"), (0, "b")]), again([(0, "a")])) == texts
    assert len(requests(bad, "draws")) == 4 and again.usage.from_disk == 4 and again.usage.requests == 0


def test_other_settings_pictures_or_models_are_asked_anew(bad, teacher):
    teacher("settings")([(0, "a")])
    for changed in ({"temperature": 0.5}, {"top_p": 0.9}, {"max_tokens": 7}, {"max_pixels": 50}):
        teacher("settings", **changed)([(0, "a")])
    teacher("settings", [None, RED.rotate(180)])([(1, "a")])  # the same picture in another place
    for other in (Image.new("RGB", (10, 20), "red"), Image.new("RGB", (20, 10), (76, 76, 76))):  # its shape, its gray
        teacher("settings", [other])([(0, "a")])
    assert len(requests(bad, "settings")) == 7
    teacher("settings 2")([(0, "a")])
    assert len(requests(bad, "settings 2")) == 1


def test_rounds_of_chains_ask_anew_and_are_replayed_from_any_point(bad, teacher):
    """Round 1 brings no chain, round 2 one; a run that is killed after round 1 gets the same."""
    rows = [Task(i, "a tarn", "Which bird is this?") for i in range(2)]
    images = [RED, Image.new("RGB", (20, 10), "blue")]

    def build(endpoint):
        return build_chains(rows, endpoint, endpoint, choose_concepts, questions=("Describe.",), samples=2)

    first = teacher("rounds", images, concurrency=1)
    built = build(first)
    assert [a.round for a in built.accepted] == [2, 2] and len(built.rejected) == 2
    asked = len(requests(bad, "rounds"))
    assert build(teacher("rounds", images)) == built and len(requests(bad, "rounds")) == asked
    kept = first.answers.path.read_text().splitlines(keepends=True)
    first.answers.path.write_text("".join(kept[:-1]))  # as if killed before the last answer
    assert [a.text for a in build(teacher("rounds", images)).accepted] == [a.text for a in built.accepted]
    assert len(requests(bad, "rounds")) == asked + 1


CHILD = """
import sys
from PIL import Image
from finer1_lite.teachers.endpoint import Endpoint
url, store = sys.argv[1:]
endpoint = Endpoint("killed", [Image.new("RGB", (20, 10), "red")], store, url + "/v1", concurrency=2)
endpoint([(0, f"wait 0.1 {i}") for i in range(30)])
"""


def test_a_killed_run_goes_on_without_asking_again(bad, teacher, tmp_path):
    store = tmp_path / "answers.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, bad, str(store)], stderr=subprocess.DEVNULL)
    while not store.exists() or store.read_bytes().count(b"\n") < 6:
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()  # SIGKILL
    child.wait()
    safe = Answers(store).rows
    with store.open("ab") as file:
        file.write(b'{"key": "0a1b", "te')  # and it was about to write
    before = len(requests(bad, "killed"))
    assert 6 <= len(safe) <= before < 30
    endpoint = teacher("killed", concurrency=4)
    texts = endpoint([(0, f"wait 0.1 {i}") for i in range(30)])
    assert [text.split(" #")[0] for text in texts] == [f"wait 0.1 {i}" for i in range(30)]
    assert len(requests(bad, "killed")) - before == 30 - len(safe) == endpoint.usage.requests
    assert {row["text"] for row in safe.values()} <= set(texts)
    assert len({row["key"] for row in lines(endpoint)}) == len(lines(endpoint)) == 30


def test_two_endpoints_share_a_store(teacher):
    one, two = teacher("shared 1"), teacher("shared 2")
    for prompt in ("a", "b"):
        one([(0, prompt)])
        two([(0, prompt)])
    assert len(lines(one)) == 4 and teacher("shared 1")([(0, "b")]) == ["b #1"]


def test_a_store_that_got_shorter_is_not_written_over(teacher, tmp_path):
    one = teacher("shorter")
    one([(0, "a"), (0, "b")])
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="got shorter"):
        one([(0, "c")])
    assert len(lines(teacher("shorter"))) == 1


@pytest.mark.parametrize("line", ["not JSON", '{"key": "a"}', "[]"])
def test_a_broken_line_is_named(teacher, tmp_path, line):
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="a line that is no answer.*remove it"):
        teacher("any")


# ---- a server in trouble


@pytest.mark.parametrize("trouble", ["slow", "500", "502", "503", "cut", "garbage", "page", "list"])
def test_trouble_that_passes_is_waited_for(bad, teacher, trouble):
    assert teacher(f"{trouble} once", timeout=1.2)([(0, "a")]) == ["a #2"]
    assert len(requests(bad, f"{trouble} once")) == 2


def test_too_many_requests_waits_as_long_as_the_server_says(bad, teacher):
    assert teacher("429 once")([(0, "a")]) == ["a #2"]
    first, second = (row["time"] for row in requests(bad, "429 once"))
    assert second - first >= 1


@pytest.mark.parametrize("trouble, words", [
    ("slow", "no answer within 1.2 seconds; raise timeout, or lower concurrency"),
    ("429", "still too many requests after 1 more tries; lower concurrency"),
    ("500", "the server failed; see its log"),
    ("cut", "no connection to the server, or it broke off"),
    ("garbage", "the answer is not JSON; is base_url the address"),
    ("page", "the answer is not JSON; is base_url the address"),
])  # fmt: skip
def test_trouble_that_stays_says_what_is_safe(bad, teacher, trouble, words):
    teacher("fine")([(0, "a"), (0, "b")])
    with pytest.raises(EndpointError, match=words) as error:
        teacher(trouble, timeout=1.2)([(0, "a")])
    assert "2 answers are safe in" in str(error.value) and "answers.jsonl" in str(error.value)
    assert len(requests(bad, trouble)) == 2  # one more try


@pytest.mark.parametrize("status, words", [
    ("400", "check max_tokens, temperature and top_p"),
    ("422", "check max_tokens, temperature and top_p"),
    ("401", "put a valid one into the environment variable TEACHER_KEY"),
    ("403", "TEACHER_KEY has no right to use '403'"),
    ("404", "check the name '404' and base_url, which mostly ends in /v1"),
])  # fmt: skip
def test_a_refusal_stops_at_once_and_does_not_tell_the_key(bad, teacher, status, words):
    """The server quotes the key in its answer; the message says *** instead."""
    with pytest.raises(EndpointError, match=words) as error:
        teacher(status, concurrency=1, max_retries=5)([(0, f"{i}") for i in range(20)])
    assert len(requests(bad, status)) == 1
    assert "Bearer ***" in str(error.value) and SECRET not in str(error.value)
    assert error.value.__context__ is None  # the client's own error does quote it


def test_a_failed_call_can_be_made_again(bad, teacher):
    endpoint = teacher("507 once", max_retries=0)
    with pytest.raises(EndpointError):
        endpoint([(0, "a")])
    assert endpoint([(0, "a")]) == ["a #2"]
    assert teacher("507 once")([(0, "a")]) == ["a #2"] and len(requests(bad, "500 once")) >= 2


def test_no_server_at_all(teacher):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match="no connection to the server.*is it running"):
        teacher("any", base_url=url, max_retries=0)([(0, "a")])


@pytest.mark.parametrize("model, reason", [
    ("no choices", "no choices"), ("error", "no choices"), ("null", "no text"), ("length", "length"),
    ("filter", "content_filter"),
])  # fmt: skip
def test_unusable_answers_are_empty_counted_and_asked_once(bad, teacher, model, reason):
    with pytest.warns(RuntimeWarning, match=f"2 of 2 answers cannot be used .{reason}: 2"):
        endpoint = teacher(model)
        assert endpoint([(0, "a"), (0, "b")]) == ["", ""]
    assert endpoint.usage.unusable == 2 and {row["unusable"] for row in lines(endpoint)} == {reason}
    with pytest.warns(RuntimeWarning):
        assert teacher(model)([(0, "a")]) == [""]  # from the disk
    assert len(requests(bad, model)) == 2


# ---- settings and the key


def test_the_key_is_nowhere(bad, teacher, tmp_path):
    endpoint = teacher("fine")
    endpoint([(0, "a")])
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"fine" not in files  # the model's name is in the hash only
    assert SECRET.encode() not in files and SECRET not in repr(endpoint) and SECRET not in str(endpoint.usage)
    assert repr(endpoint).startswith("Endpoint('fine', store=") and b'"prompt": "a"' in files


@pytest.mark.parametrize("how, words", [
    ({"base_url": "localhost:8000/v1"}, "must start with http:// or https://"),
    ({"base_url": "https://example.org/v1", "key_variable": "UNSET"}, "environment variable UNSET holds no key"),
    ({"concurrency": 0}, "must be positive"),
    ({"timeout": 0}, "must be positive"),
    ({"max_retries": -1}, "max_retries 0 or more"),
    ({"price": (1,)}, "per million tokens"),
])  # fmt: skip
def test_bad_settings_are_refused_at_once(teacher, how, words):
    with pytest.raises(ValueError, match=words):
        teacher("any", **how)


def test_a_broken_key_is_not_quoted(teacher, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", f"{SECRET}\nexport")
    with pytest.raises(ValueError, match="TEACHER_KEY holds no key") as error:
        teacher("any")
    assert SECRET not in str(error.value)


def test_local_servers_need_no_key(teacher):
    assert teacher("fine", key_variable="UNSET", store="other.jsonl")([(0, "keyless")]) == ["keyless #1"]


def test_without_the_client_it_says_what_to_install(teacher, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "finer1_lite\[teacher\]"'):
        teacher("any")


# ---- the real thing


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`transformers serve` with the tiny teacher, merged; the address and the folder."""
    from peft import PeftModel
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("teacher")
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(ASSETS / "base", use_safetensors=True)
    model = PeftModel.from_pretrained(base, ASSETS / "teacher").merge_and_unload()
    model.generation_config.do_sample = True  # a request cannot say it: without, the server is greedy
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(ASSETS / "base").save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, *where]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
    for _ in range(1200):
        assert server.poll() is None, (folder / "log").read_text()
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1", str(folder)
    server.send_signal(signal.SIGTERM)
    server.wait(20)


def test_chains_from_a_real_server(served, tmp_path):
    """Three birds described and thought about over HTTP; a second run asks nothing and finds the same."""
    url, model = served
    species = all_species()[5:90:40]
    images, names = [draw(s, 5) for s in species], [s.name for s in species]
    rows = [Task(i, name, "Which bird is this?") for i, name in enumerate(names)]

    def build():
        teacher = Endpoint(model, images, tmp_path / "answers.jsonl", url, max_tokens=160, concurrency=2)
        return build_chains(rows, teacher, teacher, choose_concepts, max_rounds=4), teacher.usage

    built, usage = build()
    assert len(built.accepted) >= 1 and all(a.chain.prediction == names[a.task] for a in built.accepted)
    assert usage.requests == 12 + len(built.accepted) + len(built.rejected)
    assert usage.prompt_tokens > 12 * 16 and usage.completion_tokens > 0  # 16 tokens are the image
    again, usage = build()
    assert again == built and usage.requests == 0
