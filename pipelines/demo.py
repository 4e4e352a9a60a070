"""The whole pipeline on the built-in data, on a CPU: `make demo`, then open runs/demo/report.html.

Every stage is the command line that a cluster would run, with the nano recipes; each command is printed. Interrupted,
the next `make demo` continues where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.demo_report import missed_gates, missed_goals, write_report
from pipelines.stages import FinishedStages, StageStopped, ending_together, run_stage
from tokenflow.config import RECIPES, load_recipe, read_json, run_command
from tokenflow.data import SourceConfig, write_shapes
from tokenflow.data.counts import MANIFEST_NAME
from tokenflow.data.photographs import export_photographs
from tokenflow.data.world_conversations import write_lessons
from tokenflow.evaluation.compositional import CompositionalResult
from tokenflow.evaluation.evaluate import EvaluationResult
from tokenflow.evaluation.measure import write_json
from tokenflow.evaluation.question_answering import QuestionResult
from tokenflow.ops.precision import has_fast_bf16
from tokenflow.tasks.generation_evaluation import evaluate as evaluate_generation
from tokenflow.tasks.generation_evaluation_recipe import GenerationEvaluationRecipe
from tokenflow.tasks.tokenizer_evaluation import EvaluationData, EvaluationRecipe, evaluate
from tokenflow.tasks.understanding_evaluation import UnderstandingEvaluationRecipe
from tokenflow.tasks.understanding_evaluation import evaluate as evaluate_understanding
from tokenflow.train import EXIT_STOPPED, distributed

IMAGE_SIZE = 32
TRAINING_SCENES = 20000
EVALUATION_SCENES = 512
QUICK_SCENES = 4000
QUICK_STEPS = {
    "teacher": 80,
    "tokenizer": 500,
    "decoder": 60,
    "photographs": 80,
    "generation": 100,
    "language": 20,
    "align": 20,
    "names": 20,
    "corners": 20,
    "sides": 20,
    "sft": 40,
}
PHOTOGRAPH_STEPS = 300
# Two processes of one thread compute more than one process of two threads on matrices this small.
PROCESSES = min(2, os.cpu_count() or 1)
# Language models train in bf16 where the processor has it: painting is half as fast again, seeing hardly slower.
LANGUAGE_PRECISION = ("--train.precision", "bf16_autocast" if has_fast_bf16() else "fp32")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages, evaluate, write the page; 1 when a quality gate is missed, 75 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="where everything goes")
    parser.add_argument(
        "--quick",
        nargs="?",
        type=int,
        const=max(QUICK_STEPS.values()),
        metavar="STEPS",
        help="a few training steps only, of every stage at most STEPS (%(const)s): the page, without the quality",
    )
    arguments = parser.parse_args(argv)
    if arguments.quick is not None and arguments.quick < 1:
        parser.error(f"--quick is {arguments.quick}; expected at least 1 step")
    demo = Demo(arguments.output, quick_steps=arguments.quick)
    try:
        with ending_together():
            return demo.run()
    except (KeyboardInterrupt, StageStopped):
        print("\nstopped; run the same command again to continue where it was", file=sys.stderr)
        return EXIT_STOPPED


class Demo:
    """The stages in order, and the seconds each of them took over all attempts."""

    def __init__(self, output: Path, *, quick_steps: int | None) -> None:
        self.output = output
        self.quick = quick_steps is not None
        self.quick_steps = quick_steps
        # Few steps make another run: its checkpoints must not be continued by the full demo.
        self.runs = output / "quick" if self.quick else output
        self.data = self.runs / "data"
        self.scenes = QUICK_SCENES if self.quick else TRAINING_SCENES
        self.timing_path = self.runs / "timing.json"
        self.seconds: dict[str, float] = read_json(self.timing_path) if self.timing_path.exists() else {}
        self.finished = FinishedStages(self.runs / "finished.json")

    def run(self) -> int:
        """All stages, the page, the gates."""
        with self._timed("data"):
            self._draw_world()
        self.finished.keep_to(read_json(self.data / "train" / MANIFEST_NAME)["source"])
        teacher = self.runs / "teacher"
        self._stage("teacher", "teacher_pretrain", ["--data", str(self.data / "train")])
        choose_teacher = ["--model.pretrained", f"{teacher}/model", "--teacher.pretrained", f"{teacher}/model"]
        self._stage(
            "tokenizer",
            "tokenizer_pretrain",
            ["--data", str(self.data / "train"), *self._evaluation_on("seen"), *choose_teacher],
        )
        self._stage(
            "decoder",
            "decoder_finetune",
            [
                *("--data", str(self.data / "train"), *self._evaluation_on("seen")),
                *("--tokenizer", str(self.runs / "tokenizer" / "model")),
            ],
        )
        self._stage(
            "photographs",
            "tokenizer_pretrain",
            [
                *("--data", str(self.data / "photographs"), *self._evaluation_on("photographs-heldout")),
                *choose_teacher,
                *("--name", "photographs-nano", "--train.steps", str(PHOTOGRAPH_STEPS)),
                *("--train.evaluate_every", "50"),
            ],
        )
        self._generation()
        self._understanding()
        with self._timed("evaluation"):
            distributed.initialize()
            results = {
                "tokenizer": self._evaluate("tokenizer", "seen", "heldout", scenes=True),
                "heldout": self._evaluate("tokenizer", "heldout", scenes=True),
                "decoder": self._evaluate("decoder", "seen", "heldout", scenes=True),
                "photographs": self._evaluate("photographs", "photographs-heldout", scenes=False),
            }
        with self._timed("generation"):
            painted = evaluate_generation(self._painting())
        with self._timed("understanding"):
            answered = evaluate_understanding(self._questions())
        return self._finish(results, painted, answered)

    def _draw_world(self) -> None:
        sets = (
            ("train", self.scenes, 0, "train"),
            ("seen", EVALUATION_SCENES, 1, "seen"),
            ("heldout", EVALUATION_SCENES, 1, "heldout"),
        )
        for folder, count, seed, split in sets:
            write_shapes(self.data / folder, num_samples=count, image_size=IMAGE_SIZE, seed=seed, split=split)
        self.lessons = write_lessons(self.data / "conversations", num_scenes=self.scenes, seed=0)
        for folder, split in (("photographs", "train"), ("photographs-heldout", "heldout")):
            export_photographs(self.data / folder, split=split, image_size=128)

    def _evaluation_on(self, folder: str) -> list[str]:
        return ["--evaluation_sources", f'[{{"path": "{self.data / folder}"}}]']

    def _generation(self) -> None:
        """Codes once, from the tokenizer with the better decoder (its codes are the same); then text to image."""
        tokenizer, codes = str(self.runs / "decoder" / "model"), str(self.runs / "codes")
        source = str(self.data / "train")
        encode = ["tools/encode_shards.py", "--data", source, "--tokenizer", tokenizer, "--out", codes]
        self._process("generation", encode, makes=self.runs / "codes")
        options = ["--data", codes, *self._evaluation_on("seen"), "--tokenizer", tokenizer]
        self._stage("generation", "gen_pretrain", options, processes=PROCESSES)

    def _understanding(self) -> None:
        """A language model from text alone, its alignment with the tokenizer, then questions, the easier ones first."""
        sees = ["--data.images", str(self.runs / "codes"), "--tokenizer", str(self.runs / "decoder" / "model")]
        self._stage("language", "lm_pretrain", mixture(self.lessons, text=0.8, rare_text=0.2), processes=PROCESSES)
        begin = ["--language", str(self.runs / "language" / "model")]
        self._stage(
            "align", "mllm_align", ["--data", str(self.lessons["captions"]), *sees, *begin], processes=PROCESSES
        )
        begin = ["--continue_from", str(self.runs / "align" / "model")]
        data = mixture(self.lessons, questions=0.45, names=0.45, rare_text=0.1)
        self._stage("names", "mllm_sft", [*data, *sees, *begin], recipe="nano-names", processes=PROCESSES)
        begin = ["--continue_from", str(self.runs / "names" / "model")]
        data = mixture(self.lessons, corners=0.8, questions=0.2)
        self._stage("corners", "mllm_sft", [*data, *sees, *begin], recipe="nano-corners", processes=PROCESSES)
        begin = ["--continue_from", str(self.runs / "corners" / "model")]
        data = mixture(self.lessons, sides=0.7, questions=0.2, corners=0.1)
        self._stage("sides", "mllm_sft", [*data, *sees, *begin], recipe="nano-sides", processes=PROCESSES)
        begin = ["--continue_from", str(self.runs / "sides" / "model")]
        data = mixture(self.lessons, questions=0.4, relations=0.2, corners=0.1, rare_text=0.3)
        self._stage("sft", "mllm_sft", [*data, *sees, *begin], processes=PROCESSES)

    def _questions(self) -> UnderstandingEvaluationRecipe:
        recipe = load_recipe(UnderstandingEvaluationRecipe, RECIPES / "mllm_eval" / "nano.yaml")
        asked = dataclasses.replace(recipe.questions, questions_per_kind=12) if self.quick else recipe.questions
        return dataclasses.replace(recipe, model=str(self.runs / "sft" / "model"), questions=asked)

    def _painting(self) -> GenerationEvaluationRecipe:
        recipe = load_recipe(GenerationEvaluationRecipe, RECIPES / "gen_eval" / "nano.yaml")
        shapes = dataclasses.replace(recipe.shapes, prompts_per_kind=10) if self.quick else recipe.shapes
        return dataclasses.replace(recipe, model=str(self.runs / "generation" / "model"), shapes=shapes)

    def _stage(self, name: str, pipeline: str, options: list[str], *, recipe: str = "nano", processes: int = 1) -> None:
        """Run one pipeline as its own process or processes, as a reader would."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        words = [*(launcher if processes > 1 else []), "-m", f"pipelines.{pipeline}"]
        words += ["--recipe", recipe, "--output", str(self.runs / name), *options]
        words += LANGUAGE_PRECISION if name == "generation" or pipeline.startswith(("lm_", "mllm_")) else ()
        if self.quick_steps is not None:
            words += ["--train.steps", str(min(QUICK_STEPS[name], self.quick_steps))]
        self._process(name, words, makes=self.runs / name / "model", recipe=RECIPES / pipeline / f"{recipe}.yaml")

    def _process(self, name: str, words: list[str], *, makes: Path, recipe: Path | None = None) -> None:
        """Run a command, unless this very one has finished before and so have all commands before it."""
        print(f"\n$ python {shlex.join(words)}", flush=True)
        asked = {"command": words, "recipe": recipe.read_text() if recipe else None}
        if self.finished.include(makes, asked):
            print(f"finished before: {makes}", flush=True)
            return
        with self._timed(name):
            code = run_stage(words)
        if code == EXIT_STOPPED:
            raise StageStopped(name)
        if code:
            raise SystemExit(
                f"error: the stage {name!r} ended with exit code {code}; its messages are above. Where they speak of "
                f"another recipe or other settings, as after an update: remove {self._run_of(makes)} to make it anew"
            )
        self.finished.add(makes, asked)

    def _run_of(self, made: Path) -> Path:
        return self.runs / made.relative_to(self.runs).parts[0]

    def _evaluate(self, run: str, *folders: str, scenes: bool) -> EvaluationResult:
        result = evaluate(
            EvaluationRecipe(
                tokenizer=str(self.runs / run / "model"),
                data=EvaluationData(sources=tuple(SourceConfig(path=str(self.data / folder)) for folder in folders)),
                verifier="scenes" if scenes else "none",
            )
        )
        result.save(self.runs / "evaluation" / "-".join([run, *folders]))
        return result

    def _finish(
        self, results: dict[str, EvaluationResult], painted: CompositionalResult, answered: QuestionResult
    ) -> int:
        minutes = sum(self.seconds.values()) / 60
        metrics = {
            f"{prefix}.{name}": value
            for prefix, result in results.items()
            for name, value in result.metrics.items()
            if "/" not in name
        }
        for name in ("psnr", "lpips", "high_frequency_error"):
            metrics[f"decoder.{name}_base"] = results["tokenizer"].metrics[name]
        metrics |= {f"generation.{name}": value for name, value in painted.metrics.items() if "/" not in name}
        metrics |= {f"understanding.{name}": value for name, value in answered.metrics.items() if "/" not in name}
        metrics |= {f"minutes.{name}": seconds / 60 for name, seconds in self.seconds.items()}
        metrics |= {"minutes": minutes, "quick": self.quick}
        write_json(self.output / "metrics.json", metrics)
        page = write_report(
            self.output / "report.html",
            runs=self.runs,
            results=results,
            painted=painted,
            answered=answered,
            metrics=metrics,
        )
        print(f"\n{minutes:.1f} minutes in all. Open {page}; the numbers are in {self.output / 'metrics.json'}")
        goals = missed_goals(metrics)
        if goals and not self.quick:
            print(f"goals not reached yet: {'; '.join(goals)}")
        missed = missed_gates(metrics)
        if missed and not self.quick:
            print(f"quality gates missed: {'; '.join(missed)}", file=sys.stderr)
            print(
                "everything ran and the page is complete; only the quality is below what it should be", file=sys.stderr
            )
            return 1
        return 0

    @contextmanager
    def _timed(self, name: str):
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            write_json(self.timing_path, self.seconds)


def mixture(files: Mapping[str, Path], **weights: float) -> list[str]:
    """The option that reads some of these files, each with its weight."""
    sources = [{"path": str(files[name]), "weight": weight} for name, weight in weights.items()]
    return ["--data.sources", json.dumps(sources)]


if __name__ == "__main__":
    run_command(main)
