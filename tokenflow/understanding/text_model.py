"""Text to text: the language model alone, before it sees; for a world without a pretrained one."""

from __future__ import annotations

from torch import nn

from tokenflow.language.config import LanguageConfig
from tokenflow.language.head import LanguageHead
from tokenflow.language.transformer import CausalTransformer
from tokenflow.understanding.batching import MultimodalBatch
from tokenflow.understanding.model import MultimodalOutput, learned_loss


class TextModel(nn.Module):
    """A causal transformer and its head, under the names that `MultimodalModel` gives them."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.language = CausalTransformer(config)
        self.head = LanguageHead(vocabulary_size=config.vocabulary_size, width=config.width)

    def forward(self, batch: MultimodalBatch) -> MultimodalOutput:
        """The training loss of a batch of `collate` without images."""
        tokens = self.language.embed_tokens(batch.ids)
        hidden = self.language(tokens, layout=batch.layout, positions=batch.positions, wanted=batch.predict_at)
        return learned_loss(self.head, hidden, batch)
