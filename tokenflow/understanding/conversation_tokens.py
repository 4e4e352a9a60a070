"""Conversations as token ids and labels, and the proof that a template teaches what it should.

Ids are those of the whole text as LLaVA reads it: cut at images, each piece after an image read from its start. What is
learned is cut out by whole tokens, so that a prompt's tokens are always the first tokens of the answered conversation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tokenflow.understanding.config import TemplateName
from tokenflow.understanding.templates import IMAGE, TEMPLATES, Conversation, segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_TOKEN = -200
"""Stands for an image among ids."""
IGNORE = -100
"""Label of what is not learned."""
_PROBE: Conversation = (
    ("user", f"{IMAGE}\nWhat is in the picture?"),
    ("assistant", "A red circle."),
    ("user", "And what else?"),
    ("assistant", "Two blue squares."),
)
_GREEN, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"


class Tokens(NamedTuple):
    """A conversation for the model."""

    ids: list[int]
    """Token ids, `IMAGE_TOKEN` where an image goes."""
    labels: list[int]
    """The id itself where it is learned, else `IGNORE`; not shifted."""

    @property
    def num_images(self) -> int:
        """Images among the ids."""
        return self.ids.count(IMAGE_TOKEN)


class ConversationTokenizer:
    """Writes conversations by one template and reads them by one text tokenizer, in training and in chat alike."""

    def __init__(
        self, text_tokenizer: PreTrainedTokenizerBase, template: TemplateName, *, system: str | None = None
    ) -> None:
        """Prepare.

        Args:
            text_tokenizer: Of the language model.
            template: Name.
            system: The system message; None: the template's own; empty: none.

        Raises:
            ValueError: The template's end is not one token of this tokenizer: the model could not learn to stop.
        """
        self.text_tokenizer = text_tokenizer
        self.template: TemplateName = template
        self.system = system
        self._start = self._first_tokens()
        self.end = TEMPLATES[template].end
        self.end_tokens = self._end_tokens()
        """Ids that end an answer."""

    def __call__(self, conversation: Conversation) -> Tokens:
        """Ids and labels; ValueError for turns that do not alternate."""
        pieces = list(self._pieces(conversation))
        known = self._encode_all([text for before, piece, _ in pieces if piece for text in (before, before + piece)])
        ids, labels = list(self._start), [IGNORE] * len(self._start)
        for before, piece, supervised in pieces:
            found = [IMAGE_TOKEN] if piece is None else self._continue(before, piece, known=known)
            ids += found
            labels += found if supervised else [IGNORE] * len(found)
        return Tokens(ids, labels)

    def ends(self, token: int) -> bool:
        """Whether an answer ends with this token; where a line ends it, with any token that holds the line's end."""
        return token in self.end_tokens or (self.end == "\n" and "\n" in self.text_tokenizer.decode([token]))

    def _pieces(self, conversation: Conversation) -> Iterator[tuple[str, str | None, bool]]:
        """(text before it since the last image, text or None for an image, whether it is learned) of every piece."""
        before = ""
        for segment in segments(self.template, conversation, system=self.system):
            for number, piece in enumerate([segment.text] if segment.supervised else segment.text.split(IMAGE)):
                if number:
                    yield "", None, False
                    before = ""
                yield before, piece, segment.supervised
                before = piece or before

    def _continue(self, before: str, text: str, *, known: Mapping[str, list[int]]) -> list[int]:
        """Tokens of `text` where it follows `before`; `known` holds those of `before` and of both together."""
        if not text:
            return []
        first, whole = known[before], known[before + text]
        if whole[: len(first)] != first:
            raise ValueError(
                f"the text tokenizer joins the end of {before[-20:]!r} and the start of {text[:20]!r} to one token; "
                f"template {self.template!r} does not suit it. Choose another template."
            )
        return whole[len(first) :]

    def _encode_all(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Tokens of every text; one call, since a call costs more than the few words it reads."""
        distinct = list(dict.fromkeys(text for text in texts if text))
        if not distinct:
            return {"": []}
        found = self.text_tokenizer(distinct, add_special_tokens=False)["input_ids"]
        return {"": [], **dict(zip(distinct, map(list, found), strict=True))}

    def _first_tokens(self) -> list[int]:
        first = self.text_tokenizer.bos_token_id
        return [first] if first is not None and self.text_tokenizer("")["input_ids"][:1] == [first] else []

    def _end_tokens(self) -> frozenset[int]:
        found = self._continue("a", self.end, known=self._encode_all(["a", "a" + self.end]))
        if len(found) != 1:
            raise ValueError(
                f"template {self.template!r} ends answers with {self.end!r}, which this text tokenizer reads as "
                f"{len(found)} tokens; expected one. Choose the template that the language model was tuned with."
            )
        eos = self.text_tokenizer.eos_token_id
        return frozenset(found if eos is None else [*found, eos])


class SupervisionReport(NamedTuple):
    """What a template teaches."""

    text: str
    """A conversation, what is learned in green, the rest dim."""
    tokens: int
    """Positions, an image counting as one."""
    supervised: int
    """Of them, what is learned."""


def check_supervision(reader: ConversationTokenizer) -> SupervisionReport:
    """That exactly the answers and their ends are learned, shown on a conversation of two turns; run it at start.

    Raises:
        ValueError: Anything else is learned, or less; it shows the tokens.
    """
    # A plain template knows one answer a picture.
    probe = _PROBE if TEMPLATES[reader.template].keeps_questions else _PROBE[:2]
    tokens = reader(probe)
    answers = [text for role, text in probe if role == "assistant"]
    learned = [ids for supervised, ids in _runs(tokens) if supervised]
    said = [_text(reader, ids) for ids in learned]
    wanted = [(answer + reader.end) for answer in answers]
    same = ["".join(text.split()) for text in said] == ["".join(text.split()) for text in wanted]
    hidden = [_text(reader, ids) for supervised, ids in _runs(tokens) if not supervised]
    if not same or any(answer in text for answer in answers for text in hidden):
        raise ValueError(
            f"template {reader.template!r} teaches {said}; expected {wanted}. The text tokenizer does not suit it: "
            f"choose another template.\n{show(reader, tokens)}"
        )
    return report(reader, [tokens])


def report(reader: ConversationTokenizer, samples: Sequence[Tokens]) -> SupervisionReport:
    """Counts over samples, and the first one coloured.

    Raises:
        ValueError: A sample teaches nothing; it shows it.
    """
    for sample in samples:
        if all(label == IGNORE for label in sample.labels):
            raise ValueError(f"a conversation teaches nothing; expected an answer.\n{show(reader, sample)}")
    return SupervisionReport(
        show(reader, samples[0]),
        sum(len(sample.ids) for sample in samples),
        sum(label != IGNORE for sample in samples for label in sample.labels),
    )


def show(reader: ConversationTokenizer, tokens: Tokens) -> str:
    """A conversation for a terminal: what is learned in green, the rest dim."""
    return "".join((_GREEN if supervised else _DIM) + _text(reader, ids) + _PLAIN for supervised, ids in _runs(tokens))


def _runs(tokens: Tokens) -> list[tuple[bool, list[int]]]:
    pairs = zip(tokens.ids, tokens.labels, strict=True)
    groups = itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORE)
    return [(supervised, [token for token, _ in group]) for supervised, group in groups]


def _text(reader: ConversationTokenizer, ids: list[int]) -> str:
    parts = []
    for is_image, group in itertools.groupby(ids, key=lambda token: token == IMAGE_TOKEN):
        run = list(group)
        parts.append(IMAGE * len(run) if is_image else reader.text_tokenizer.decode(run))
    return "".join(parts)
