"""`tokenflow generate`: pictures of prompts."""

import argparse
import re
from pathlib import Path

import numpy as np
import torch

from tokenflow import TextToImage
from tokenflow.commands.reconstruct import choose_device
from tokenflow.commands.targets import check_file, check_folder
from tokenflow.evaluation.grid import Picture, tile
from tokenflow.evaluation.measure import png_bytes, write_atomic
from tokenflow.evaluation.reconstruction import reconstruct_uint8
from tokenflow.generation.options import SamplingConfig

STEPS = {"three": "three-step", "two": "two-step", "one": "single-step", "greedy": "greedy"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="a text; a class number for a class-conditional model"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="what gen_pretrain exports, or a hub id")
    parser.add_argument("--tokenizer", metavar="DIR", help="another image tokenizer, for example with another decoder")
    parser.add_argument(
        "--output",
        "--out",
        type=Path,
        default=Path("generated"),
        metavar="DIR",
        help="a folder, or NAME.png; default: %(default)s",
    )
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="pictures of each prompt; default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="default: %(default)s; the same seed paints the same picture"
    )
    parser.add_argument(
        "--steps", choices=tuple(STEPS), default="three", help="steps a scale (paper: three); default: %(default)s"
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=7.5, metavar="T", help="0 is none; default: %(default)s"
    )
    parser.add_argument(
        "--guidance", choices=("linear", "constant"), default="linear", help="over scales; default: %(default)s"
    )
    parser.add_argument(
        "--top_k", type=_numbers(int), metavar="K,...", help="one a step; with --top_p replaces --steps"
    )
    parser.add_argument(
        "--top_p", type=_numbers(float), metavar="P,...", help="one a step; with --top_k replaces --steps"
    )
    parser.add_argument("--negative_prompt", default="", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument(
        "--preview_scales",
        action="store_true",
        help="beside each picture, how it looks after each scale, coarse to fine",
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="pictures at once; changes no picture")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")


def run(arguments: argparse.Namespace) -> int:
    """Paint, write a PNG each, print a line each."""
    check(arguments)
    device = choose_device(arguments.device)
    model = TextToImage.from_pretrained(arguments.model, tokenizer=arguments.tokenizer).to(device)
    prompts = read_prompts(arguments.prompts, model)
    wanted = [prompt for prompt in prompts for _ in range(arguments.count)]
    targets = target_paths(arguments)
    for first in range(0, len(wanted), arguments.batch_size):
        codes = model.generate_codes(
            wanted[first : first + arguments.batch_size],
            guidance_scale=arguments.guidance_scale,
            guidance=arguments.guidance,
            steps=STEPS[arguments.steps],
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            negative_prompt=arguments.negative_prompt,
            seed=arguments.seed,
            first_image=first,
        )
        shown = previews(model, codes) if arguments.preview_scales else pictures(model, codes)
        for offset, picture in enumerate(shown):
            write_atomic(targets[first + offset], png_bytes(picture))
            print(f"{wanted[first + offset]} -> {targets[first + offset]}")
    return 0


def check(arguments: argparse.Namespace) -> None:
    """ValueError for what makes no sense, before anything is loaded."""
    for name in ("count", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; expected at least 1")
    for number, prompt in enumerate(arguments.prompts, start=1):
        if not prompt.strip():
            raise ValueError(f"prompt {number} is empty; expected a text that says what to paint")
    if (arguments.top_k is None) != (arguments.top_p is None):
        raise ValueError("--top_k and --top_p belong together; give both, or --steps alone")
    steps = {} if arguments.top_k is None else {"top_k": arguments.top_k, "top_p": arguments.top_p}
    SamplingConfig(guidance_scale=arguments.guidance_scale, guidance=arguments.guidance, **steps)
    one_file = arguments.output.suffix.lower() == ".png"
    if one_file and len(arguments.prompts) * arguments.count > 1:
        raise ValueError(f"--output {arguments.output} is one file for several pictures; give a folder")
    (check_file if one_file else check_folder)(arguments.output, option="--output")


def read_prompts(prompts: list[str], model: TextToImage) -> list[str] | list[int]:
    """Texts, or class numbers where the model takes those."""
    if model.text_tokenizer is not None:
        return prompts
    if not all(prompt.strip().isdigit() for prompt in prompts):
        count = model.generator.config.num_classes
        raise ValueError(f"this model paints classes; expected numbers from 0 to {count - 1}, got {', '.join(prompts)}")
    return [int(prompt) for prompt in prompts]


def target_paths(arguments: argparse.Namespace) -> list[Path]:
    """The file of each picture, named after its prompt, the seed and the picture's number."""
    if arguments.output.suffix.lower() == ".png":
        return [arguments.output]
    found: list[Path] = []
    for prompt in arguments.prompts:
        words = re.sub(r"\W+", "_", prompt.strip()).strip("_")[:60] or "prompt"
        for _ in range(arguments.count):
            found.append(arguments.output / f"{words}-seed{arguments.seed}-{len(found)}.png")
    return found


def pictures(model: TextToImage, codes: torch.Tensor) -> Picture:
    """Codes [B, L] as uint8 [B, S, S, 3]."""
    return reconstruct_uint8(model.tokenizer.decode(codes)).permute(0, 2, 3, 1).cpu().numpy()


def previews(model: TextToImage, codes: torch.Tensor) -> list[Picture]:
    """One strip for each picture: what it is after each scale, and at last whole."""
    ends = model.generator.config.scale_starts[1:]
    stages = [pictures(model, codes[:, :end]) for end in ends]
    return [tile([np.stack(strip)], columns=len(ends)) for strip in zip(*stages, strict=True)]


def _numbers(kind: type):
    def read(text: str) -> tuple:
        return tuple(kind(part) for part in text.split(","))

    # argparse names the type in its complaint.
    read.__name__ = f"list of {'whole numbers' if kind is int else 'numbers'}"
    return read
