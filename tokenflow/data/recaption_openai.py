"""Captions from any server that speaks OpenAI's chat completions, such as vLLM and SGLang.

Requests run side by side in threads. What may pass is tried again, each time after about twice as long; what a server
says about waiting holds for all threads.
"""

import base64
import io
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from tokenflow.data.recaption_backend import (
    CaptionAnswer,
    CaptionConfig,
    CaptionerUnusable,
    CaptionRequest,
    open_picture,
)
from tokenflow.data.recaption_http import HttpRefusal, HttpServer, TryAgain
from tokenflow.data.samples import BadSample

logger = logging.getLogger(__name__)
_QUALITY = 95
_SECONDS_A_PULSE = 0.1


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How a server is treated."""

    base_url: str = "http://localhost:8000/v1"
    """Up to and with /v1."""
    concurrency: int = 16
    """Requests at a time."""
    requests_per_second: float | None = None
    """Requests begin no faster; by default only `concurrency` limits them."""
    timeout: float = 180.0
    """Seconds for a request."""
    tries: int = 8
    """Of a request that fails in a way that may pass."""
    first_pause: float = 1.0
    """Seconds before the second try; twice as long before each further one, times 0.5 to 1.5 at random."""
    longest_pause: float = 60.0
    """Seconds between tries, unless the server asks for more."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("timeout", "first_pause", "longest_pause", "requests_per_second"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; expected more than 0")


class Pace:
    """Lets requests begin, of all threads, one after the other at a rate, and none before a pause is over.

    Args:
        per_second: Requests a second; None for no limit.
        clock: Seconds of a clock that only runs forward.
        sleep: Waits so many seconds.
    """

    def __init__(self, per_second: float | None, *, clock: Callable[[], float], sleep: Callable[[float], Any]):
        self._gap = 1 / per_second if per_second else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next = clock()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may begin."""
        with self._lock:
            begin = max(self._clock(), self._next)
            self._next = begin + self._gap
        if (left := begin - self._clock()) > 0:
            self._sleep(left)

    def pause(self, seconds: float) -> None:
        """No request begins in the next `seconds`."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


class OpenAICaptioner:
    """Captions by a server's model.

    Args:
        model: Its name there; `served_model` asks for it.
        config: How it is asked.
        server: How the server is treated.
        key: Sent as bearer token; None sends none.
        clock: Seconds of a clock that only runs forward.
        sleep: Waits so many seconds; by default a wait that `answers` interrupts when it ends early.
        jitter: Random numbers from 0 to 1.
        pulse: Called all the while by the thread that takes the answers; what it raises ends them.
    """

    def __init__(
        self,
        model: str,
        *,
        config: CaptionConfig,
        server: ServerConfig,
        key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
        jitter: Callable[[], float] = random.random,
        pulse: Callable[[], None] = lambda: None,
    ):
        self.model = model
        self.config = config
        self.server = server
        self._http = open_server(server, key=key, clock=clock)
        self._stopped = threading.Event()
        self._sleep = self._stopped.wait if sleep is None else sleep
        self._pace = Pace(server.requests_per_second, clock=clock, sleep=self._sleep)
        self._jitter = jitter
        self._pulse = pulse
        self._in_trouble = False
        self._lock = threading.Lock()

    def answers(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionAnswer]:
        """One answer a request, as they come in; raises CaptionerUnusable at 401, 403, 404 and the like."""
        pool = ThreadPoolExecutor(self.server.concurrency)
        waiting: set[Future[CaptionAnswer]] = set()
        finished = False
        try:
            for request in requests:
                waiting.add(pool.submit(self._answer, request))
                if len(waiting) >= self.server.concurrency:
                    yield from self._some(waiting)
            while waiting:
                yield from self._some(waiting)
            finished = True
        finally:
            if not finished:
                self._stopped.set()
                self._http.abort()
            pool.shutdown(cancel_futures=True)

    def _some(self, waiting: set[Future[CaptionAnswer]]) -> list[CaptionAnswer]:
        """The next answers, at least one; taken out of `waiting`."""
        done: set[Future[CaptionAnswer]] = set()
        while not done:
            self._pulse()
            done = wait(waiting, timeout=_SECONDS_A_PULSE, return_when=FIRST_COMPLETED).done
        waiting -= done
        return [future.result() for future in done]

    def _answer(self, request: CaptionRequest) -> CaptionAnswer:
        about = {"position": request.position, "key": request.key}
        try:
            picture = open_picture(request.image, max_pixels=self.config.max_pixels)
        except BadSample as error:
            return CaptionAnswer(**about, failure="bad_picture", detail=str(error))
        stream = io.BytesIO()
        picture.save(stream, format="JPEG", quality=_QUALITY)
        body = self._body(request.prompt, base64.b64encode(stream.getvalue()).decode())
        trouble = ""
        for attempt in range(self.server.tries):
            self._pace.wait()
            if self._stopped.is_set():
                break
            try:
                text, cut = _read(self._http.request("POST", "/chat/completions", body))
                self._in_trouble = False
                return CaptionAnswer(**about, text=text, cut=cut)
            except TryAgain as error:
                trouble = str(error)
                self._say(trouble)
                self._rest(attempt, error.after)
            except HttpRefusal as error:
                _stop_if_hopeless(error, server=self.server, model=self.model)
                return CaptionAnswer(**about, failure="failed", detail=str(error))
        return CaptionAnswer(**about, failure="failed", detail=f"{self.server.tries} tries, the last: {trouble}")

    def _body(self, prompt: str, picture: str) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}],
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        }

    def _say(self, trouble: str) -> None:
        """Name a trouble when it begins, and not for every request that meets it."""
        with self._lock:
            begins, self._in_trouble = not self._in_trouble, True
        if begins:
            logger.warning(
                "%s: %s; each request is tried up to %d times", self.server.base_url, trouble, self.server.tries
            )

    def _rest(self, attempt: int, asked: float | None) -> None:
        """Wait between two tries; what the server asked for holds for the other threads too."""
        if attempt + 1 == self.server.tries:
            return
        pause = min(self.server.longest_pause, self.server.first_pause * 2**attempt) * (0.5 + self._jitter())
        if asked is not None:
            self._pace.pause(asked)
            pause = max(pause, asked)
        self._sleep(pause)


