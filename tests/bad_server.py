"""A chat server that misbehaves: the name of the model in a request says how, "... once" only the first time."""

import base64
import io
import json
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from PIL import Image

LOG, LOCK = [], Lock()  # model, prompt, time, kind and size of the image of every request


def answer(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, status, body, length=None, **headers):
        body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": length or len(body)} | headers
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on the screen."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = asked["messages"][0]["content"]
        kind, data = image["image_url"]["url"].split(",")
        size = Image.open(io.BytesIO(base64.b64decode(data))).size
        row = {"model": asked["model"], "prompt": text["text"], "kind": kind, "size": size, "time": time.time()}
        with LOCK:
            LOG.append(row)
            nth = Counter((r["model"], r["prompt"]) for r in LOG)[row["model"], row["prompt"]]
        how, prompt = row["model"], row["prompt"]
        if prompt.startswith("wait"):
            time.sleep(float(prompt.split()[1]))
        how = "" if how.endswith(" once") and nth > 1 else how.removesuffix(" once")
        if how == "slow":
            time.sleep(1.5)
        if how.isdigit():
            said = {"error": {"message": f"no: {self.headers['Authorization']}"}}
            return self.send(int(how), said, **({"Retry-After": 1} if how == "429" else {}))
        if how == "cut":
            self.close_connection = True
            return self.send(200, '{"choices": [', length=1000)
        self.send(200, {
            "garbage": '{"choices": [{"mess', "page": "<html> welcome </html>", "list": [], "no choices": {"choices": []},
            "error": {"error": {"message": "busy"}}, "no usage": answer("fine") | {"usage": ["?"]},
            "null": answer(None), "length": answer("half a", "length"), "filter": answer("", "content_filter"),
        }.get(how, answer(f"{prompt} #{nth}")))  # fmt: skip


def start() -> ThreadingHTTPServer:
    """A server that waits for a thread to serve it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server
