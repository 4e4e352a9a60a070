"""What should a language model see? Tables 1, 8 and 9 in small: `make ablation`, then open runs/ablation/report.html.

One small language model learns to answer the built-in world's questions, by the same recipes, from TokenFlow's codes,
from those of tokenizers with a pixel or a semantic codebook alone, and from the teacher's continuous features. World,
teacher and tokenizer are the demo's. Interrupted, the next `make ablation` continues where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from pipelines.demo import EVALUATION_SCENES, IMAGE_SIZE, PROCESSES, TRAINING_SCENES, mixture
from pipelines.stages import StageStopped, ending_together, run_stage
from tokenflow.config import read_json, run_command
from tokenflow.data import write_shapes
from tokenflow.data.world_conversations import write_lessons
from tokenflow.evaluation.ablation_table import (
    VARIANTS,
    Variant,
    ablation_markdown,
    ablation_metrics,
    ablation_section,
    ablation_text,
    missed_lead,
    summarise,
)
from tokenflow.evaluation.measure import write_atomic, write_json
from tokenflow.evaluation.question_answering import QuestionPlan
from tokenflow.evaluation.report import Report
from tokenflow.tasks.understanding_evaluation import UnderstandingEvaluationRecipe, evaluate_into
from tokenflow.tokenizer.teachers import is_teacher_folder
from tokenflow.train import EXIT_STOPPED, distributed

QUICK_SCENES = 256
QUICK_STEPS = 4
# Fewer than the recipe's, so that fifteen tunings take about an hour.
TUNING_STEPS = 600
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Where a variant's features come from."""

    tower: str
    """`tokenizer`, `teacher`, `pixel_only` or `semantic_only`."""
    features: str
    """As the recipes call it."""


