"""A teacher behind an OpenAI-compatible address: vLLM, `transformers serve`, or a hosted Qwen2.5-VL-32B.

    teacher = Endpoint("Qwen/Qwen2.5-VL-32B-Instruct", data["image"], "runs/answers.jsonl", "http://localhost:8000/v1")
    build_chains(rows, teacher, teacher, choose_concepts, prompt=explained_prompt)

Answers cost time and money, so each one is on the disk before it counts, and a run that was killed goes on without
asking again. An answer is found by what was asked: model, settings, prompt, pixels, and whether it is the first,
second, ... time that this was asked. A new `Endpoint` counts from the start, so the same calls in the same order
give the same texts, those of later rounds of `build_chains` too.

The key is read from the environment and stays out of files, messages and the repr.

What a request does not say, a server takes from the model's generation_config: top_k 1 there makes all draws the same.
Start vLLM with `--generation-config vllm`; `transformers serve` samples only where that file says do_sample.
"""

import base64
import hashlib
import io
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event, RLock
from urllib.parse import urlsplit

from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from ..images import as_rgb

SMALL = 256 * 256  # pixels; up to here a picture goes as PNG, unchanged, and beyond it as JPEG, like a photograph
NO_KEY = "no-key-needed"
REFUSED = "the request was refused; check max_tokens, temperature and top_p, and that {model!r} takes images"
REMEDIES = {
    400: REFUSED,
    422: REFUSED,
    401: "the key was refused; put a valid one into the environment variable {key_variable}",
    403: "the key in the environment variable {key_variable} has no right to use {model!r}",
    404: "not found; check the name {model!r} and base_url, which mostly ends in /v1",
    429: "still too many requests after {max_retries} more tries; lower concurrency, or wait",
}


class EndpointError(RuntimeError):
    """The server cannot be used; says what to do, and how many answers are safe."""


