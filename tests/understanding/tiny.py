"""A tiny multimodal model and random conversations, for tests."""

import torch

from tokenflow.language.config import LanguageConfig
from tokenflow.understanding.config import UnderstandingConfig
from tokenflow.understanding.conversation_tokens import IGNORE, IMAGE_TOKEN, Tokens
from tokenflow.understanding.model import MultimodalModel

IMAGE_TOKENS, FEATURE_WIDTH, VOCABULARY = 4, 5, 40


def tiny_config(**fields) -> UnderstandingConfig:
    language = LanguageConfig(
        vocabulary_size=VOCABULARY,
        width=32,
        depth=2,
        heads=4,
        kv_heads=2,
        head_width=8,
        mlp_width=48,
        max_positions=64,
        qkv_bias=True,
    )
    options = {"image_size": 32, "image_tokens": IMAGE_TOKENS, "feature_width": FEATURE_WIDTH, "max_length": 64}
    return UnderstandingConfig(language=language, **options | fields)


def build(config: UnderstandingConfig) -> MultimodalModel:
    """With weights of a size at which tokens, images and positions all matter."""
    torch.manual_seed(0)
    model = MultimodalModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                table = name.endswith("embed_tokens.weight") or name == "head.weight"
                parameter.normal_(std=1.0 if table else parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


def conversation(length: int, *, images: int, seed: int) -> Tokens:
    """Random tokens, a few of them learned, with images among those that are not."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
    learned = [number > length // 2 and number % 3 != 0 for number in range(length)]
    for number in range(images):
        ids[1 + 2 * number], learned[1 + 2 * number] = IMAGE_TOKEN, False
    return Tokens(ids, [token if known else IGNORE for token, known in zip(ids, learned, strict=True)])


def features(count: int, *, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, IMAGE_TOKENS, FEATURE_WIDTH, generator=torch.Generator().manual_seed(seed))
