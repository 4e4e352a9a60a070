"""`tokenflow doctor`: what is installed, in use, missing, and how to get it."""

import argparse
import json
from pathlib import Path

from tokenflow.doctor import examine, render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="a tokenizer folder to load and try")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 when something that is needed is broken."""
    findings = examine(arguments.model)
    print(json.dumps([finding.to_json() for finding in findings], indent=2) if arguments.json else render(findings))
    return int(any(finding.status == "broken" for finding in findings))