SIGHTS: dict[Variant, Sight] = {
    "tokenflow": Sight(tower="tokenizer", features="last_scale"),
    "pixel_only": Sight(tower="pixel_only", features="last_scale"),
    "semantic_only": Sight(tower="semantic_only", features="last_scale"),
    "teacher": Sight(tower="teacher", features="teacher"),
    "all_scales": Sight(tower="tokenizer", features="all_scales"),
    "residuals": Sight(tower="tokenizer", features="residuals"),
    "semantic": Sight(tower="tokenizer", features="semantic"),
}
OVER_SEEDS: tuple[Variant, ...] = ("tokenflow", "pixel_only", "semantic_only", "teacher")
"""Variants that have all seeds; the others have the first one only, unless asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train and ask all variants, write the table; 1 when TokenFlow is not ahead, 75 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="where everything goes")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="whose world, teacher and tokenizer serve")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--full", action="store_true", help="all seeds for the further rows of Table 8, too")
    extent.add_argument("--quick", action="store_true", help="one seed, a few steps: the files, without the quality")
    arguments = parser.parse_args(argv)
    ablation = Ablation(arguments.output, demo=arguments.demo, full=arguments.full, quick=arguments.quick)
    try:
        with ending_together():
            return ablation.run()
    except (KeyboardInterrupt, StageStopped):
        print("\nstopped; run the same command again to continue where it was", file=sys.stderr)
        return EXIT_STOPPED


class Ablation:
    """The stages, and the seconds each of them took over all attempts."""

    def __init__(self, output: Path, *, demo: Path, full: bool, quick: bool) -> None:
        self.output, self.quick = output, quick
        # Few steps make other runs: nothing of theirs may be taken for the demo's or continued by a long run.
        self.runs = output / "quick" if quick else output
        self.demo = self.runs / "demo" if quick else demo
        self.data, self.texts = self.demo / "data", self.runs / "conversations"
        self.scenes = QUICK_SCENES if quick else TRAINING_SCENES
        seeds = SEEDS[:1] if quick else SEEDS
        self.seeds = {name: seeds if full or name in OVER_SEEDS else seeds[:1] for name in VARIANTS}
        self.towers = {
            "teacher": self.demo / "teacher" / "model",
            "tokenizer": self.demo / "tokenizer" / "model",
            "pixel_only": self.runs / "pixel_only" / "model",
            "semantic_only": self.runs / "semantic_only" / "model",
        }
        self.timing_path = self.runs / "timing.json"
        self.seconds: dict[str, float] = read_json(self.timing_path) if self.timing_path.exists() else {}
        self._lock = Lock()

    def run(self) -> int:
        """All stages, the table, the gate."""
        began = time.monotonic()
        self._draw_world()
        self._stage("teacher_pretrain", "nano", self.towers["teacher"].parent, ["--data", str(self.data / "train")])
        self._at_once([self._tokenizers, self._language])
        chains = [(name, seed) for name in VARIANTS for seed in self.seeds[name]]
        self._at_once([lambda chain=chain: self._see(*chain) for chain in chains])
        distributed.initialize()
        summaries = summarise(
            {name: [self._ask(name, seed)["metrics"] for seed in self.seeds[name]] for name in VARIANTS}
        )
        self._add_seconds("all", time.monotonic() - began)
        return self._finish(summaries)

    def _draw_world(self) -> None:
        write_shapes(self.data / "train", num_samples=self.scenes, image_size=IMAGE_SIZE, seed=0, split="train")
        write_shapes(
            self.data / "seen", num_samples=min(self.scenes, EVALUATION_SCENES), image_size=IMAGE_SIZE, seed=1,
            split="seen",
        )  # fmt: skip
        self.lessons = write_lessons(self.texts, num_scenes=self.scenes, seed=0)

    def _tokenizers(self) -> None:
        """The demo's tokenizer, if it is not there yet, and those of one codebook; the same data and steps."""
        teacher = str(self.towers["teacher"])
        common = ["--data", str(self.data / "train"), "--evaluation_sources", f'[{{"path": "{self.data / "seen"}"}}]']
        common += ["--teacher.pretrained", teacher]
        semantic = [*common, "--model.pretrained", teacher]
        for name, recipe, options in (
            ("tokenizer", "nano", semantic),
            ("pixel_only", "nano-pixel-only", common),
            ("semantic_only", "nano-semantic-only", semantic),
        ):
            self._stage("tokenizer_pretrain", recipe, self.towers[name].parent, options)

    def _language(self) -> None:
        self._stage("lm_pretrain", "nano", self.runs / "language", mixture(self.lessons, text=0.8, rare_text=0.2))

    def _see(self, variant: Variant, seed: int) -> None:
        """Alignment and tuning of one variant with one seed."""
        folder, sight = self._folder(variant, seed), SIGHTS[variant]
        common = ["--tokenizer", str(self.towers[sight.tower]), "--model.features", sight.features]
        # features of all scales lie on no grid; the rows are to differ in features alone
        common += ["--model.coordinates", "0", "--model.neighbourhood", "1", "--model.rotary", "sequence"]
        common += ["--data.images", str(self.data / "train"), "--train.seed", str(seed), "--tracking.mlflow", "false"]
        if self._complete(folder / "tuning"):
            return
        language = ["--language", str(self.runs / "language" / "model"), "--data", str(self.lessons["captions"])]
        self._stage("mllm_align", "nano", folder / "alignment", [*common, *language])
        start = ["--continue_from", str(folder / "alignment" / "model")]
        data = mixture(self.lessons, questions=0.45, names=0.45, rare_text=0.1)
        steps = ["--train.steps", str(TUNING_STEPS)]
        self._stage("mllm_sft", "nano-names", folder / "tuning", [*common, *start, *data, *steps])

    def _ask(self, variant: Variant, seed: int) -> dict[str, Any]:
        folder = self._folder(variant, seed)
        questions = QuestionPlan(questions_per_kind=2 if self.quick else 100, image_size=IMAGE_SIZE)
        recipe = UnderstandingEvaluationRecipe(model=str(folder / "tuning" / "model"), questions=questions)
        return evaluate_into(recipe, folder / "evaluation")

    def _folder(self, variant: Variant, seed: int) -> Path:
        return self.runs / variant / f"seed-{seed}"

    def _stage(self, pipeline: str, recipe: str, folder: Path, options: list[str]) -> None:
        """Run one pipeline as its own process, as a reader would, unless what it exports is there."""
        if self._complete(folder):
            return
        words = ["-m", f"pipelines.{pipeline}", "--recipe", recipe, "--output", str(folder), *options]
        words += ["--train.steps", str(QUICK_STEPS)] if self.quick else []
        print(f"\n$ python {shlex.join(words)}", flush=True)
        began = time.monotonic()
        code = run_stage(words, environment=os.environ | {"OMP_NUM_THREADS": "1"})
        self._add_seconds(pipeline, time.monotonic() - began)
        if code == EXIT_STOPPED:
            raise StageStopped(pipeline)
        if code:
            raise OSError(f"{pipeline} of {folder} ended with exit code {code}; its messages are above")

    @staticmethod
    def _complete(folder: Path) -> bool:
        """Whether a stage exported its model: every writer puts its description in place last."""
        return (folder / "model" / "config.json").is_file() or is_teacher_folder(folder / "model")

    def _at_once(self, jobs: Sequence[Callable[[], None]]) -> None:
        """A few jobs at a time; the first that fails, or Ctrl-C, keeps the waiting ones from starting."""
        pool = ThreadPoolExecutor(PROCESSES)
        try:
            for job in [pool.submit(job) for job in jobs]:
                job.result()
        finally:
            # After Ctrl-C the running stages, which got it too, save and end by themselves.
            pool.shutdown(cancel_futures=True)

    def _add_seconds(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            write_json(self.timing_path, self.seconds)

    def _finish(self, summaries: Any) -> int:
        metrics: dict[str, Any] = ablation_metrics(summaries)
        metrics |= {f"minutes.{name}": seconds / 60 for name, seconds in self.seconds.items() if name != "all"}
        metrics |= {"minutes": self.seconds["all"] / 60, "seeds": len(self.seeds["tokenflow"]), "quick": self.quick}
        protocol = _protocol(self.seeds)
        write_json(self.output / "metrics.json", metrics)
        write_atomic(self.output / "result.md", ablation_markdown(summaries, protocol=protocol))
        report = Report("TokenFlow: what the language model sees", "few steps only" if self.quick else "")
        ablation_section(report, summaries, protocol=protocol)
        page = report.save(self.output / "report.html")
        print(f"\n{ablation_text(summaries)}\n\nOpen {page}; the numbers are in {self.output / 'metrics.json'}")
        missed = missed_lead(summaries)
        if missed and not self.quick:
            print(f"not as in the paper: {missed}", file=sys.stderr)
            return 1
        return 0


def _protocol(seeds: dict[Variant, tuple[int, ...]]) -> dict[str, str]:
    return {
        "language model": "one, from lm_pretrain's nano recipe; alignment by nano, the first tuning "
        "(nano-names) alone, for all rows",
        "seeds": ", ".join(f"{name} {len(found)}" for name, found in seeds.items())
        + "; of projector, data order of alignment and tuning; each tokenizer and the teacher were trained once",
        "pixel-only": "a tokenizer trained separately: nano's pixel branch (8 channels) and pixel decoder, no semantic "
        "branch; its perceptual loss is nano's, squared distance of the teacher's maps",
        "semantic-only": "a tokenizer trained separately: nano's semantic branch (16 channels) and semantic decoder, "
        "no pixel branch",
        "codes": "1,024 entries, scales 1, 2, 4, 8 in all three tokenizers, so an image is as many bits",
    }


if __name__ == "__main__":
    run_command(main)
