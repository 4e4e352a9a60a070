"""Conversations in LLaVA's format: what a record must look like, and what is wrong with one that does not.

A record is `{"id": ..., "image": "a.jpg" or ["a.jpg", ...], "conversations": [turn, turn, ...]}`, and a turn `{"from":
"human" or "gpt", "value": ...}`; a text-only record has no "image". Every `<image>` in the questions stands for one
picture, in order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenflow.data.samples import BadSample

IMAGE_MARK = "<image>"
"""Stands for a picture in a question."""
Role = Literal["user", "assistant"]
Turn = tuple[Role, str]
"""Who speaks, and the text."""
_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, kw_only=True)
class ConversationRecord:
    """One conversation about some pictures, or about none."""

    id: str
    images: tuple[str, ...]
    """Names of its pictures, in the order of the marks in its questions."""
    turns: tuple[Turn, ...]
    """Questions and answers in turn."""

    @property
    def words(self) -> int:
        """Length in words, as LLaVA counts it to group conversations."""
        return sum(len(text.split()) for _, text in self.turns)


def parse_conversation(content: bytes, *, number: int) -> ConversationRecord:
    """The conversation of one JSON object.

    Answers before the first question are left out, as LLaVA does: shared chats that were cut begin with them.

    Args:
        content: UTF-8.
        number: Its place in the file, its name where it has no id.

    Raises:
        BadSample: The conversation cannot be used; the message says why.
    """
    try:
        record = json.loads(content)
    except ValueError as error:
        raise BadSample(f"it is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadSample(f"it is a {type(record).__name__}; expected an object with id, image and conversations")
    images = _images(record.get("image"))
    turns = _turns(record.get("conversations"))
    marks = sum(text.count(IMAGE_MARK) for role, text in turns if role == "user")
    if marks != len(images):
        raise BadSample(f"its questions have {marks} {IMAGE_MARK} for {len(images)} pictures; expected one each")
    return ConversationRecord(id=conversation_id(record, number=number), images=images, turns=turns)


def parse_line(content: bytes, *, number: int) -> ConversationRecord:
    """A line of a text corpus as a conversation: the answer to an empty question, as an alignment template wants it.

    Raises:
        BadSample: The line is empty.
    """
    # a stray byte is no reason to lose the line
    text = content.decode("utf-8", errors="replace").strip()
    if not text:
        raise BadSample("the line is empty")
    return ConversationRecord(id=f"#{number}", images=(), turns=(("user", ""), ("assistant", text)))


def conversation_id(record: Any, *, number: int) -> str:
    """A record's id; its place in the file where it has none, or is no record."""
    found = record.get("id") if isinstance(record, Mapping) else None
    return f"#{number}" if found is None or found == "" else str(found)


def _images(value: Any) -> tuple[str, ...]:
    names = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadSample(f"its image is {value!r}; expected a file name or a list of them")
    return tuple(names)


def _turns(value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise BadSample("it has no conversations; expected a list of turns, each with from and value")
    turns = [_turn(item, number) for number, item in enumerate(value)]
    first = next((place for place, (role, _) in enumerate(turns) if role == "user"), len(turns))
    turns = turns[first:]
    if not turns:
        raise BadSample("nobody asks anything; expected a turn of human before the first of gpt")
    for place, (role, text) in enumerate(turns):
        if role != ("user", "assistant")[place % 2]:
            raise BadSample(f"turns {place + first} and {place + first + 1} are both of {role}; expected human and gpt")
        if not text.strip():
            raise BadSample(f"turn {place + first + 1} ({role}) is empty")
        if role == "assistant" and IMAGE_MARK in text:
            raise BadSample(f"turn {place + first + 1} is an answer with {IMAGE_MARK}; pictures belong to questions")
    if turns[-1][0] == "user":
        raise BadSample("it ends with a question; expected an answer")
    return tuple(turns)


def _turn(item: Any, number: int) -> Turn:
    if not isinstance(item, dict) or not isinstance(item.get("value"), str):
        raise BadSample(f"turn {number + 1} has no text; expected an object with from and value")
    role = _ROLES.get(str(item.get("from")))
    if role is None:
        raise BadSample(f"turn {number + 1} is from {item.get('from')!r}; expected one of {', '.join(_ROLES)}")
    return role, item["value"]
