"""What a user reads who mistypes a command line: one line, exit code 2, and what was probably meant."""

from dataclasses import dataclass
from typing import Literal

import pytest

from tests.recipes.command_lines import complaint
from tokenflow.config import RECIPES, parse
from tokenflow.data import DataConfig


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A part of two names."""

    learning_rate: float = 0.1
    """Rate."""
    kind: Literal["adam", "sgd"] = "adam"
    """Rule."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A small recipe."""

    name: str
    """Name."""
    steps: int
    """Steps."""
    data: DataConfig
    """Data."""
    optimizer: Optimizer = Optimizer()
    """Optimizer."""
    discriminator_optimizer: Optimizer = Optimizer()
    """Another."""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: test\nsteps: 3\ndata: {image_size: 32, sources: [{path: pictures}]}\n")
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--stpes", 4], "unknown option --stpes; did you mean --steps?"),
        (["--optimiser.learning_rate=4"], "did you mean --optimizer.learning_rate?"),
        (["--step", 4], "did you mean --steps?"),
        (["--learning_rate", 4], "--optimizer.learning_rate or --discriminator_optimizer.learning_rate?"),
        (["--dat", "pictures"], "did you mean --data?"),
        (["--recip", "nano"], "did you mean --recipe?"),
        (["--zzz", 4], "unknown option --zzz (--help lists all options)"),
        (["word", "--outptu", "x"], "did you mean --output?"),
        (["word"], "unrecognized arguments: word"),
    ],
)
def test_an_unknown_option_is_named_with_what_was_probably_meant(recipe, capsys, options, expected):
    assert expected in complaint(capsys, Recipe, ["--recipe", recipe, *options], stage="tokenizer_pretrain")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("stpes: 4", "did you mean steps?"),
        ("optimizer: {learning_rat: 4}", "did you mean optimizer.learning_rate?"),
    ],
)
def test_an_unknown_key_of_a_recipe_is_named_with_what_was_probably_meant(recipe, capsys, line, expected):
    recipe.write_text(f"{recipe.read_text()}{line}\n")
    assert expected in complaint(capsys, Recipe, ["--recipe", recipe], stage="tokenizer_pretrain")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "many"], ("steps", "int", "many")),
        (["--optimizer.kind", "lion"], ("optimizer.kind", "sgd", "lion")),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_what_was_expected(recipe, capsys, options, words):
    line = complaint(capsys, Recipe, ["--recipe", recipe, *options], stage="tokenizer_pretrain")
    assert all(word in line for word in words)


@pytest.mark.parametrize("stage", [path.name for path in RECIPES.iterdir()])
def test_a_run_without_a_recipe_names_a_shipped_one(capsys, stage):
    line = complaint(capsys, Recipe, ["--steps", 3], stage=stage)
    shipped = sorted(path.stem for path in (RECIPES / stage).glob("*.yaml"))
    assert f"add --recipe {'nano' if 'nano' in shipped else shipped[0]} " in line
    assert all(name in line for name in shipped) and "lacks name, " in line


def test_a_recipe_without_data_asks_for_it(recipe, capsys):
    recipe.write_text("name: test\nsteps: 3\ndata: {image_size: 32}\n")
    assert "lack data.sources; --data PATH gives data.sources" in complaint(
        capsys, Recipe, ["--recipe", recipe], stage="tokenizer_pretrain"
    )


def test_help_and_print_config_still_end_well(recipe, capsys):
    shown = (("--help", "--optimizer.learning_rate"), ("--help", "tokenflow-b"), ("--print_config", "image_size: 32"))
    for option, expected in shown:
        with pytest.raises(SystemExit) as stopped:
            parse(Recipe, ["--recipe", str(recipe), option], stage="tokenizer_pretrain", description="")
        assert not stopped.value.code and expected in capsys.readouterr().out
