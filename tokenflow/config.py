"""Recipes: one YAML file a run, overridden on the command line, checked before any device is touched.

Precedence: dataclass defaults < recipe file < command line. A recipe is a frozen dataclass made of the configuration
classes that live beside the code they configure; unknown keys, wrong types and values that make no sense are errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)

RecipeT = TypeVar("RecipeT")

RECIPES = Path(__file__).resolve().parent.parent / "pipelines" / "recipes"
"""Where the shipped recipes lie: `<stage>/<name>.yaml`."""
_MISSING = re.compile(r"the following arguments are required: (.*)")
_UNKNOWN_OPTION = re.compile(r"unrecognized arguments: .*?--([^\s=]+)")
_UNKNOWN_KEY = re.compile(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a run is started: everything that does not change what is computed."""

    output: Path
    """The run's own folder: checkpoints, metrics.jsonl, exported model."""
    ds_config: Path | None
    """DeepSpeed JSON: ZeRO stage, offload and buckets; everything else belongs to the recipe."""
    resume: str
    """`auto` (newest valid checkpoint of this run's folder, or a fresh start), `none`, or the path of a checkpoint."""
    init_from: str | None
    """Weights to start from; optimisers, schedules and data order start afresh."""
    dry_run: bool
    """Print what would run (parameters, memory, recipe), then stop."""

    def deepspeed(self) -> dict[str, Any]:
        """The DeepSpeed JSON as a dictionary; empty (ZeRO off) when none was given."""
        return {} if self.ds_config is None else read_json(self.ds_config)


@dataclass(frozen=True)
class Parsed(Generic[RecipeT]):
    """A command line, read: the recipe and how to launch it."""

    recipe: RecipeT
    launch: Launch


def parse(
    recipe_class: type[RecipeT], argv: Sequence[str] | None = None, *, stage: str, description: str
) -> Parsed[RecipeT]:
    """Read a pipeline's command line.

    Args:
        recipe_class: Frozen dataclass whose fields become options (`--train.steps 100`, `--data.sources ...`).
        argv: Arguments without the program name; the process's own by default.
        stage: Folder under `pipelines/recipes`, so that `--recipe nano` finds the shipped file.
        description: First line of `--help`.

    Raises:
        SystemExit: Unknown keys, wrong types or values, with one line that says which and why (exit code 2).
    """
    parser = _parser(recipe_class, description=description, recipes=_shipped(stage))
    fields = {field.name for field in dataclasses.fields(recipe_class)}  # type: ignore[arg-type]
    arguments = _prepare(list(sys.argv[1:] if argv is None else argv), stage=stage, fields=fields)
    try:
        namespace = parser.parse_args(arguments)
    except ArgumentError as error:
        _fail(_explain(str(error), parser=parser, stage=stage, arguments=arguments))
    try:
        values = parser.instantiate(namespace)
        launch = _launch(values)
        recipe = recipe_class(**{name: values[name] for name in fields})
    except ValueError as error:
        _fail(str(error))
    return Parsed(recipe, launch)


def reader_has_left(error: BaseException) -> bool:
    """Whether an error means no more than that nobody reads standard output any more, as in `... --dry_run | head`.

    A pipe may break elsewhere (a worker, a server), and that is an error. If it is this one, no more is printed.
    """
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # else the interpreter would fail on what is left when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def run_command(main: Callable[[], int]) -> NoReturn:
    """End the process with `main`'s exit code; what a user can mend (ValueError, OSError) is one line and exit code 2.

    `TOKENFLOW_TRACEBACK=1` shows where it came from. One rank of several names itself and ends at once: leaving
    in order, it would wait for the others, and they for it, until their collective times out. Ranks that finish end
    at once too: while the interpreter is taken down, communication threads now and then abort the process.
    """
    ranks = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    try:
        code = main()
        sys.stdout.flush()
    except Exception as error:
        if ranks == 1 and reader_has_left(error):
            sys.exit(0)
        expected = isinstance(error, ValueError | OSError) and os.environ.get("TOKENFLOW_TRACEBACK") != "1"
        if not expected and ranks == 1:
            raise
        if not expected:
            traceback.print_exc()
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        print(f"{f'[rank {rank}] ' if ranks > 1 else ''}error: {error}", file=sys.stderr, flush=True)
        code = 2 if expected else 1
    if ranks > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def load_recipe(recipe_class: type[RecipeT], path: str | Path) -> RecipeT:
    """Read a recipe file without a command line (tests, tools, and a run's own `recipe.yaml`)."""
    parser = _parser(recipe_class, description="")
    values = parser.instantiate(parser.parse_args(["--recipe", str(path)]))
    return recipe_class(**{f.name: values[f.name] for f in dataclasses.fields(recipe_class)})  # type: ignore[arg-type]


