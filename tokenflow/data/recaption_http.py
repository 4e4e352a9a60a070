"""HTTP requests with a deadline for the whole of each, and whether what fails may pass."""

import email.utils
import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

_MOST_BYTES = 16 * 1024**2
_CHUNK = 65536
_PASSING = (408, 409, 425, 429)
_LONGEST_PAUSE = 600.0


class TryAgain(Exception):
    """A failure that may pass."""

    def __init__(self, message: str, *, after: float | None = None):
        super().__init__(message)
        self.after = after
        """Seconds that the server asks to wait; None where it says nothing."""


class HttpRefusal(Exception):
    """An answer with a status that the same request will get again."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class HttpServer:
    """JSON requests to one server; every request has its own connection, so that threads and failures stay apart.

    Args:
        base_url: http:// or https://, up to and with /v1.
        timeout: Seconds for a whole request.
        headers: Sent with each.
        clock: Seconds of a clock that only runs forward.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float,
        headers: dict[str, str],
        clock: Callable[[], float] = time.monotonic,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the server's URL is {base_url!r}; expected one such as http://localhost:8000/v1")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._timeout = timeout
        self._headers = headers
        self._clock = clock
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that the server answers.

        Raises:
            TryAgain: No answer, an answer cut off or no JSON, or a status that passes (408, 429, 5xx, ...).
            HttpRefusal: Any other status.
        """
        content = None if body is None else json.dumps(body).encode()
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        with self._lock:
            self._open.add(connection)
        try:
            status, headers, answer = self._exchange(connection, method, self._path + path, content)
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(f"{type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if status != 200:
            message = f"status {status}: {_message(answer)}"
            if status in _PASSING or status >= 500:
                raise TryAgain(message, after=_retry_after(headers))
            raise HttpRefusal(status, message)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise TryAgain(f"its answer is no JSON: {answer[:80]!r}") from error

    def abort(self) -> None:
        """Close the connections that threads wait on."""
        with self._lock:
            waiting = [connection.sock for connection in self._open if connection.sock is not None]
        for sock in waiting:
            try:
                # closing alone would not wake the thread that reads
                sock.shutdown(2)
            except OSError:
                # its thread was faster
                continue

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, content: bytes | None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        deadline = self._clock() + self._timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._headers}
        connection.request(method, path, body=content, headers=headers)
        response = connection.getresponse()
        found = bytearray()
        # the connection's own timeout is for each read, and a server may send a byte every minute
        while chunk := response.read1(_CHUNK):
            found += chunk
            if len(found) > _MOST_BYTES:
                raise http.client.HTTPException(f"more than {_MOST_BYTES} bytes of an answer")
            if self._clock() > deadline:
                raise TimeoutError(f"no whole answer within {self._timeout:g} seconds")
        if response.length:
            raise http.client.IncompleteRead(bytes(found), response.length)
        return response.status, response.headers, bytes(found)


def _message(answer: bytes) -> str:
    """What a server says in an error: OpenAI's {"error": {"message": ...}}, vLLM's and SGLang's kin, or its text."""
    try:
        content = json.loads(answer)
    except ValueError:
        return answer[:300].decode("utf-8", errors="replace")
    for name in ("error", "message", "detail"):
        if isinstance(content, dict) and content.get(name):
            content = content[name]
    return str(content)[:300]


def _retry_after(headers: http.client.HTTPMessage) -> float | None:
    """Seconds of Retry-After, as a number or as a date, which is counted from the server's own Date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until, now = (email.utils.parsedate_tz(headers.get(name) or "") for name in ("Retry-After", "Date"))
        if until is None or now is None:
            return None
        seconds = email.utils.mktime_tz(until) - email.utils.mktime_tz(now)
    return min(max(seconds, 0.0), _LONGEST_PAUSE) if seconds == seconds else None
