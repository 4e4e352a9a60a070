"""A conversation that goes on: what was said stays in the cache, answers come as they are made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenflow.language.cache import KeyValueCache
from tokenflow.understanding.answering import Decoding, Draws, choose_token
from tokenflow.understanding.batching import MultimodalBatch, collate
from tokenflow.understanding.preprocess import Picture
from tokenflow.understanding.templates import Conversation

if TYPE_CHECKING:
    from tokenflow.understanding.conversation_tokens import ConversationTokenizer
    from tokenflow.understanding.image_to_text import ImageToText

_BROKEN = "\ufffd"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Chat:
    """One conversation with a model, of `ImageToText.chat`."""

    def __init__(self, model: ImageToText, reader: ConversationTokenizer, *, decoding: Decoding, context: int) -> None:
        """Begin.

        Args:
            model: Who answers.
            reader: How the conversation is written.
            decoding: How tokens are chosen.
            context: Positions that the cache holds: all of the conversation.
        """
        language = model.model.config.language
        self.history: Conversation = ()
        """What was said so far."""
        self._model, self._reader, self._decoding = model, reader, decoding
        self._features: list[Tensor] = []
        self._known: list[tuple[int, int]] = []
        dtype = model.model.head.weight.dtype
        self._cache = KeyValueCache(
            language, batch=1, max_length=min(context, language.max_positions), device=model.device, dtype=dtype
        )

    def say(self, message: str, images: Sequence[Picture] = ()) -> str:
        """The whole answer to a message; `images` belong to it."""
        return "".join(self.ask(message, images)).strip()

    def ask(self, message: str, images: Sequence[Picture] = ()) -> Iterator[str]:
        """The answer to a message, in pieces as they are made. What is left unread is not said.

        Raises:
            ValueError: The conversation is longer than the cache; or a picture that is none.
        """
        with_images = self._model.with_images(message, len(images))
        features = self._model.features(images)
        conversation = (*self.history, ("user", with_images))
        batch = self._batch(conversation, len(self._features) + len(features))
        room = self._cache.max_length - batch.ids.shape[1]
        if room < 1:
            raise ValueError(
                f"the conversation has {batch.ids.shape[1]} positions and the cache {self._cache.max_length}. Begin a "
                "new chat, shorten the question, or give a larger context."
            )
        return self._answer(conversation, batch, [*self._features, *features], room)

    def _answer(
        self, conversation: Conversation, batch: MultimodalBatch, features: list[Tensor], room: int
    ) -> Iterator[str]:
        self._features = features
        tokens: list[int] = []
        said = ""
        draws = Draws(seed=self._decoding.seed, numbers=[len(conversation)])
        try:
            last = self._read(batch)
            for _ in range(min(room, self._decoding.max_new_tokens)):
                token = self._choose(last, draws)
                if self._reader.ends(token):
                    break
                tokens.append(token)
                text = self._model.text_tokenizer.decode(tokens)
                # what single bytes mean is open until their run ends: one bad byte makes all of them unreadable
                name = self._model.text_tokenizer.convert_ids_to_tokens(token)
                is_open = text.endswith(_BROKEN) or _BYTE.fullmatch(name or "")
                if not is_open and len(text) > len(said):
                    piece, said = text[len(said) :], text
                    yield piece
                last = self._append(token)
            if rest := self._model.text_tokenizer.decode(tokens)[len(said) :]:
                yield rest
        finally:
            # Something must stand for an answer without words: the turns go on.
            answer = self._model.text_tokenizer.decode(tokens).strip() or "..."
            self.history = (*conversation, ("assistant", answer))

    def _batch(self, conversation: Conversation, images: int) -> MultimodalBatch:
        tokens = self._reader(conversation)
        assert tokens.num_images == images, "every image has its place"
        config = self._model.model.config
        return collate([tokens], image_tokens=config.image_tokens, max_length=2**62).to(self._model.device)

    @torch.no_grad()
    def _read(self, batch: MultimodalBatch) -> Tensor:
        """Put what is new of a conversation into the cache; the last hidden state."""
        wanted = list(zip(batch.ids[0].tolist(), batch.image_rows[0].tolist(), strict=True))
        same = 0
        for known, new in zip(self._known, wanted[:-1], strict=False):
            if known != new:
                break
            same += 1
        self._cache.rewind(same)
        self._known = self._known[:same]
        model = self._model.model
        features = torch.cat(self._features) if self._features else None
        embeddings = model.embed_batch(batch, features)[:, same:]
        positions = model.rotary_positions(batch)[:, same:]
        hidden = model.language.extend(embeddings, cache=self._cache, positions=positions)
        self._known = wanted
        return hidden[:, -1]

    @torch.no_grad()
    def _append(self, token: int) -> Tensor:
        model = self._model.model
        ids = torch.tensor([[token]], device=self._model.device)
        positions = torch.tensor([[self._cache.length]], device=self._model.device)
        hidden = model.language.step(model.language.embed_tokens(ids), cache=self._cache, positions=positions)
        self._known.append((token, -1))
        return hidden[:, 0]

    @torch.no_grad()
    def _choose(self, last: Tensor, draws: Draws) -> int:
        logits = self._model.model.head(last)[:, : len(self._model.text_tokenizer)]
        return int(choose_token(logits, self._decoding, draws))
