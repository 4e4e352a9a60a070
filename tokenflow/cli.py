"""The `tokenflow` command: small tools around trained models. Training itself is `python -m pipelines.<stage>`.

A subcommand is a line in `COMMANDS` and a module with two functions: `add_arguments(parser)` and
`run(arguments) -> exit code`. Only the module of the command that was asked for is imported.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tokenflow import __version__
from tokenflow.config import reader_has_left


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand: where it lives and what `--help` says about it."""

    name: str
    summary: str
    module: str
    examples: tuple[str, ...] = ()


COMMANDS: tuple[Command, ...] = (
    Command(
        name="reconstruct",
        summary="pictures to codes and back: see what a tokenizer keeps",
        module="tokenflow.commands.reconstruct",
        examples=(
            "tokenflow reconstruct photo.jpg --tokenizer runs/demo/tokenizer/model",
            "tokenflow reconstruct pictures/ --tokenizer DIR --out compared --side_by_side --device cuda",
        ),
    ),
    Command(
        name="generate",
        summary="pictures of prompts by a text-to-image model",
        module="tokenflow.commands.generate",
        examples=(
            'tokenflow generate "a red circle left of a blue square" --model runs/demo/generation/model',
            'tokenflow generate "two stars" --model DIR --count 4 --seed 7 --steps one --output stars --preview_scales',
        ),
    ),
    Command(
        name="chat",
        summary="answers about pictures by a multimodal model",
        module="tokenflow.commands.chat",
        examples=(
            'tokenflow chat photo.jpg "what colour is the star?" --model runs/demo/sft/model',
            "tokenflow chat photo.jpg --model DIR    # reads questions from the terminal",
        ),
    ),
    Command(
        name="import-checkpoint",
        summary="a checkpoint of the authors' as a folder that TokenFlowTokenizer.from_pretrained reads",
        module="tokenflow.commands.import_checkpoint",
        examples=(
            "tokenflow import-checkpoint tokenflow_clipb_32k_enhanced.pt --out tokenflow-b-256",
            "tokenflow import-checkpoint mine.pt --preset tokenflow-b-256 --out tokenflow-b-256",
        ),
    ),
    Command(
        name="export-checkpoint",
        summary="a tokenizer as a file that the authors' code loads",
        module="tokenflow.commands.export_checkpoint",
        examples=("tokenflow export-checkpoint runs/tokenflow-b/model --out tokenflow_b.pt",),
    ),
    Command(
        name="encode-shards",
        summary="pictures to shards of codes, once, for training that then needs no image encoder",
        module="tokenflow.commands.encode_shards",
        examples=(
            "tokenflow encode-shards --data 'pictures/{0000..0127}.tar' --tokenizer tokenflow-b-256 --out codes",
            "srun -n 8 tokenflow encode-shards --data pictures --tokenizer DIR --out codes --num_workers 8",
        ),
    ),
    Command(
        name="make-shards",
        summary="pictures of folders, tables, shards or data sets to checked webdataset shards without duplicates",
        module="tokenflow.commands.make_shards",
        examples=(
            "tokenflow make-shards pictures --out shards --short_side 512 --workers 8",
            "tokenflow make-shards 'raw/{0000..0127}.tar' --out shards --duplicates near --min_side 256 --seed 1",
            "tokenflow make-shards captions.csv --images pictures --caption_column title --out shards",
            "tokenflow make-shards hf:org/name --split train --out shards",
        ),
    ),
    Command(
        name="find-faces",
        summary="faces into the records of shards or pictures, and an index by which training upsamples them",
        module="tokenflow.commands.find_faces",
        examples=(
            "tokenflow find-faces shards --workers 8",
            "tokenflow find-faces shards --model face_detection_yunet_2023mar.onnx --workers 8",
        ),
    ),
    Command(
        name="recaption",
        summary="new captions for shards from a Qwen-VL, in this process or behind a server",
        module="tokenflow.commands.recaption",
        examples=(
            "tokenflow recaption shards --out recaptioned --model Qwen/Qwen2.5-VL-7B-Instruct",
            "tokenflow recaption shards --out recaptioned --backend openai --base_url http://localhost:8000/v1",
        ),
    ),
    Command(
        name="inspect-shards",
        summary="what is in a set of shards or a folder, what is broken in it, and whether training reads it",
        module="tokenflow.commands.inspect_shards",
        examples=(
            "tokenflow inspect-shards shards --out inspected --workers 8",
            "tokenflow inspect-shards 'shards/{0000..0127}.tar' --headers --json",
        ),
    ),
    Command(
        name="doctor",
        summary="what is installed, in use, missing and how to get it; whether a model paints what it predicts",
        module="tokenflow.commands.doctor",
        examples=(
            "tokenflow doctor",
            "tokenflow doctor --model runs/demo/tokenizer/model --json",
            "tokenflow doctor --model runs/demo/generation/model --overfit photo.jpg",
        ),
    ),
)


