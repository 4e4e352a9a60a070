"""TokenFlow: one image tokenizer for understanding and generation (CVPR 2025), as a training stack."""

import os
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP: threads that spin while they wait make a busy machine twenty times slower; so they sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from tokenflow.generation.text_to_image import TextToImage
    from tokenflow.tokenizer.model import TokenFlowTokenizer
    from tokenflow.understanding.image_to_text import ImageToText

__version__ = "0.1.0"
__all__ = ["ImageToText", "TextToImage", "TokenFlowTokenizer", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public classes when they are first asked for, so that `import tokenflow` needs no torch."""
    if name == "TokenFlowTokenizer":
        from tokenflow.tokenizer.model import TokenFlowTokenizer

        return TokenFlowTokenizer
    if name == "TextToImage":
        from tokenflow.generation.text_to_image import TextToImage

        return TextToImage
    if name == "ImageToText":
        from tokenflow.understanding.image_to_text import ImageToText

        return ImageToText
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
