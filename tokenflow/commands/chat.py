"""`tokenflow chat`: questions about pictures."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenflow import ImageToText
from tokenflow.commands.reconstruct import choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("image", metavar="IMAGE", help="a picture, as a file")
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help="asked one after the other; none: read from the terminal"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="what mllm_sft exports, or a hub id")
    parser.add_argument("--tokenizer", metavar="DIR", help="another image tokenizer, for example with another decoder")
    parser.add_argument(
        "--image", action="append", default=[], dest="more", metavar="FILE", help="a further picture; may repeat"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message in place of the model's")
    parser.add_argument(
        "--max_new_tokens", type=int, default=256, metavar="N", help="of an answer; default: %(default)s"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the likeliest token"
    )
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")


def run(arguments: argparse.Namespace) -> int:
    """Answer, in pieces as they are made; the pictures belong to the first question."""
    pictures = [Path(path) for path in (arguments.image, *arguments.more)]
    check(pictures)
    device = choose_device(arguments.device)
    model = ImageToText.from_pretrained(arguments.model, tokenizer=arguments.tokenizer).to(device)
    chat = model.chat(
        system=arguments.system,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    asked = iter(arguments.questions) if arguments.questions else typed()
    for number, question in enumerate(asked):
        if number or len(arguments.questions) > 1:
            print(f"> {question}" if arguments.questions else "", end="\n" if arguments.questions else "", flush=True)
        for piece in chat.ask(question, () if number else pictures):
            print(piece, end="", flush=True)
        print(flush=True)
    return 0


def check(pictures: list[Path]) -> None:
    """ValueError or OSError for what is no file here, before anything is loaded."""
    for path in pictures:
        if str(path).lower().startswith(("http:", "https:")):
            raise ValueError(f"{path} is an address, and nothing is fetched from the net. Save it and pass the file.")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a picture")


def typed() -> Iterator[str]:
    """Questions from standard input, a line each, to its end or an empty line."""
    waits = sys.stdin.isatty()
    while True:
        if waits:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()
