"""A teacher behind an OpenAI-compatible address: vLLM, `transformers serve`, or a hosted Qwen2.5-VL-32B.

    teacher = Endpoint("Qwen/Qwen2.5-VL-32B-Instruct", data["image"], "runs/answers.jsonl", "http://localhost:8000/v1")
    choose = partial(choose_concepts, encode=sentence_encoder(download=True))
    build_chains(tasks, teacher, teacher, choose, questions=describe_questions("bird"), prompt=explained_prompt)

Each answer is on the disk before it counts: a new `Endpoint`, as after a kill, finds those to the same calls there.
What a request does not say, a server takes from the model's generation_config, where top_k 1 makes all draws equal.
Start vLLM with `--generation-config vllm`; `transformers serve` samples only where that file says do_sample.
"""

import asyncio
import base64
import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import Queue
from urllib.parse import urlsplit

from PIL import Image
from tqdm.auto import tqdm

from ..files import JsonLines
from ..images import as_rgb

SMALL = 256 * 256  # pixels; up to here a picture goes as PNG, unchanged, and beyond it as JPEG, like a photograph
LOCAL = ("localhost", "127.0.0.1", "::1")
MOST_BYTES = 16 * 2**20  # of an answer; a chain has some thousand
NOT_JSON = "the answer is not JSON; is base_url the address of an OpenAI-compatible server?"
REMEDIES = {
    400: "the request was refused; check max_tokens, temperature and top_p, and that {model!r} takes images",
    401: "the key was refused; put a valid one into the environment variable {key_variable}",
    403: "the key in the environment variable {key_variable} has no right to use {model!r}",
    404: "not found; check the name {model!r} and base_url, which mostly ends in /v1",
    429: "still too many requests after {max_retries} more tries; lower concurrency, or wait",
}


class EndpointError(RuntimeError):
    """The server cannot be used; says what to do, and how many answers are safe."""


