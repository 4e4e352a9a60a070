"""TokenFlow: one image tokenizer for understanding and generation (CVPR 2025), as a training stack."""

__version__ = "0.1.0"
