"""`tokenflow import-checkpoint`: the authors' tokenizer files as folders of ours."""

import argparse
from pathlib import Path

from tokenflow.commands.targets import check_folder
from tokenflow.tokenizer.authors import (
    AUTHORS_PRESETS,
    authors_config,
    dropped_keys,
    import_tokenizer,
    likely_preset,
    read_authors_file,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a .pt file of the authors' code")
    parser.add_argument("--out", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--preset", choices=AUTHORS_PRESETS, help="default: recognised by its shapes; 224 and 256 pixels look the same"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read, check every key and shape, write the folder."""
    check_folder(arguments.out, option="--out")
    state = read_authors_file(arguments.file)
    gigabytes = sum(value.nbytes for value in state.values()) / 1e9
    print(f"{arguments.file}: {len(state)} tensors, {gigabytes:.2f} GB", flush=True)
    name = arguments.preset or likely_preset(state)
    print(f"preset {name} ({'given' if arguments.preset else 'recognised by its shapes'}); converting", flush=True)
    if arguments.preset is None and name.startswith("tokenflow-b"):
        other = name.replace("-256", "") if "-256" in name else name.replace("tokenflow-b", "tokenflow-b-256")
        print(f"  224 and 256 pixels have the same tensors: give --preset {other} if it is that one", flush=True)
    tokenizer = import_tokenizer(state, config=authors_config(state, name=name))
    print(f"every key and shape fits; writing {arguments.out}", flush=True)
    tokenizer.save_pretrained(arguments.out)
    dropped = dropped_keys(state, tokenizer.config)
    print(f"{len(state) - len(dropped)} tensors taken over; dropped on purpose: {', '.join(dropped) or 'none'}")
    print(
        f"{tokenizer.config.image_size} pixels, {tokenizer.config.num_tokens} codes an image -> {arguments.out}; "
        "TokenFlowTokenizer.from_pretrained reads it"
    )
    return 0