@dataclass
class Usage:
    """What one `Endpoint` asked: answers from the server and their tokens, answers from the disk, and how many of
    both were unusable."""

    price: tuple[float, float] | None = None
    requests: int = 0
    from_disk: int = 0
    unusable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def cost(self) -> float | None:
        """In the currency of `price`; None without one."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        return tokens if self.cost is None else f"{tokens}, cost {self.cost:.4f}"


class Answers:
    """Answers as lines of a file that only grows: {"key", "prompt", "text", "unusable", token counts}.

    The half line of a killed process is dropped; a line that is deleted before is asked again. Several endpoints may write
    to one file. ValueError for a line that is no answer, and if the file got shorter since it was read.
    """

    def __init__(self, path: str | Path):
        self.path, self.rows = Path(path), {}
        self._end, self._alone = 0, RLock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            with self.path.open("rb") as file:
                self._read(file)

    def _read(self, file) -> None:
        """Takes up what was added since the last time."""
        if file.seek(0, os.SEEK_END) < self._end:
            raise ValueError(f"{self.path} got shorter since it was read; somebody changed it, make the endpoint anew")
        file.seek(self._end)
        *lines, _ = file.read().split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
                self.rows[row["key"]] = {"text": row["text"], "unusable": row["unusable"]}
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path} holds a line that is no answer, {line[:60]!r}: remove it") from None
            self._end += len(line) + 1

    def add(self, row: dict) -> None:
        """One more line; it is on the disk when this returns."""
        line = json.dumps(row).encode("ascii") + b"\n"
        with self._alone, FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
            self._read(file)
            file.truncate(self._end)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._read(file)


def read_answer(body: dict) -> tuple[str, str | None]:
    """The text of a server's answer and None, or "" and why it cannot be used.

    >>> read_answer({"choices": [{"message": {"content": "A red crown."}, "finish_reason": "stop"}]})
    ('A red crown.', None)
    >>> read_answer({"choices": [{"message": {"content": "A red cr"}, "finish_reason": "length"}]})
    ('', 'length')
    """
    try:
        choice = body["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError):
        return "", "no choices"
    if finish in ("length", "content_filter"):
        return "", finish
    return (text, None) if isinstance(text, str) and text.strip() else ("", "no text")


def bounded(image: Image.Image, max_pixels: int) -> Image.Image:
    """The picture as a viewer shows it, scaled down to at most `max_pixels`."""
    image = as_rgb(image)
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    return image.resize([max(1, int(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def data_url(image: Image.Image) -> str:
    """An RGB picture as the text that goes to the server."""
    file, small = io.BytesIO(), image.width * image.height <= SMALL
    image.save(file, "PNG") if small else image.save(file, "JPEG", quality=95)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _key(variable: str, base_url: str) -> str:
    """The key of the environment; a server on this machine mostly has none."""
    key = os.environ.get(variable, "").strip()
    if not key and urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return NO_KEY
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"the environment variable {variable} holds no key; set it before Python starts")
    return key


class Endpoint:
    """A `teacher.Sampler`: (image index, prompt) pairs to texts, in the order asked.

    images: anything that gives a PIL image for `images[i]`. store: the file of answers. key_variable: the environment
    variable with the key; a server on this machine needs none. max_pixels: larger pictures are scaled down.
    concurrency: requests under way at once. timeout: seconds for one request. max_retries: more tries after a failure
    that may pass (429 with its Retry-After, 5xx, no connection, no JSON). price: cost of a million (prompt, completion)
    tokens. An answer that was cut off, filtered or empty becomes "", which quality control rejects.

    Raises ImportError without the openai package, ValueError for bad settings and a missing key. A call raises
    EndpointError where the server cannot be used; call again, or make a new Endpoint, and it goes on from there.
    """

    def __init__(
        self, model: str, images: Sequence, store: str | Path, base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY", temperature: float = 1.0, top_p: float = 1.0, max_tokens: int = 1024,
        max_pixels: int = 1280 * 28 * 28, concurrency: int = 8, timeout: float = 120.0, max_retries: int = 5,
        price: tuple[float, float] | None = None,
    ):  # fmt: skip
        try:
            import openai
        except ImportError:
            raise ImportError('a teacher behind an address needs: pip install "finer1_lite[teacher]"') from None
        if min(concurrency, max_tokens, max_pixels) < 1 or timeout <= 0 or max_retries < 0:
            raise ValueError("concurrency, max_tokens, max_pixels and timeout must be positive, max_retries 0 or more")
        if price is not None and len(price) != 2:
            raise ValueError(f"price must be (for prompts, for completions) per million tokens, got {price!r}")
        if base_url is not None and not re.match("https?://", base_url):
            raise ValueError(f"base_url must start with http:// or https://, got {base_url!r}")
        self.model, self.images, self.answers, self.usage = model, images, Answers(store), Usage(price)
        self.key_variable, self.max_pixels, self.concurrency = key_variable, max_pixels, concurrency
        self.sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        key = _key(key_variable, base_url or os.environ.get("OPENAI_BASE_URL", ""))
        self._openai = openai
        self._client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=max_retries)
        self._asked, self._pixels, self._alone = Counter(), {}, RLock()

    def __repr__(self) -> str:
        return f"Endpoint({self.model!r}, store={str(self.answers.path)!r}, {self.usage})"

    def __call__(self, asked: Sequence[tuple[int, str]]) -> list[str]:
        counted, keys = self._asked.copy(), []
        for index, prompt in asked:
            pair = (self._digest(index), prompt)
            counted[pair] += 1
            told = [self.model, self.sampling, self.max_pixels, *pair, counted[pair]]
            keys.append(hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32])
        missing = {key: pair for key, pair in zip(keys, asked) if key not in self.answers.rows}
        if missing:
            self._fetch(missing)
        self._asked = counted  # not before: a call that failed may be made again
        return self._report([self.answers.rows[key] for key in keys], len(missing))

    def _report(self, rows: list[dict], fresh: int) -> list[str]:
        reasons = Counter(row["unusable"] for row in rows if row["unusable"])
        self.usage.from_disk += len(rows) - fresh
        self.usage.unusable += reasons.total()
        if reasons:
            why = ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common())
            said = f"{reasons.total()} of {len(rows)} answers cannot be used ({why})"
            warnings.warn(said, RuntimeWarning, stacklevel=3)
        return [row["text"] for row in rows]

    def _fetch(self, missing: dict[str, tuple[int, str]]) -> None:
        """Ask for all of them; after the first failure no further request is begun."""
        stop = Event()

        def one(key: str, index: int, prompt: str) -> None:
            if stop.is_set():
                return
            try:
                self._take(key, prompt, self._ask(index, prompt))
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self.concurrency) as pool, tqdm(total=len(missing), desc=self.model) as bar:
            try:
                for future in as_completed([pool.submit(one, key, *pair) for key, pair in missing.items()]):
                    future.result()
                    bar.set_postfix_str(str(self.usage), refresh=False)
                    bar.update()
            finally:
                stop.set()

    def _take(self, key: str, prompt: str, body: dict) -> None:
        (text, unusable), told = read_answer(body), body.get("usage")
        told = told if isinstance(told, dict) else {}
        counts = {name: told.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")}
        with self._alone:
            self.answers.add({"key": key, "prompt": prompt, "text": text, "unusable": unusable} | counts)
            self.usage.requests += 1
            self.usage.prompt_tokens += counts["prompt_tokens"]
            self.usage.completion_tokens += counts["completion_tokens"]

    def _ask(self, index: int, prompt: str) -> dict:
        """The body of the server's answer. The client waits and tries again by itself, but not for a broken body."""
        with self._alone:
            image = bounded(self.images[index], self.max_pixels)
        parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": prompt}]
        request = {"model": self.model, "messages": [{"role": "user", "content": parts}]} | self.sampling
        for attempt in range(self._client.max_retries + 1):
            time.sleep(min(2**attempt / 4, 8) if attempt else 0)
            try:
                answer = self._client.chat.completions.with_raw_response.create(**request)
                body = json.loads(answer.http_response.content)
                if isinstance(body, dict):
                    return body
            except self._openai.APIError as error:
                trouble = self._words(error)
                break
            except ValueError:  # cut off, or a page of a proxy
                pass
            trouble = "the answer is not JSON; is base_url the address of an OpenAI-compatible server?"
        # outside of the handler: what the client raised may quote the key
        raise EndpointError(
            f"{trouble} ({len(self.answers.rows)} answers are safe in {self.answers.path}; "
            "a new Endpoint with the same store goes on from there)"
        )

    def _words(self, error: Exception) -> str:
        """What to do about an error of the client, and the server's words without the key."""
        if isinstance(error, self._openai.APITimeoutError):
            return f"no answer within {self._client.timeout} seconds; raise timeout, or lower concurrency"
        if isinstance(error, self._openai.APIConnectionError):
            return "no connection to the server, or it broke off; is it running, and is base_url right?"
        status = getattr(error, "status_code", None)
        remedy = REMEDIES.get(status, "the server failed; see its log").format(
            model=self.model, key_variable=self.key_variable, max_retries=self._client.max_retries
        )
        return f"{remedy}. The server said: {str(error).replace(self._client.api_key, '***')[:300]}"

    def _digest(self, index: int) -> str:
        """Names the picture by its pixels."""
        if index not in self._pixels:
            image = as_rgb(self.images[index])
            self._pixels[index] = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        return self._pixels[index]
