"""What every training recipe costs, as docs/scale.md shows it: memory a GPU, operations, days. Nothing is measured.

    python -m benchmarks.scale [--json] [--write docs/scale.md] [--check docs/scale.md]

`--write` replaces the tables between the two marks in the page; `--check` ends with 1 where they are not those of the
recipes. Models are built as shapes only; it takes some seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenflow.config import RECIPES, load_recipe, read_json
from tokenflow.tasks.cost import PEAK_FLOPS, SHIPPED, UTILISATION, WANTED_DAYS, Cost, figure
from tokenflow.tasks.decoder_plan import cost_of_decoder
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.generation_plan import cost_of_generation
from tokenflow.tasks.generation_recipe import GenerationRecipe
from tokenflow.tasks.language import LanguageRecipe
from tokenflow.tasks.language_plan import cost_of_language
from tokenflow.tasks.teacher import TeacherRecipe
from tokenflow.tasks.teacher_plan import cost_of_teacher
from tokenflow.tasks.tokenizer_plan import cost_of_tokenizer
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.tasks.understanding_plan import cost_of_understanding
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe

STAGES: dict[str, tuple[type, Callable[[Any], Cost]]] = {
    "teacher_pretrain": (TeacherRecipe, cost_of_teacher),
    "tokenizer_pretrain": (TokenizerRecipe, cost_of_tokenizer),
    "decoder_finetune": (DecoderRecipe, cost_of_decoder),
    "gen_pretrain": (GenerationRecipe, cost_of_generation),
    "lm_pretrain": (LanguageRecipe, cost_of_language),
    "mllm_align": (UnderstandingRecipe, cost_of_understanding),
    "mllm_sft": (UnderstandingRecipe, cost_of_understanding),
}
CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
GPUS = (8, 64, 256)
BEGIN, END = "<!-- begin: python -m benchmarks.scale --write -->", "<!-- end -->"


def shipped_costs() -> dict[str, Cost]:
    """The cost of every shipped training recipe, by `stage/name`."""
    costs = {}
    with _elsewhere():
        for stage, (recipe_class, cost_of) in STAGES.items():
            for path in sorted((RECIPES / stage).glob("*.yaml")):
                costs[f"{stage}/{path.stem}"] = cost_of(load_recipe(recipe_class, path))
    return costs


@contextmanager
def _elsewhere() -> Iterator[None]:
    """In an empty folder: models that happen to lie in this one would be planned with instead of the presets."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def tables(costs: dict[str, Cost]) -> str:
    """The two tables, as they stand between the marks."""
    return "\n".join([BEGIN, "", *_memory(costs), "", *_compute(costs), "", END])


def _memory(costs: dict[str, Cost]) -> list[str]:
    lines = [
        f"| recipe | precision | learns | frozen | {' | '.join(CONFIGS)} |",
        "|---|---|" + "---:|" * (2 + len(CONFIGS)),
    ]
    for name, cost in costs.items():
        trained = sum(engine.trained for engine in cost.engines)
        frozen = cost.outside + sum(engine.frozen for engine in cost.engines)
        cells = [
            " / ".join(
                f"{cost.memory(read_json(SHIPPED / f'{config}.json'), world_size=n) / 2**30:.2f}" for n in (8, 64)
            )
            for config in CONFIGS
        ]
        lines.append(
            f"| {name} | {cost.precision} | {trained / 1e6:,.1f} M | {frozen / 1e6:,.1f} M | {' | '.join(cells)} |"
        )
    return lines


def _compute(costs: dict[str, Cost]) -> list[str]:
    lines = [
        f"| recipe | samples | TFLOP a sample | EFLOP in all | samples/s for {WANTED_DAYS} days | tokens/s for "
        f"{WANTED_DAYS} days | assumed share of peak | {' | '.join(f'days on {count}' for count in GPUS)} |",
        "|---|" + "---:|" * (6 + len(GPUS)),
    ]
    for name, cost in costs.items():
        tokens = figure(cost.rate() * cost.tokens) if cost.tokens else ""
        days = " | ".join(figure(cost.days(count)) for count in GPUS)
        lines.append(
            f"| {name} | {cost.samples:,} {cost.unit} | {figure(cost.flops / 1e12)} | {figure(cost.exaflops)} | "
            f"{figure(cost.rate())} | {tokens} | {UTILISATION[cost.kind]:.0%} | {days} |"
        )
    return lines


def replaced(page: str, new: str) -> str:
    """A page with other tables between its marks; ValueError where it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or, behind it, {END!r}; put both where the tables belong")
    return before + new + after


def main() -> int:
    """Print the tables, or put them into a page, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--check", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    costs = shipped_costs()
    if arguments.json:
        shown = {
            name: {"samples": c.samples, "flops": c.flops, **{f"days_on_{n}": c.days(n) for n in GPUS}}
            for name, c in costs.items()
        }
        print(json.dumps({"peak_flops": PEAK_FLOPS, "assumed_utilisation": UTILISATION, "recipes": shown}, indent=2))
        return 0
    new = tables(costs)
    if arguments.write is not None:
        arguments.write.write_text(replaced(arguments.write.read_text(), new))
    elif arguments.check is not None:
        page = arguments.check.read_text()
        if replaced(page, new) != page:
            print(
                f"{arguments.check} is not that of the recipes. Mend it with python -m benchmarks.scale --write "
                f"{arguments.check}"
            )
            return 1
    else:
        print(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
