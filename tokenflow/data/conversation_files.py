"""Random access to files of conversations: JSON arrays, JSON lines, and text corpora with a document a line.

No file is held in memory: an index of it lies beside (`x.jsonl.index.npy`, in memory where the folder cannot be
written), made at first use and made again when the file has changed. It also says how long every conversation is, how
many pictures it has, and which ones cannot be used.
"""

import io
import json
import logging
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokenflow.data.conversations import ConversationRecord, conversation_id, parse_conversation, parse_line
from tokenflow.data.files import write_whole
from tokenflow.data.memo import Memo
from tokenflow.data.samples import BadSample

logger = logging.getLogger(__name__)
_VERSION = 1
_LOG_SECONDS = 5.0
_BAD = -1
"""In place of the number of pictures."""
_SPACE = b" \t\r\n"


class ConversationFile:
    """The usable conversations of one file, by number.

    Attributes: `words` and `images`, int64 [size]: length and number of pictures of each.

    Raises ValueError for a file that does not exist, is of no known kind, or is not what its name says.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._parse = parse_line if _kind(self.path) == ".txt" else parse_conversation
        self._file = Memo(1)
        table = _index(self.path)
        usable = table[:, 3] != _BAD
        self._numbers = np.flatnonzero(usable)
        self._bad = np.flatnonzero(~usable)
        self._spans = table[:, :2]
        self.words, self.images = table[usable, 2], table[usable, 3]

    @property
    def size(self) -> int:
        """Conversations that can be used."""
        return len(self._numbers)

    @property
    def unusable(self) -> int:
        """Conversations that cannot."""
        return len(self._bad)

    def read(self, index: int) -> ConversationRecord:
        """Usable conversation `index`."""
        number = int(self._numbers[index])
        return self._parse(self._content(number), number=number)

    def faults(self, *, at_most: int) -> Iterator[tuple[str, str]]:
        """(id, what is wrong) of the first conversations that cannot be used."""
        for number in self._bad[:at_most].tolist():
            content = self._content(number)
            try:
                self._parse(content, number=number)
            except BadSample as error:
                yield _name(content, number), str(error)

    def _content(self, number: int) -> bytes:
        # closed when the cache lets go of it
        stream = self._file.get(0, lambda: open(self.path, "rb", buffering=0))  # noqa: SIM115
        offset, size = self._spans[number].tolist()
        return os.pread(stream.fileno(), size, offset)


def _name(content: bytes, number: int) -> str:
    try:
        return conversation_id(json.loads(content), number=number)
    except ValueError:
        return f"#{number}"


def _kind(path: str) -> str:
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".json", ".jsonl", ".txt"):
        raise ValueError(
            f"{path!r} ends in {kind or 'nothing'!r}; expected a .json or .jsonl in LLaVA's format, or .txt"
        )
    return kind


def _index(path: str) -> np.ndarray:
    """int64 [records, 4]: offset and size in bytes, words, pictures (-1: cannot be used)."""
    if not os.path.isfile(path):
        raise ValueError(f"{path!r} does not exist; expected a file of conversations")
    status = os.stat(path)
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns, 0], dtype=np.int64)
    beside = Path(path + ".index.npy")
    if beside.is_file():
        stored = _load(beside)
        if stored.ndim == 2 and stored.shape[1] == 4 and np.array_equal(stored[0], stamp):
            return stored[1:]
    table = _scan(path)
    stream = io.BytesIO()
    np.save(stream, np.concatenate([stamp[None], table]))
    try:
        write_whole(beside, stream.getvalue())
    except OSError as error:
        logger.info("%s stays in memory: %s", beside, error)
    return table


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        logger.info("%s is not used: %s", path, error)
        return np.empty(0, dtype=np.int64)


def _scan(path: str) -> np.ndarray:
    kind = _kind(path)
    parse = parse_line if kind == ".txt" else parse_conversation
    rows: list[tuple[int, int, int, int]] = []
    said = time.monotonic()
    for offset, content in _elements(path) if kind == ".json" else _lines(path):
        try:
            record = parse(content, number=len(rows))
            rows.append((offset, len(content), record.words, len(record.images)))
        except BadSample:
            rows.append((offset, len(content), 0, _BAD))
        if time.monotonic() - said >= _LOG_SECONDS:
            said = time.monotonic()
            logger.info("indexed %d conversations of %s", len(rows), path)
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """(offset, content) of every line that is not blank."""
    offset = 0
    with open(path, "rb") as stream:
        for line in stream:
            if line.strip(_SPACE):
                yield offset, line.rstrip(b"\r\n")
            offset += len(line)


def _elements(path: str) -> Iterator[tuple[int, bytes]]:
    """(offset, content) of every element of a JSON array."""
    expected = "expected an array of conversations, or one object a line in a file named .jsonl"
    with open(path, "rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise ValueError(f"{path!r} is empty; {expected}")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            # One character a byte: JSON's own characters are ASCII, so elements end where they would in UTF-8.
            text = str(view, "latin-1").removeprefix("\xef\xbb\xbf")
            skipped = len(view) - len(text)
    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        raise ValueError(f"{path!r} begins with {text[place : place + 20]!r}; {expected}")
    decode = json.JSONDecoder().raw_decode
    place = _skip(text, place + 1)
    while text[place : place + 1] != "]":
        try:
            _, end = decode(text, place)
        except ValueError as error:
            raise ValueError(f"{path!r} is damaged: {error}; {expected}") from error
        yield place + skipped, text[place:end].encode("latin-1")
        place = _skip(text, end)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            raise ValueError(
                f"{path!r} is damaged at byte {place + skipped}: no comma between conversations; {expected}"
            )


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place