def open_server(server: ServerConfig, *, key: str | None, clock: Callable[[], float] = time.monotonic) -> HttpServer:
    """The server behind a configuration. Raises ValueError for a URL that is none."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return HttpServer(server.base_url, timeout=server.timeout, headers=headers, clock=clock)


def served_model(server: ServerConfig, *, key: str | None = None) -> str:
    """The one model that a server lists. Raises CaptionerUnusable when it lists several, or does not answer."""
    try:
        listed = open_server(server, key=key).request("GET", "/models")
        names = [entry["id"] for entry in listed["data"]]
    except HttpRefusal as error:
        _stop_if_hopeless(error, server=server, model=None)
        raise CaptionerUnusable(f"{server.base_url}/models: {error}; name the model with --model") from error
    except (TryAgain, KeyError, TypeError) as error:
        raise CaptionerUnusable(
            f"{server.base_url} does not list its models ({error}); expected a server there. Start it, mend "
            "--base_url, or name the model with --model"
        ) from error
    if len(names) != 1:
        raise CaptionerUnusable(f"{server.base_url} serves {len(names)} models: {names}; choose one with --model")
    return str(names[0])


def _read(answer: Any) -> tuple[str, bool]:
    """(text, whether the limit of tokens ended it) of a chat completion. Raises TryAgain when it is none."""
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        if content is not None and not isinstance(content, str):
            raise TypeError(f"content is {content!r}")
        return content or "", choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TryAgain(
            f"its answer is no chat completion ({type(error).__name__}: {error}): {str(answer)[:80]}"
        ) from error


def _stop_if_hopeless(error: HttpRefusal, *, server: ServerConfig, model: str | None) -> None:
    """Raise CaptionerUnusable for what no request can get past."""
    if error.status in (401, 403):
        remedy = "expected a key that it accepts. Put it into an environment variable and give --key_env its name"
    elif error.status in (404, 405) or error.status < 400:
        remedy = (
            f"expected an OpenAI-compatible server that has the model {model!r}. Give --base_url up to and with /v1, "
            f"and a --model that {server.base_url}/models lists"
        )
    else:
        return
    raise CaptionerUnusable(f"{server.base_url} answers with {error}; {remedy}") from error
