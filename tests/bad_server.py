"""A chat server that misbehaves: the name of the model in a request says how, "... once" only the first time."""

import base64
import io
import json
import time
from http.server import BaseHTTPRequestHandler
from threading import Lock

from PIL import Image

LOG, LOCK = [], Lock()  # model, prompt, time, kind and size of the image of every request


def answer(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    log_message = lambda self, *_: None

    def send(self, status, body, length=None):
        body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": length or len(body), "Retry-After": 1}
        for name, value in headers.items():
            self.send_header(name, str(value))
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
        if how == "slow":
            time.sleep(1.5)
        if how.isdigit():
            return self.send(int(how), {"error": {"message": f"no: {self.headers['Authorization']}"}})
        if how == "cut":
            self.close_connection = True
            return self.send(200, '{"choices": [', length=1000)
        self.send(200, {
            "garbage": '{"choices": [{"mess', "list": [], "no choices": {"choices": []}, "null": answer(None),
            "error": {"error": {"message": "busy"}}, "no usage": answer("fine") | {"usage": ["?"]},
            "length": answer("half a", "length"), "content_filter": answer("", "content_filter"),
        }.get(how, answer(f"{prompt} #{nth}")))  # fmt: skip