def main(argv: Sequence[str] | None = None, *, commands: Sequence[Command] = COMMANDS) -> int:
    """Run the command line; returns the exit code: 0 done, 1 done with a complaint, 2 could not be done."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((command for command in commands if arguments[:1] == [command.name]), None)
    if chosen is None:
        return _without_command(arguments, commands)
    module = importlib.import_module(chosen.module)
    parser = _Parser(
        arguments[1:],
        prog=f"tokenflow {chosen.name}",
        description=chosen.summary[:1].upper() + chosen.summary[1:] + ".",
        epilog=_examples(chosen.examples),
        formatter_class=_Wide,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    # Intermixed, so that what is not an option may stand before and after options.
    parsed = parser.parse_intermixed_args(arguments[1:])
    try:
        code = int(module.run(parsed) or 0)
        sys.stdout.flush()
        return code
    except (ValueError, OSError) as error:
        if reader_has_left(error):
            return 0
        # What a user can mend is said in one line; anything else is a fault of ours and keeps its traceback.
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _in_words(error: Exception) -> str:
    """An error as one line; the operating system's own, which name no remedy, with one."""
    if isinstance(error, OSError) and error.errno and error.filename:
        return f"{error.filename}: {error.strerror}. Check the path, and whether you may read or write there."
    return " ".join(str(error).split())


def _without_command(arguments: Sequence[str], commands: Sequence[Command]) -> int:
    """Help, version, or the complaint about an unknown command; imports nothing."""
    parser = argparse.ArgumentParser(
        prog="tokenflow",
        description="TokenFlow: one image tokenizer for understanding and generation.",
        epilog=_examples(tuple(command.examples[0] for command in commands if command.examples))
        + "\n\nTraining: python -m pipelines.tokenizer_pretrain --recipe nano",
        formatter_class=_Wide,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tokenflow {__version__}")
    listing = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in commands:
        listing.add_parser(command.name, help=command.summary, add_help=False)
    known = [command.name for command in commands]
    meant = difflib.get_close_matches(arguments[0], known, n=1) if arguments and arguments[0] not in known else []
    if meant:
        print(f"error: no command {arguments[0]!r}; did you mean tokenflow {meant[0]}?", file=sys.stderr)
        return 2
    parser.parse_args(arguments)
    parser.print_help(sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """Names the option that a misspelt one was meant to be."""

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        self._words = [word.split("=", 1)[0] for word in words if word.startswith("--")]
        self._options: list[str] = []
        super().__init__(**options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        self._options += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        for word in self._words:
            meant = [] if word in self._options else difflib.get_close_matches(word, self._options, n=1)
            if meant:
                self.exit(2, f"error: {self.prog} has no option {word}; did you mean {meant[0]}?\n")
        super().error(message)


class _Wide(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """With the default, where it is a value that the help does not name."""
        default = action.default
        is_value = isinstance(default, int | float | str) and not isinstance(default, bool) and default != ""
        return super()._get_help_string(action) if is_value and "default" not in (action.help or "") else action.help


def _examples(lines: Sequence[str]) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


if __name__ == "__main__":
    sys.exit(main())
