"""Pictures and questions to answers: the public face of the multimodal model (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflow.nn.composed_folder import OnTheHub
from tokenflow.understanding.answering import Decoding, next_tokens, score_answers
from tokenflow.understanding.batching import MultimodalBatch, collate, spliced_length
from tokenflow.understanding.chat import Chat
from tokenflow.understanding.config import check_tower
from tokenflow.understanding.conversation_tokens import ConversationTokenizer, Tokens
from tokenflow.understanding.features import Tower, image_features
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.preprocess import Picture, read_pictures
from tokenflow.understanding.templates import IMAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenflow.nn.composed_folder import ImageTokenizer

Pictures = Picture | Sequence[Picture] | None
"""Of one question: one, several, or none."""


class ImageToText(OnTheHub):
    """A multimodal model with its text tokenizer and its image tokenizer (or teacher)."""

    def __init__(
        self,
        model: MultimodalModel,
        *,
        tokenizer: Tower | str | Path,
        text_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Put the parts together.

        Args:
            model: The language model with its projector.
            tokenizer: The image tokenizer, or the teacher where features are its; or the folder or hub repository
                that it is loaded from.
            text_tokenizer: The one of the language model.

        Raises:
            ValueError: The image tokenizer is not the one that the model sees with; it names both values. Or the text
                tokenizer does not suit the template.
        """
        from tokenflow.understanding.pretrained import load_tower

        self.tokenizer_source = tokenizer if isinstance(tokenizer, str | Path) else None
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tower(tokenizer, features=model.config.features)
        check_tower(model.config, tokenizer.config, model="given", name=str(self.tokenizer_source or "as given"))
        if len(text_tokenizer) > model.config.language.vocabulary_size:
            raise ValueError(
                f"the text tokenizer has {len(text_tokenizer)} tokens and the language model "
                f"{model.config.language.vocabulary_size}. Use the tokenizer it was trained with."
            )
        self.model = model.eval()
        self.tokenizer: Tower = tokenizer.eval()
        self.text_tokenizer = text_tokenizer
        self.reader = ConversationTokenizer(text_tokenizer, model.config.template, system=model.config.system)
        """Writes conversations as the model was taught them."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: Tower | str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> ImageToText:
        """From a folder written by `save_pretrained`, or a hub repository of that layout.

        `tokenizer` stands in for the image tokenizer that the folder holds or names; `revision` is a branch, tag or
        commit of the repository.

        Raises:
            OSError: Neither a folder nor a hub repository that can be reached, or files are missing.
            ValueError: The files hold something else, or the tokenizer is another.
        """
        from tokenflow.understanding.pretrained import load_image_to_text

        return load_image_to_text(cls, source, tokenizer=tokenizer, revision=revision, token=token)

    @classmethod
    def from_authors(
        cls, folder: str | Path, *, tokenizer: Tower | str | Path | None = None, **overrides: Any
    ) -> ImageToText:
        """From the authors' `Tokenflow-llava-qwen2.5-14B-finetuning` folder.

        Args:
            folder: config.json, weights and the text tokenizer.
            tokenizer: Stands in for the image tokenizer among the weights.
            **overrides: As of `read_authors_folder`.

        Raises:
            FileNotFoundError: Files are missing.
            ValueError: The weights do not fit; or they hold no image tokenizer and none is given.
        """
        from tokenflow.language.text_tokenizer import load_text_tokenizer
        from tokenflow.understanding.authors import read_authors_folder

        found = read_authors_folder(folder, **overrides)
        tower = found.tokenizer if tokenizer is None else tokenizer
        if tower is None:
            raise ValueError(f"{folder} holds no image tokenizer. Pass tokenizer= (a folder, or a TokenFlowTokenizer).")
        return cls(found.model, tokenizer=tower, text_tokenizer=load_text_tokenizer(folder))

    def save_pretrained(
        self, directory: str | Path, *, image_tokenizer: ImageTokenizer = "copy", max_shard_size: int | str = "5GB"
    ) -> Path:
        """Write weights (safetensors, sharded above `max_shard_size`), config.json, a model card, the text tokenizer.

        The image tokenizer goes with it as a `copy`, or as a `reference` to where it was loaded from.
        """
        from tokenflow.understanding.pretrained import save_image_to_text

        return save_image_to_text(self, directory, image_tokenizer=image_tokenizer, max_shard_size=max_shard_size)

    def to(self, *arguments: Any, **keywords: Any) -> ImageToText:
        """Move the model and the image tokenizer to a device; a dtype is taken by the model alone."""
        self.model.to(*arguments, **keywords)
        self.tokenizer.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device

    def answer(
        self,
        images: Sequence[Pictures],
        questions: Sequence[str],
        *,
        batch_size: int = 16,
        first_question: int = 0,
        **decoding: Any,
    ) -> list[str]:
        """Answers to questions, each about its own images.

        Args:
            images: For each question a picture (PIL, path, or tensor [3, S, S] in [-1, 1]), several, or None.
            questions: Texts; images come first unless the text holds `<image>` for each of them.
            batch_size: Questions at a time.
            first_question: Number of the first question, for draws that do not depend on how questions are dealt out.
            **decoding: Fields of `Decoding`: max_new_tokens (by default half of the model's positions at most),
                temperature, top_p, seed.

        Raises:
            ValueError: Lists of different length, an empty question, a picture that is none, a prompt that is too long.
        """
        half = self.model.config.language.max_positions // 2
        options = Decoding(**{"max_new_tokens": min(Decoding().max_new_tokens, half)} | decoding)
        asked = self._asked(images, questions)
        answers = [""] * len(asked)
        limit = self.model.config.language.max_positions - options.max_new_tokens
        for numbers, batch, features in self._batches(asked, batch_size=batch_size, limit=limit):
            found = self._decode(batch, features, options, [first_question + number for number in numbers])
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
        return answers

    def score(
        self, images: Sequence[Pictures], questions: Sequence[str], answers: Sequence[str], *, batch_size: int = 16
    ) -> list[tuple[float, bool]]:
        """For each answer its log-probability, end included, and whether greedy decoding gives it."""
        asked = self._asked(images, questions, answers)
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        limit = self.model.config.language.max_positions
        for numbers, batch, features in self._batches(asked, batch_size=batch_size, limit=limit):
            for number, score in zip(numbers, score_answers(self.model, batch, features), strict=True):
                scores[number] = score
        return scores

    def chat(self, *, system: str | None = None, context: int = 4096, **decoding: Any) -> Chat:
        """A conversation of several turns, answered in pieces as they are made.

        Args:
            system: The system message in place of the configuration's.
            context: Positions of the cache; with the conversation longer, it is full.
            **decoding: Fields of `Decoding`.
        """
        reader = self.reader
        if system is not None:
            reader = ConversationTokenizer(self.text_tokenizer, self.model.config.template, system=system)
        return Chat(self, reader, decoding=Decoding(**decoding), context=context)

    def features(self, images: Sequence[Picture], *, batch_size: int = 16) -> list[Float[Tensor, "1 N C"]]:
        """What the model sees of each picture, before the projector."""
        config, found = self.model.config, []
        for first in range(0, len(images), batch_size):
            pixels = read_pictures(images[first : first + batch_size], size=config.image_size, aspect=config.aspect)
            found += image_features(self.tokenizer, pixels.to(self.device), config.features).split(1)
        return found

    def with_images(self, message: str, count: int) -> str:
        """A message with a place for each of its images; ValueError for an empty one, or another number of places."""
        if not message.strip():
            raise ValueError(f"a message is {message!r}; expected a text.")
        places = message.count(IMAGE)
        if places not in (0, count):
            raise ValueError(
                f"the message {message!r} has {places} {IMAGE} and {count} images. Give as many, or leave them out."
            )
        return message if places else IMAGE * count + message

    def _asked(
        self, images: Sequence[Pictures], questions: Sequence[str], answers: Sequence[str] | None = None
    ) -> list[tuple[list[Picture], Tokens]]:
        """Pictures and tokens of every question."""
        if isinstance(questions, str) or len(images) != len(questions) or len(answers or questions) != len(questions):
            raise ValueError(
                f"there are {len(images)} images for {len(questions)} questions and {len(answers or questions)} "
                "answers; expected lists of one length, with None for a question without a picture."
            )
        asked = []
        for number, (pictures, question) in enumerate(zip(images, questions, strict=True)):
            listed = _as_list(pictures)
            turns = (("user", self.with_images(question, len(listed))),)
            if answers is not None:
                turns += (("assistant", answers[number]),)
            asked.append((listed, self.reader(turns)))
        return asked

    def _batches(self, asked: list[tuple[list[Picture], Tokens]], *, batch_size: int, limit: int):
        """(numbers of questions, their batch, features); questions of like length together."""
        image_tokens = self.model.config.image_tokens
        lengths = [spliced_length(tokens, image_tokens=image_tokens) for _, tokens in asked]
        for number, length in enumerate(lengths):
            if length > limit:
                raise ValueError(
                    f"prompt {number} has {length} positions; the language model has room for {limit}. Shorten the "
                    "question, or lower max_new_tokens."
                )
        order = sorted(range(len(asked)), key=lambda number: lengths[number])
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            pictures = [picture for number in numbers for picture in asked[number][0]]
            found = self.features(pictures, batch_size=batch_size)
            batch = collate([asked[number][1] for number in numbers], image_tokens=image_tokens, max_length=limit)
            yield numbers, batch.to(self.device), torch.cat(found) if found else None

    def _decode(
        self, batch: MultimodalBatch, features: Tensor | None, decoding: Decoding, numbers: list[int]
    ) -> list[str]:
        steps = next_tokens(
            self.model,
            batch,
            features,
            vocabulary=len(self.text_tokenizer),
            decoding=decoding,
            numbers=numbers,
        )
        answers: list[list[int]] = [[] for _ in numbers]
        speaking = set(range(len(numbers)))
        for _, tokens in zip(range(decoding.max_new_tokens), steps, strict=False):
            for row, token in enumerate(tokens.tolist()):
                if row in speaking and self.reader.ends(token):
                    speaking.remove(row)
                elif row in speaking:
                    answers[row].append(token)
            if not speaking:
                break
        return [self.text_tokenizer.decode(tokens).strip() for tokens in answers]


def _as_list(pictures: Pictures) -> list[Picture]:
    if pictures is None:
        return []
    return list(pictures) if isinstance(pictures, list | tuple) else [pictures]
