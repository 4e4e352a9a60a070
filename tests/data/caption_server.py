"""A captioning server on loopback that misbehaves as told, and shards for it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from tokenflow.data.recaption_backend import CaptionRequest
from tokenflow.data.shard_writer import ShardWriter

GOOD = "good"
Behaviour = str | tuple[int, dict[str, str]] | bytes
"""GOOD, "close", "hang", "dribble"; (status, headers) of an error; or the body of an answer with status 200."""


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()


def caption_of(jpeg: bytes) -> str:
    """A caption that is a function of the picture."""
    return f"A picture with the fingerprint {hashlib.sha256(jpeg).hexdigest()[:12]}."


class CaptionServer:
    """Answers request number n (from 0) as `behave(n, request's body)` says."""

    def __init__(self, behave: Callable[[int, dict], Behaviour] = lambda number, body: GOOD, models=("tiny",)):
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                listed = {"object": "list", "data": [{"id": model} for model in models]}
                found = self.path == "/v1/models"
                self.reply(200 if found else 404, json.dumps(listed if found else {"detail": "Not Found"}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                if self.path != "/v1/chat/completions":
                    return self.reply(404, b'{"detail":"Not Found"}')
                return self.misbehave(behave(number, body), body)

            def misbehave(self, behaviour: Behaviour, body: dict):
                if behaviour == GOOD:
                    self.reply(200, completion(caption_of(picture_in(body))))
                elif behaviour == "close":
                    self.close_connection = True
                elif behaviour == "hang":
                    outer.released.wait()
                elif behaviour == "dribble":
                    self.dribble()
                elif isinstance(behaviour, tuple):
                    status, headers = behaviour
                    self.reply(status, json.dumps({"error": {"message": f"trouble {status}"}}).encode(), headers)
                else:
                    assert isinstance(behaviour, bytes)
                    self.reply(200, behaviour)

            def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None):
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def dribble(self):
                self.send_response_only(200)
                self.end_headers()
                while not outer.released.is_set():
                    self.wfile.write(b" ")

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except (BrokenPipeError, ConnectionResetError):
                    # the client was killed, or had enough
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> CaptionServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def scripted(*behaviours: Behaviour):
    """A server with these behaviours, one a request, and good afterwards."""
    with CaptionServer(lambda number, body: behaviours[number] if number < len(behaviours) else GOOD) as server:
        yield server


def picture_in(body: dict) -> bytes:
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def request(position: int, *, prompt: str = "What is this?", image: bytes | None = None) -> CaptionRequest:
    content = picture(position) if image is None else image
    return CaptionRequest(position=position, key=f"{position:04d}", image=content, prompt=prompt)


def write_shards(folder: Path, sizes: Sequence[int]) -> Path:
    """Shards of pictures with captions and records."""
    folder.mkdir(parents=True)
    position = 0
    for number, size in enumerate(sizes):
        with ShardWriter(folder / f"pictures-{number}.tar") as writer:
            for _ in range(size):
                record = json.dumps({"source": "noise", "number": position}).encode()
                members = {"png": picture(position), "txt": f"old caption {position}".encode(), "json": record}
                writer.add(f"{position:04d}", members)
                position += 1
    return folder
