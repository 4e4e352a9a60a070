"""`tokenflow doctor`: what is installed, in use, missing, and how to get it; whether a model works."""

import argparse
import json
from pathlib import Path

from tokenflow.commands.reconstruct import read_picture
from tokenflow.doctor import OverfitChoice, examine, render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="folder of a tokenizer, a text-to-image or a multimodal model, to load and try",
    )
    parser.add_argument(
        "--overfit",
        type=Path,
        metavar="PICTURE",
        help="train a copy of the text-to-image model on this picture alone: it must come back",
    )
    parser.add_argument("--overfit_steps", type=int, default=200, metavar="N", help="at most; default: %(default)s")
    parser.add_argument("--overfit_prompt", default="a picture", metavar="TEXT", help="default: %(default)r")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 when something that is needed is broken."""
    choice = None
    if arguments.overfit is not None:
        choice = OverfitChoice(
            picture=read_picture(arguments.overfit), prompt=arguments.overfit_prompt, steps=arguments.overfit_steps
        )
    findings = examine(arguments.model, overfit_on=choice)
    print(json.dumps([finding.to_json() for finding in findings], indent=2) if arguments.json else render(findings))
    return int(any(finding.status == "broken" for finding in findings))
