"""`tokenflow chat`: questions about pictures."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tokenflow import ImageToText
from tokenflow.commands.reconstruct import choose_device
from tokenflow.understanding.answering import Decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("image", metavar="IMAGE", help="a picture, as a file")
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help="asked one after the other; none: read from the terminal"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="what mllm_sft exports, or a hub id")
    parser.add_argument("--tokenizer", metavar="DIR", help="another image tokenizer, for example with another decoder")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        dest="more",
        metavar="FILE",
        help="a further picture of the first question; may repeat",
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
    pictures = [arguments.image, *arguments.more]
    check(pictures, arguments.questions)
    decoding = Decoding(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    device = choose_device(arguments.device)
    model = ImageToText.from_pretrained(arguments.model, tokenizer=arguments.tokenizer).to(device)
    chat = model.chat(system=arguments.system, **vars(decoding))
    for number, question in enumerate(arguments.questions or typed()):
        if len(arguments.questions) > 1:
            print(f"> {question}", flush=True)
        for piece in chat.ask(question, () if number else pictures):
            print(piece, end="", flush=True)
        print(flush=True)
    return 0


def check(pictures: list[str], questions: list[str]) -> None:
    """ValueError or OSError for what is no picture or no question, before anything is loaded."""
    for picture in pictures:
        if re.match("[a-z][a-z0-9+.-]*://", picture, re.IGNORECASE):
            raise ValueError(f"{picture} is an address; expected a file. Download it first.")
        if not Path(picture).is_file():
            found = "a folder" if Path(picture).is_dir() else "no such file"
            raise FileNotFoundError(f"{picture}: {found}; expected a picture file. Check the path.")
        try:
            with Image.open(picture) as opened:
                opened.verify()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{picture} is no picture ({error}); expected a JPEG, PNG or the like") from error
    for number, question in enumerate(questions, start=1):
        if not question.strip():
            raise ValueError(f"question {number} is empty; expected a text, or none to read from the terminal")


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
