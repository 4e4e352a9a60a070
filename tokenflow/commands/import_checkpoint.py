"""`tokenflow import-checkpoint`: the authors' tokenizer files as folders of ours."""

import argparse
import dataclasses
from pathlib import Path

from tokenflow.tokenizer.authors import AUTHORS_PRESETS, dropped_keys, import_tokenizer, read_authors_file
from tokenflow.tokenizer.presets import preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a .pt file of the authors' code")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--preset", choices=AUTHORS_PRESETS, help="default: recognised by its shapes; 224 and 256 pixels look the same"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read, check every key and shape, write the folder."""
    state = read_authors_file(arguments.file)
    config = None
    if arguments.preset is not None:
        codebook_size = state["quantize.embedding_vqkd.weight"].shape[0]
        config = dataclasses.replace(preset(arguments.preset), codebook_size=codebook_size)
    tokenizer = import_tokenizer(state, config=config)
    tokenizer.save_pretrained(arguments.out)
    dropped = dropped_keys(state, tokenizer.config)
    print(f"{len(state) - len(dropped)} tensors taken over; dropped on purpose: {', '.join(dropped) or 'none'}")
    print(
        f"{tokenizer.config.image_size} pixels, {tokenizer.config.num_tokens} codes an image -> {arguments.out}; "
        "TokenFlowTokenizer.from_pretrained reads it"
    )
    return 0