def bounded(image: Image.Image, max_pixels: int) -> Image.Image:
    """The picture upright and in RGB, scaled down to at most `max_pixels`."""
    image = as_rgb(image)
    scale = min(1, (max_pixels / (image.width * image.height)) ** 0.5)
    return image.resize([max(1, int(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


class Endpoint:
    """A `cot.build.Sampler`: (image index, prompt) pairs to texts, in the order asked.

    images: PIL images by index. store: the file of answers. key_variable: the environment variable with the key,
    which is never stored or shown; a server on this machine needs none. max_pixels: larger pictures are scaled down.
    timeout: seconds for one try, from its start to the last byte. max_retries: more tries after 429, 5xx or no
    connection. An answer of more than MOST_BYTES is refused. Ctrl-C ends all requests. price: of a million
    (prompt, completion) tokens. An answer that was cut off, filtered or empty becomes "", which is no chain.
    ValueError without a key, EndpointError where the server cannot be used; a second call goes on from there.
    """

    def __init__(
        self, model: str, images: Sequence, store: str | Path, base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY", temperature: float = 1.0, top_p: float = 1.0, max_tokens: int = 1024,
        max_pixels: int = 1280 * 28 * 28, concurrency: int = 8, timeout: float = 120.0, max_retries: int = 5,
        price: tuple[float, float] | None = None,
    ):  # fmt: skip
        import openai  # pip install "finer1_lite[teacher]"

        key, url = os.environ.get(key_variable, "").strip(), base_url or os.environ.get("OPENAI_BASE_URL", "")
        if not key and urlsplit(url).hostname in LOCAL:
            key = "no-key-needed"
        if not (key and key.isascii() and key.isprintable()):
            raise ValueError(f"the environment variable {key_variable} holds no key; set it before Python starts")
        if urlsplit(url).scheme == "http" and urlsplit(url).hostname not in LOCAL:
            warnings.warn(f"the key goes to {urlsplit(url).hostname} unencrypted; use https://", RuntimeWarning, 2)
        self.model, self.images, self.key_variable, self.price = model, images, key_variable, price
        self.sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        self.max_pixels, self.concurrency, self.usage = max_pixels, concurrency, Counter()
        self.store = JsonLines(store, ("key", "text", "unusable"))
        self.timeout, self.max_retries = timeout, max_retries
        self._server = {"api_key": key, "base_url": base_url, "timeout": timeout, "max_retries": 0}
        self._openai, self._asked, self._pixels = openai, Counter(), {}

    @property
    def cost(self) -> float | None:
        """Of all requests so far, in the currency of `price`; None without one."""
        tokens = self.usage["prompt_tokens"], self.usage["completion_tokens"]
        return self.price and (tokens[0] * self.price[0] + tokens[1] * self.price[1]) / 1e6

    def __call__(self, asked: Sequence[tuple[int, str]]) -> list[str]:
        counted, keys = self._asked.copy(), []
        for index, prompt in asked:
            if index not in self._pixels:
                image = as_rgb(self.images[index])
                self._pixels[index] = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
            pair = (self._pixels[index], prompt)
            counted[pair] += 1
            told = [self.model, self.sampling, self.max_pixels, *pair, counted[pair]]
            keys.append(hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32])
        known = {row["key"] for row in self.store.rows}
        self._fetch([(key, *pair) for key, pair in zip(keys, asked) if key not in known])
        self._asked = counted  # not before: a call that failed may be made again
        answers = {row["key"]: row for row in self.store.rows}
        if why := Counter(answers[key]["unusable"] for key in keys if answers[key]["unusable"]):
            said = f"{why.total()} of {len(keys)} answers cannot be used ({dict(why)})"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
        return [answers[key]["text"] for key in keys]

    def _fetch(self, missing: list[tuple[str, int, str]]) -> None:
        if not missing:
            return
        started: Queue = Queue()
        with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has an event loop already
            done = pool.submit(asyncio.run, self._all(missing, started))
            loop, task = started.get()
            try:
                while wait([done], timeout=0.5).not_done:  # in pieces, as a lock alone may not see Ctrl-C
                    pass
            except KeyboardInterrupt:
                loop.call_soon_threadsafe(task.cancel)
                raise
            done.result()

    async def _all(self, missing: list[tuple[str, int, str]], started: Queue) -> None:
        started.put((asyncio.get_running_loop(), asyncio.current_task()))
        turns = asyncio.Semaphore(self.concurrency)
        async with self._openai.AsyncOpenAI(**self._server) as client:

            async def one(key: str, index: int, prompt: str) -> None:
                async with turns:
                    self._keep(key, prompt, await self._ask(client, index, prompt))

            try:
                async with asyncio.TaskGroup() as group:  # the first failure cancels the others
                    tasks = [group.create_task(one(*row)) for row in missing]
                    for task in tqdm(asyncio.as_completed(tasks), total=len(tasks), desc=self.model):
                        await task
            except ExceptionGroup as failed:
                error = failed.exceptions[0]
            else:
                return
        if isinstance(error, EndpointError):
            error = EndpointError(f"{error} ({len(self.store.rows)} answers are safe in {self.store.path})")
        raise error  # bare: a group of errors would hide what it is about

    def _keep(self, key: str, prompt: str, body: dict) -> None:
        choice = (body.get("choices") or [{}])[0]
        text, finish = (choice.get("message") or {}).get("content"), choice.get("finish_reason")
        unusable = finish if finish in ("length", "content_filter") else None if (text or "").strip() else "no text"
        told = body["usage"] if isinstance(body.get("usage"), dict) else {}
        used = {name: told.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")}
        answer = {"key": key, "prompt": prompt, "text": "" if unusable else self._hidden(text), "unusable": unusable}
        self.store.append(answer | used)
        self.usage.update(used, requests=1)

    async def _ask(self, client, index: int, prompt: str) -> dict:
        image = bounded(self.images[index], self.max_pixels)
        file, kind = io.BytesIO(), "png" if image.width * image.height <= SMALL else "jpeg"
        image.save(file, kind, quality=95)
        url = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        request = {"model": self.model, "messages": [{"role": "user", "content": content}]} | self.sampling
        for number in range(self.max_retries + 1):
            try:
                async with asyncio.timeout(self.timeout):
                    body = json.loads(await self._read(client, request))
                trouble = None if isinstance(body, dict) else NOT_JSON
            except ValueError:
                trouble = NOT_JSON
            except Exception as error:  # the client's own, and that of its HTTP library where a body breaks off
                trouble, pause = self._words(error), self._pause(error, number)
                if pause is not None and number < self.max_retries:
                    await asyncio.sleep(pause)
                    continue
            break
        if trouble:  # outside of the handler: what the client raised may quote the key
            raise EndpointError(trouble)
        return body

    async def _read(self, client, request: dict) -> bytes:
        body = bytearray()
        async with client.chat.completions.with_streaming_response.create(**request) as response:
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise ValueError
        return bytes(body)

    def _pause(self, error: Exception, number: int) -> float | None:
        """Seconds until try `number` + 2, as long as the server asks for, up to a minute; None: it would not help."""
        status = getattr(error, "status_code", None)
        if status is not None and status != 429 and status < 500:
            return None
        asked = error.response.headers.get("retry-after", "") if status else ""
        return min(float(asked), 60.0) if asked.isdigit() else 0.5 * 2**number

    def _hidden(self, text: str) -> str:
        return text.replace(self._server["api_key"], "***")

    def _words(self, error: Exception) -> str:
        if isinstance(error, (self._openai.APITimeoutError, TimeoutError)):
            return f"no answer within {self.timeout} seconds; raise timeout, or lower concurrency"
        if not isinstance(error, self._openai.APIStatusError):
            return "no connection to the server, or it broke off; is it running, and is base_url (http://...) right?"
        remedy = REMEDIES.get(getattr(error, "status_code", None), "the request failed; see the server's log")
        return f"{remedy.format(**vars(self))}. The server said: {self._hidden(str(error))[:300]}"
