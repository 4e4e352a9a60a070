"""What a generator is: the transformer, the image tokenizer it paints with, and its sequence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tokenflow.language.config import LanguageConfig
from tokenflow.tokenizer.config import TokenizerConfig
from tokenflow.tokenizer.quantizer import QuantizerConfig

LossOver = Literal["vocabulary", "codes"]
Prompt = Literal["text", "class"]
TextPositions = Literal["field", "row"]


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A causal transformer that predicts the codes of an image scale by scale (paper section 3.3)."""

    language: LanguageConfig
    """The transformer. Its vocabulary (the table of input embeddings) holds at least the ids below
    `image_token_start`; the authors' holds the image tokens too, although they are never looked up."""
    scales: tuple[int, ...]
    """Scales of the image tokenizer; the first is 1."""
    codebook_size: int
    """Codes of the image tokenizer, K."""
    code_width: int
    """Channels of a code, all branches together (40 in the paper)."""
    prompt: Prompt = "text"
    """`text`: a caption; `class`: one token, ids 0 to num_classes - 1 (Fig. 6)."""
    num_classes: int = 0
    """Classes of a class prompt."""
    text_length: int = 128
    """Tokens of the text field, its first token (BOS) included and the boundary tokens excluded."""
    text_positions: TextPositions = "field"
    """`field`: text stands at the right end of a field of `text_length`, and the padding counts as positions (the
    authors' training); `row`: the first text token has position 0."""
    pad_token: int
    """Fills the text field; in a class prompt, the token for no class."""
    image_token_start: int
    """Vocabulary id of code 0."""
    image_open: tuple[int, ...] = ()
    """Text ids before the image; the last one predicts the first code."""
    image_close: tuple[int, ...] = ()
    """Text ids after the image, learned with it (the authors: closing tag and EOS); empty leaves them out."""
    head_rows: LossOver = "vocabulary"
    """Rows of the output head: one for each vocabulary id, or for the image codes alone."""
    loss_over: LossOver = "vocabulary"
    """Softmax of the loss over the full vocabulary (the authors') or over the image codes alone."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.scales[:1] != (1,) or any(b <= a for a, b in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales is {self.scales}; expected 1 first and strictly increasing.")
        if self.codebook_size < 1 or self.code_width < 1 or self.text_length < 1:
            raise ValueError(
                f"codebook_size is {self.codebook_size}, code_width {self.code_width} and text_length "
                f"{self.text_length}; expected at least 1 each."
            )
        if (self.prompt == "class") != (self.num_classes > 0):
            raise ValueError(f"prompt is {self.prompt!r} and num_classes {self.num_classes}; set both for classes.")
        if self.prompt == "class" and (self.text_length, self.image_open) != (1, ()):
            raise ValueError("a class prompt is one token; set text_length to 1 and leave image_open empty.")
        if self.loss_over == "vocabulary" and self.head_rows == "codes":
            raise ValueError("loss_over='vocabulary' needs head_rows='vocabulary'. Use loss_over='codes'.")
        if self.image_close and self.loss_over == "codes":
            raise ValueError("image_close is text and loss_over is 'codes'. Leave image_close empty.")
        if self.language.tie_embeddings:
            raise ValueError("language.tie_embeddings is true; the head of a generator has weights of its own.")
        self._check_ids()

    def _check_ids(self) -> None:
        text_ids = (self.pad_token, *self.image_open, *self.image_close)
        if not all(0 <= token < self.image_token_start for token in text_ids) or self.num_classes > self.pad_token:
            raise ValueError(
                f"pad_token, image_open and image_close are {text_ids}; expected ids below image_token_start "
                f"({self.image_token_start}), pad_token not below num_classes ({self.num_classes})."
            )
        if self.language.vocabulary_size < self.image_token_start:
            raise ValueError(
                f"language.vocabulary_size is {self.language.vocabulary_size}; expected at least image_token_start, "
                f"{self.image_token_start}. Extend the vocabulary."
            )
        if self.language.max_positions < self.num_positions:
            raise ValueError(
                f"language.max_positions is {self.language.max_positions}; text and image need {self.num_positions}. "
                "Raise it, or shorten text_length or scales."
            )

    @property
    def num_codes(self) -> int:
        """Codes of one image, L."""
        return sum(scale**2 for scale in self.scales)

    @property
    def field_length(self) -> int:
        """Positions before the image: the text field and the opening tokens."""
        return self.text_length + len(self.image_open)

    @property
    def num_positions(self) -> int:
        """Positions of the longest sequence; the first code is predicted at the last text position."""
        return self.field_length + self.num_codes - 1 + len(self.image_close)

    @property
    def vocabulary_size(self) -> int:
        """Text ids and image ids together."""
        return self.image_token_start + self.codebook_size

    @property
    def scale_starts(self) -> tuple[int, ...]:
        """First code of each scale, and L at the end."""
        starts = [0]
        for scale in self.scales:
            starts.append(starts[-1] + scale**2)
        return tuple(starts)

    def with_text_vocabulary(
        self, text_vocabulary: int, *, image_open: tuple[int, ...] = (), image_close: tuple[int, ...] = ()
    ) -> GeneratorConfig:
        """The same generator for another text tokenizer: `[PAD]` is id `text_vocabulary`, image tokens follow it."""
        extended = self.language.vocabulary_size > self.image_token_start
        start = text_vocabulary + 1
        vocabulary_size = start + self.codebook_size if extended else start
        return dataclasses.replace(
            self,
            language=dataclasses.replace(self.language, vocabulary_size=vocabulary_size),
            pad_token=text_vocabulary,
            image_token_start=start,
            image_open=image_open,
            image_close=image_close,
        )


def check_tokenizer(
    config: GeneratorConfig, tokenizer: TokenizerConfig | QuantizerConfig, *, generator: str, name: str
) -> None:
    """ValueError where an image tokenizer is not one that a generator can paint with; it names both and both values.

    Args:
        config: The generator's.
        tokenizer: The image tokenizer's, or its quantiser's.
        generator: What the generator is called.
        name: What the image tokenizer is called, such as its folder.
    """
    found = {
        "scales": tuple(tokenizer.scales),
        "codebook_size": tokenizer.codebook_size,
        "code_width": sum(tokenizer.code_widths),
    }
    for field, value in found.items():
        wanted = getattr(config, field)
        if wanted != value:
            raise ValueError(
                f"the generator {generator} expects {field} {wanted} and the image tokenizer {name} has {value}. Use "
                f"the tokenizer of this generator; for a new one, set model.overrides.{field}."
            )
