"""`tokenflow export-checkpoint`: a tokenizer of ours as a file that the authors' code loads strictly."""

import argparse
from pathlib import Path

from tokenflow import TokenFlowTokenizer
from tokenflow.commands.targets import check_file
from tokenflow.tokenizer.authors import authors_options, write_authors_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("tokenizer", metavar="DIR", help="what save_pretrained wrote, or a hub id")
    parser.add_argument(
        "--out", "--output", type=Path, required=True, metavar="FILE", help="file to write, such as tokenflow.pt"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the folder, write the file."""
    check_file(arguments.out, option="--out")
    tokenizer = TokenFlowTokenizer.from_pretrained(arguments.tokenizer)
    options = authors_options(tokenizer.config)
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    print(f"{arguments.tokenizer}: {count:,} parameters; writing {arguments.out}", flush=True)
    write_authors_file(tokenizer, arguments.out)
    print(f"{arguments.out} written; the authors' code loads it with strict=True, built with {options}")
    return 0
