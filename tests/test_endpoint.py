"""A teacher over HTTP: against a server that misbehaves, and against `transformers serve` with the tiny teacher."""

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread, Timer

import pytest
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species
from finer1_lite.config import ASSETS
from finer1_lite.teachers.endpoint import Endpoint, EndpointError

RED = Image.new("RGB", (20, 10), "red")
SECRET = "sk-very-secret-4711"
LOG, LOCK = [], Lock()  # model, prompt, time, kind and size of the image of every request


def answer(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}


class Handler(BaseHTTPRequestHandler):
    """Misbehaves as the name of the model in a request says; "... once" only the first time."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, length=None):
        body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", length or len(body))
        self.send_header("Retry-After", 1)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = asked["messages"][0]["content"]
        kind, data = image["image_url"]["url"].split(",")
        size, how, prompt = Image.open(io.BytesIO(base64.b64decode(data))).size, asked["model"], text["text"]
        with LOCK:
            LOG.append({"model": how, "prompt": prompt, "kind": kind, "size": size, "time": time.time()})
            nth = sum(row["model"] == how and row["prompt"] == prompt for row in LOG)
        if prompt.startswith("wait"):
            time.sleep(float(prompt.split()[1]))
        how = "" if how.endswith(" once") and nth > 1 else how.removesuffix(" once")
        time.sleep(1.5 * (how == "slow"))
        if how.isdigit():
            return self.send(int(how), {"error": {"message": f"no: {self.headers['Authorization']}"}})
        if how in ("drip", "endless"):
            self.close_connection = True
            self.send(200, '{"a": "', length=10**12)
            with suppress(OSError):  # until the reader goes
                while True:
                    self.wfile.write(b"x" * (1 if how == "drip" else 2**16))
                    time.sleep(0.05 * (how == "drip"))
            return None
        if how == "cut":
            self.close_connection = True
            return self.send(200, '{"choices": [', length=1000)
        self.send(200, {
            "garbage": '{"choices": [{"mess', "no choices": {"choices": []}, "null": answer(None),
            "error": {"error": {"message": "busy"}}, "no usage": answer("fine") | {"usage": ["?"]},
            "length": answer("half a", "length"), "content_filter": answer("", "content_filter"),
        }.get(how, answer(f"{prompt} #{nth}")))  # fmt: skip


@pytest.fixture(scope="module")
def bad():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


@pytest.fixture
def teacher(bad, tmp_path, monkeypatch):
    """Makes endpoints: the name of the model says how the server behaves."""
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def make(model, images=(RED,), **how):
        how = {"base_url": bad, "key_variable": "TEACHER_KEY", "max_retries": 1, "timeout": 10} | how
        return Endpoint(model, images, tmp_path / "answers.jsonl", **how)

    return make


def requests(model):
    return [row for row in LOG if row["model"] == model]


def test_texts_come_in_the_order_asked_whatever_finishes_first(teacher):
    prompts = [f"wait {wait} {i}" for i, wait in enumerate((0.8, 0.4, 0.0))]
    endpoint = teacher("order")
    assert endpoint([(0, prompt) for prompt in prompts]) == [f"{prompt} #1" for prompt in prompts]
    assert [row["prompt"] for row in endpoint.store.rows] == prompts[::-1]  # the disk has them as they came
    start = time.time()
    teacher("narrow", concurrency=2)([(0, f"wait 0.2 {i}") for i in range(6)])
    assert time.time() - start >= 0.6  # three times two


def test_pictures_are_bounded_and_upright(teacher):
    photo, turned = Image.new("RGB", (800, 400)), Image.new("RGBA", (30, 20))
    turned.getexif()[0x0112] = 6  # the camera was held upright
    teacher("pictures", [photo, turned], max_pixels=400 * 200, concurrency=1)([(0, "see"), (1, "see")])
    sent = [(row["kind"], row["size"]) for row in requests("pictures")]
    assert sent == [("data:image/jpeg;base64", (400, 200)), ("data:image/png;base64", (20, 30))]


def test_tokens_and_cost_are_counted(teacher):
    endpoint, uncounted = teacher("cost", price=(2.0, 50.0)), teacher("no usage")
    assert endpoint([(0, "a"), (0, "b")]) == ["a #1", "b #1"] and uncounted([(0, "a")]) == ["fine"]
    assert endpoint.usage == {"requests": 2, "prompt_tokens": 20, "completion_tokens": 4}
    assert endpoint.cost == pytest.approx(20 * 2e-6 + 4 * 50e-6) and uncounted.cost is None


def test_each_ask_is_a_new_draw_and_a_new_endpoint_replays_them(teacher):
    first = teacher("draws", concurrency=1)
    texts = first([(0, "a"), (0, "a"), (0, "b")]), first([(0, "a")])
    assert texts == (["a #1", "a #2", "b #1"], ["a #3"])
    again = teacher("draws")
    assert (again([(0, "a"), (0, "a"), (0, "b")]), again([(0, "a")])) == texts and not again.usage
    lines = first.store.path.read_text().splitlines(keepends=True)
    first.store.path.write_text("".join(lines[:1] + lines[2:]) + '{"key": "0a')  # one is deleted, one half written
    assert teacher("draws")([(0, "a"), (0, "a"), (0, "b")]) == ["a #1", "a #4", "b #1"]


def test_other_settings_pictures_or_models_are_asked_anew(teacher):
    teacher("settings")([(0, "a")])
    for changed in ({"temperature": 0.5}, {"top_p": 0.9}, {"max_tokens": 7}, {"max_pixels": 50}):
        teacher("settings", **changed)([(0, "a")])
    teacher("settings", [None, RED.rotate(180)])([(1, "a")])  # the same picture in another place
    for other in (Image.new("RGB", (10, 20), "red"), Image.new("RGB", (20, 10), (76, 76, 76))):  # its shape, its gray
        teacher("settings", [other])([(0, "a")])
    assert len(requests("settings")) == 7
    assert teacher("settings 2")([(0, "a")]) == ["a #1"]


def test_a_teacher_elsewhere_needs_no_model_here():
    code = "import sys, finer1_lite.teachers.endpoint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("trouble", ["slow", "503", "cut", "429"])
def test_trouble_that_passes_is_waited_for(teacher, trouble):
    assert teacher(f"{trouble} once", timeout=0.7)([(0, "a")]) == ["a #2"]
    first, second = (row["time"] for row in requests(f"{trouble} once"))
    assert second - first >= (1 if trouble.isdigit() else 0)  # as the server's Retry-After says


@pytest.mark.parametrize("trouble, words, tries", [
    ("slow", "no answer within 0.7 seconds; raise timeout, or lower concurrency", 2),
    ("429", "still too many requests after 1 more tries; lower concurrency", 2),
    ("500", "the request failed; see the server's log", 2),
    ("cut", "no connection to the server, or it broke off", 2),
    ("garbage", "the answer is not JSON; is base_url the address", 1),
    ("400", "check max_tokens, temperature and top_p", 1),
    ("401", "put a valid one into the environment variable TEACHER_KEY", 1),
    ("403", "TEACHER_KEY has no right to use '403'", 1),
    ("404", "check the name '404' and base_url, which mostly ends in /v1", 1),
])  # fmt: skip
def test_trouble_that_stays_stops_at_once_and_says_what_is_safe(teacher, trouble, words, tries):
    """The server quotes the key in its answer; the message says *** instead."""
    teacher("fine")([(0, "a"), (0, "b")])
    with pytest.raises(EndpointError, match=words) as error:
        teacher(trouble, timeout=0.7, concurrency=1)([(0, f"{i}") for i in range(20)])
    assert "2 answers are safe in" in str(error.value) and "answers.jsonl" in str(error.value)
    assert len(requests(trouble)) == tries
    assert not trouble.isdigit() or "Bearer ***" in str(error.value)
    assert SECRET not in str(error.value) and error.value.__context__ is None  # the client's own error does quote it


def test_an_answer_is_bounded_in_time_and_size(teacher, monkeypatch):
    """Every piece of it comes in time; without end."""
    monkeypatch.setattr("finer1_lite.teachers.endpoint.MOST_BYTES", 2**20)
    for model, words in (("drip", "no answer within 0.7 seconds"), ("endless", "the answer is not JSON")):
        start = time.time()
        with pytest.raises(EndpointError, match=words):
            teacher(model, timeout=0.7, max_retries=0)([(0, "a")])
        assert time.time() - start < 3


def test_a_full_disk_is_told_as_such(teacher, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    endpoint = teacher("fine")
    monkeypatch.setattr(endpoint.store, "append", full)
    with pytest.raises(OSError, match="No space left"):
        endpoint([(0, "a"), (0, "b")])


def test_ctrl_c_comes_back_at_once(teacher):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    start, endpoint = time.time(), teacher("order", timeout=60, concurrency=2)
    with pytest.raises(KeyboardInterrupt):
        endpoint([(0, f"wait {seconds} c") for seconds in (0, 20, 20, 20)])
    signal.signal(signal.SIGINT, before)
    assert time.time() - start < 3 and [row["prompt"] for row in endpoint.store.rows] == ["wait 0 c"]


def test_a_failed_call_can_be_made_again(teacher):
    with pytest.raises(EndpointError, match="no connection to the server.*is it running"):
        teacher("any", base_url="http://127.0.0.1:9/v1", max_retries=0)([(0, "a")])
    endpoint = teacher("507 once", max_retries=0)
    with pytest.raises(EndpointError):
        endpoint([(0, "a")])
    assert endpoint([(0, "a")]) == ["a #2"] == teacher("507 once")([(0, "a")])


@pytest.mark.parametrize("model", ["no choices", "error", "null", "length", "content_filter"])
def test_unusable_answers_are_empty_told_and_asked_once(teacher, model):
    reason = model if model in ("length", "content_filter") else "no text"
    for _ in range(2):  # from the server, from the disk
        with pytest.warns(RuntimeWarning, match=f"2 of 2 answers cannot be used .*{reason}': 2"):
            assert teacher(model)([(0, "a"), (0, "b")]) == ["", ""]
    assert len(requests(model)) == 2


def test_the_key_is_nowhere_and_only_local_servers_need_none(teacher, tmp_path):
    endpoint = teacher("fine")
    endpoint([(0, "a")])
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET.encode() not in files and SECRET not in repr(endpoint) and b'"prompt": "a"' in files
    assert endpoint([(0, f"say {SECRET}")]) == ["say *** #1"]  # an answer may quote it
    assert teacher("keyless", key_variable="UNSET")([(0, "a")]) == ["a #1"]
    with pytest.raises(ValueError, match="environment variable UNSET holds no key"):
        teacher("any", key_variable="UNSET", base_url="https://example.org/v1")
    with pytest.warns(RuntimeWarning, match="the key goes to example.org unencrypted; use https"):
        teacher("any", base_url="http://example.org/v1")


@pytest.mark.slow
def test_a_real_server_is_understood(tmp_path):
    """`transformers serve` with the tiny teacher, merged."""
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(ASSETS / "base", use_safetensors=True)
    PeftModel.from_pretrained(base, ASSETS / "teacher").merge_and_unload().save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(ASSETS / "base").save_pretrained(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen([Path(sys.executable).with_name("transformers"), "serve", tmp_path, *where])
    try:
        images, url = [draw(s, 5) for s in all_species()[5:90:40]], f"http://127.0.0.1:{port}/v1"
        teacher = Endpoint(str(tmp_path), images, tmp_path / "answers.jsonl", url, max_retries=30)  # it starts slowly
        texts = teacher([(i, "Describe the bird.") for i in range(3)])
    finally:
        server.terminate()
    assert all("crown" in text for text in texts) and len(set(texts)) == 3
    assert teacher.usage["requests"] == 3 and teacher.usage["prompt_tokens"] > 3 * 16  # 16 tokens are the image
