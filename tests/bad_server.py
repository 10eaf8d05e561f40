"""A chat endpoint that misbehaves: the name of the model in a request says how. Prints its port.

GET /log gives the requests so far: model, prompt, time, kind and size of the image.
"""

import base64
import io
import json
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from PIL import Image

LOG, SEEN, LOCK = [], Counter(), Lock()
CHAIN = (
    "<analysis> red crown </analysis> <options> a tarn; b tarn </options>"
    "<comparison> a tarn fits, b tarn has a blue back </comparison> <prediction> a tarn </prediction>"
)


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

    def do_GET(self):
        self.send(200, LOG)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = asked["messages"][0]["content"]
        kind, data = image["image_url"]["url"].split(",")
        model, prompt = asked["model"], text["text"]
        with LOCK:
            SEEN[model, prompt] += 1
            nth = SEEN[model, prompt]
            size = Image.open(io.BytesIO(base64.b64decode(data))).size
            LOG.append({"model": model, "prompt": prompt, "time": time.time(), "kind": kind, "size": size})
        if prompt.startswith("wait"):
            time.sleep(float(prompt.split()[1]))
        self.behave(model.removesuffix(" once") if nth == 1 or not model.endswith(" once") else "", prompt, nth)

    def behave(self, how, prompt, nth):
        if how == "slow":
            time.sleep(2.5)
        if how.isdigit():
            said = {"error": {"message": f"no: {self.headers['Authorization']}"}}
            return self.send(int(how), said, **({"Retry-After": 1} if how == "429" else {}))
        if how == "cut":
            self.close_connection = True
            return self.send(200, '{"choices": [', length=1000)
        if how == "page":
            return self.send(200, "<html> welcome </html>", **{"Content-Type": "text/html"})
        if how == "rounds" and "Features" in prompt:
            return self.send(200, answer(CHAIN if nth > 1 else "I cannot say."))
        self.send(200, {
            "garbage": '{"choices": [{"mess', "no choices": {"choices": []}, "error": {"error": {"message": "busy"}},
            "list": [], "no usage": answer("fine") | {"usage": ["?"]},
            "null": answer(None), "length": answer("half a", "length"), "filter": answer("", "content_filter"),
        }.get(how, answer(f"{prompt} #{nth}")))  # fmt: skip


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