def to_dict(config: Any) -> Any:
    """A configuration as plain dictionaries, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def to_yaml(config: Any) -> str:
    """A configuration as YAML, keys in the order of the dataclass."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def flatten(values: Any, *, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys: `{"a": {"b": 1}}` becomes `{"a.b": 1}`; lists stay whole.

    Args:
        values: What `to_dict` returned.
        prefix: Key of `values` itself.
    """
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, prefix=f"{prefix}.{key}" if prefix else str(key)))
    return flat


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object, with an error that names the file and the place.

    Raises:
        ValueError: The file is missing or is not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; expected a JSON file such as deepspeed_configs/zero2.json") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON (line {error.lineno}: {error.msg}). Fix the file.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object at the top, got {type(value).__name__}")
    return value


def _parser(recipe_class: type, *, description: str, recipes: Sequence[str] = ()) -> ArgumentParser:
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s [--recipe NAME] [--KEY VALUE ...]",
        epilog="A required key may come from the recipe; the command line wins over it.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    names = f": {', '.join(recipes)}" if recipes else ""
    parser.add_argument(
        "--recipe", action=ActionConfigFile, help=f"YAML recipe: a path, or the name of a shipped one{names}"
    )
    parser.add_class_arguments(recipe_class, None)
    run = parser.add_argument_group("this run")
    run.add_argument("--output", type=str | None, default=None, help="the run's folder (default: runs/<recipe name>)")
    run.add_argument("--ds_config", type=str | None, default=None, help="DeepSpeed JSON, see deepspeed_configs/")
    run.add_argument("--resume", type=str, default="auto", help="auto, none, or the path of a checkpoint")
    run.add_argument("--init_from", type=str | None, default=None, help="start from these weights only")
    run.add_argument("--dry_run", action="store_true", help="print parameters, memory and the recipe, then stop")
    run.add_argument("--local_rank", type=int, default=-1, help="passed by the deepspeed launcher; not used")
    return parser


def _launch(values: Namespace) -> Launch:
    output = values["output"] or f"runs/{values['name']}"
    return Launch(
        output=Path(output),
        ds_config=Path(values["ds_config"]) if values["ds_config"] else None,
        resume=values["resume"],
        init_from=values["init_from"],
        dry_run=values["dry_run"],
    )


def _prepare(arguments: list[str], *, stage: str, fields: set[str]) -> list[str]:
    """Put recipes first (the command line wins), resolve shipped names, and expand `--data PATH` to a source."""
    recipes: list[str] = []
    others: list[str] = []
    words = iter(_split_equals(arguments))
    for word in words:
        if word not in ("--recipe", "--data"):
            others.append(word)
            continue
        value = next(words, None)
        if value is None:
            _fail(f"{word} expects a value")
        if word == "--recipe":
            recipes += ["--recipe", _find_recipe(value, stage=stage)]
        else:
            others = ["--data.sources", json.dumps([{"path": value}]), *others]
            if "evaluation_sources" in fields:
                # Other data: the recipe's evaluation pictures no longer belong to it.
                others = ["--evaluation_sources", "[]", *others]
    return recipes + others


def _split_equals(arguments: list[str]) -> list[str]:
    words: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        words += [name, value] if equals and name in ("--recipe", "--data") else [word]
    return words


def _find_recipe(value: str, *, stage: str) -> str:
    if Path(value).is_file():
        return value
    shipped = RECIPES / stage / f"{value}.yaml"
    if shipped.is_file():
        return str(shipped)
    known = ", ".join(_shipped(stage)) or "none"
    _fail(f"recipe {value!r} is neither a file nor a shipped recipe of {stage} ({known})")


def _shipped(stage: str) -> list[str]:
    return sorted(path.stem for path in (RECIPES / stage).glob("*.yaml"))


def _explain(message: str, *, parser: ArgumentParser, stage: str, arguments: Sequence[str]) -> str:
    """The parser's complaint as one line, with what was probably meant."""
    message = " ".join(message.split())
    known = list(parser.get_defaults(skip_validation=True).keys(branches=False))
    known += ["data"] if "data.sources" in known else []
    if found := _MISSING.search(message):
        return _explain_missing(found.group(1), stage=stage, has_recipe="--recipe" in arguments)
    if found := _UNKNOWN_OPTION.search(message):
        meant = [f"--{name}" for name in _similar(found.group(1), known)]
        return f"unknown option --{found.group(1)}{_question(meant)} (--help lists all options)"
    if found := _UNKNOWN_KEY.search(message):
        return message + _question(_similar(".".join(filter(None, found.groups())), known))
    return message


def _explain_missing(keys: str, *, stage: str, has_recipe: bool) -> str:
    names = _shipped(stage)
    if has_recipe or not names:
        hint = "; --data PATH gives data.sources" if "data.sources" in keys else ""
        return f"the recipe and the command line lack {keys}{hint}"
    example = "nano" if "nano" in names else names[0]
    return (
        f"no recipe was given: add --recipe {example} (shipped: {', '.join(names)}) or --recipe FILE.yaml; without one "
        f"the command line lacks {keys}"
    )


def _similar(name: str, known: Sequence[str]) -> list[str]:
    """The known names that `name` may stand for: those that end with it, else those that are spelt alike."""
    longer = [option for option in known if option.endswith(f".{name}")]
    return longer or difflib.get_close_matches(name, known, n=2, cutoff=0.75)


def _question(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
