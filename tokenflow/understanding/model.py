"""Text and images to text (paper, section 3.4): a causal language model in which features stand for images.

Sequence of one conversation: tokens, and wherever an image goes its features, projected, as so many positions::

    input       <s> USER :   image features ...   \\n what ... ASSISTANT :   red    </s>
    predicts    -   -    -   -                    -  -        -         red  </s>   -
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenflow.language.head import LanguageHead
from tokenflow.language.transformer import CausalTransformer, Projection
from tokenflow.understanding.batching import MultimodalBatch
from tokenflow.understanding.config import UnderstandingConfig
from tokenflow.understanding.projector import build_projector, grid_coordinates, merged, surrounded


class MultimodalOutput(NamedTuple):
    """One training forward; a tuple, because ZeRO-3's hooks find tensors in tuples."""

    loss: Float[Tensor, ""]
    """Mean cross-entropy over the learned tokens of the batch, fp32; 0 where there are none."""
    accuracy: Float[Tensor, ""]
    """Share of learned tokens whose logit is the highest; no gradient."""
    tokens: Int[Tensor, ""]
    """Learned tokens of the batch."""


def learned_loss(head: LanguageHead, hidden: Float[Tensor, "tokens W"], batch: MultimodalBatch) -> MultimodalOutput:
    """Mean cross-entropy of a batch's learned tokens, `hidden` at `predict_at`; logits are made a chunk at a time."""
    found = head(hidden, batch.targets)
    count = len(batch.targets)
    scale = 1 / max(1, count)
    return MultimodalOutput(
        found.losses.sum() * scale,
        found.correct.float().sum() * scale,
        torch.tensor(count, device=hidden.device),
    )


class MultimodalModel(nn.Module):
    """A causal transformer, its head, and the projector of image features. The image tokenizer lies outside.

    Built with random weights; `language_weights` brings a language model's. Every module runs once a forward, whatever
    the batch holds, and reads its own parameters only: ZeRO-3 needs both.
    """

    def __init__(self, config: UnderstandingConfig) -> None:
        super().__init__()
        self.config = config
        language = config.language
        self.language = CausalTransformer(language)
        self.whitening = None
        if config.whiten:
            # computed from pictures before training (`projector.whitening`), never learned
            self.whitening = Projection(config.feature_width, config.feature_width, bias=True).requires_grad_(False)
        self.projector = build_projector(
            config.projector,
            feature_width=config.projector_width,
            width=language.width,
            deviation=language.embedding_deviation,
        )
        self.head = LanguageHead(vocabulary_size=language.vocabulary_size, width=language.width)

    def forward(self, batch: MultimodalBatch, features: Float[Tensor, "I N C"] | None = None) -> MultimodalOutput:
        """The training loss of a batch.

        Args:
            batch: Of `collate`.
            features: Of its images, in order; None or no rows where it has none: the projector then runs on zeros
                that reach nothing, so that all ranks of a sharded model do the same.

        Raises:
            ValueError: Features of another number of images, or of another shape.
        """
        embedded = self.embed_batch(batch, features)
        # the last layer works for the learned tokens alone: most positions are the image's or the question's
        positions = self.rotary_positions(batch)
        hidden = self.language(embedded, layout=batch.layout, positions=positions, wanted=batch.predict_at)
        return learned_loss(self.head, hidden, batch)

    def hidden(self, batch: MultimodalBatch, features: Float[Tensor, "I N C"] | None = None) -> Float[Tensor, "B L W"]:
        """Hidden states of every position; `head` makes logits of them."""
        embedded = self.embed_batch(batch, features)
        return self.language(embedded, layout=batch.layout, positions=self.rotary_positions(batch))

    def rotary_positions(self, batch: MultimodalBatch) -> Int[Tensor, "B L *axes"]:
        """For the rotation: each position's place in its conversation, or on a grid (row, column) within images.

        An image that begins at t has (t, t) in its top left corner; text has its place on both axes.
        """
        if self.config.rotary == "sequence":
            return batch.positions
        side = math.isqrt(self.config.image_tokens)
        order = batch.image_rows.remainder(self.config.image_tokens)
        first = batch.positions - order
        grid = torch.stack([first + order // side, first + order % side], dim=-1)
        return torch.where((batch.image_rows >= 0)[..., None], grid, batch.positions[..., None])

    def embed_batch(
        self, batch: MultimodalBatch, features: Float[Tensor, "I N C"] | None = None
    ) -> Float[Tensor, "B L W"]:
        """Embeddings of a batch, images in their places; ValueError for features that are not the batch's."""
        return self.embed(batch.ids, batch.image_rows, self._features(features, batch.num_images))

    def embed(
        self, ids: Int[Tensor, "B L"], image_rows: Int[Tensor, "B L"], features: Float[Tensor, "I N C"]
    ) -> Float[Tensor, "B L W"]:
        """Embeddings of tokens, and projected features where `image_rows` is not negative."""
        tokens = self.language.embed_tokens(ids)
        images = self.projector(self._what_is_read(features).to(tokens.dtype)).flatten(0, 1)
        placed = images[image_rows.clamp(min=0)].to(tokens.dtype)
        return torch.where((image_rows >= 0)[..., None], placed, tokens)

    def _what_is_read(self, features: Tensor) -> Tensor:
        """The projector's inputs at every position, [I, N, projector_width]."""
        if self.whitening is not None:
            # never under autocast: it subtracts means that are larger than what is left
            with torch.autocast(features.device.type, enabled=False):
                features = self.whitening(features.to(self.whitening.weight.dtype))
        return self._with_coordinates(surrounded(merged(features, self.config.merge), self.config.neighbourhood))

    def _with_coordinates(self, features: Tensor) -> Tensor:
        count = self.config.coordinates
        if not count:
            return features
        places = grid_coordinates(features.shape[1], count, device=features.device).to(features.dtype)
        return torch.cat([features, places.expand(len(features), -1, -1)], dim=-1)

    def _features(self, features: Tensor | None, num_images: int) -> Tensor:
        config = self.config
        shape = (num_images, config.features_per_image, config.feature_width)
        if features is None or not len(features):
            if num_images:
                raise ValueError(f"the batch has {num_images} images and there are no features. Pass {shape}.")
            device = self.head.weight.device
            return torch.zeros(1, config.features_per_image, config.feature_width, device=device)
        if tuple(features.shape) != shape:
            raise ValueError(
                f"features are {tuple(features.shape)}; expected {shape} for the batch's {num_images} images. Give the "
                "features of all of them, in the order of the conversations."
            )
        return features
