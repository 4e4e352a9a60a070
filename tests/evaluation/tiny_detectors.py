"""Detectors with random weights of every kind that is supported, as folders: plumbing without training."""

from pathlib import Path

import torch
from transformers import (
    CLIPTokenizerFast,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    ResNetConfig,
    SwinConfig,
)

LABELS = {0: "person", 1: "mouse", 2: "dog"}


def tiny_mask2former(folder: Path) -> Path:
    """The official detector's architecture."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16,
        num_attention_heads=2, num_queries=5, encoder_layers=1, decoder_layers=2, id2label=LABELS,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    return folder


def tiny_detr(folder: Path) -> Path:
    """Boxes without masks."""
    torch.manual_seed(0)
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1],
                                     out_features=["stage4"]),
        num_queries=5, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, id2label=LABELS,
    )  # fmt: skip
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return folder


def tiny_owlv2(folder: Path) -> Path:
    """Detection by text."""
    torch.manual_seed(0)
    words = "".join(sorted(set("a photo of person computer mouse dog")))
    letters = [*words.replace(" ", ""), *(f"{c}</w>" for c in words if c != " ")]
    # The first id means "no query" to the model, and it pools at the highest id.
    tokens = ["!", "<|startoftext|>", *letters, "<|endoftext|>"]
    tokenizer = CLIPTokenizerFast(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=16
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**small, "vocab_size": len(tokens), "max_position_embeddings": 16, "bos_token_id": 1,
                     "eos_token_id": len(tokens) - 1, "pad_token_id": 0},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder
