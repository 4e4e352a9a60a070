"""What an evaluation of a text-to-image model consists of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenflow.evaluation.benchmark_pictures import DPG_PICTURES
from tokenflow.evaluation.colour_names import ColourRule
from tokenflow.evaluation.compositional import CompositionalPlan
from tokenflow.evaluation.detectors import SUGGESTED
from tokenflow.evaluation.painting import Sampling
from tokenflow.evaluation.prompt_rewriting import RewritingConfig


@dataclass(frozen=True, kw_only=True)
class BenchmarkChoice:
    """Prompts of GenEval or DPG-Bench, and how many pictures."""

    prompts: str | None = None
    """GenEval's evaluation_metadata.jsonl, or DPG-Bench's folder of prompts."""
    count: int | None = None
    """The first so many prompts; all when null, as published figures use."""
    images_per_prompt: int = 4
    """Pictures of each prompt; 4 in both benchmarks."""
    batch_size: int = 4
    """Pictures of one prompt painted at once; changes no result."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("images_per_prompt", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"benchmark.{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class DetectorChoice:
    """What finds objects and names colours for GenEval's rules."""

    model: str | None = SUGGESTED
    """Folder or hub id of a transformers detector; "not measured" where it cannot be had."""
    colours: ColourRule = "clip"
    """`clip`: zero-shot CLIP as in GenEval; `palette`: the nearest of some fixed shades, which needs no weights."""
    clip_model: str = "ViT-L-14"
    """open_clip's name of the CLIP."""
    clip_weights: str | None = None
    """Its weights; OpenAI's from open_clip's cache or hub when null."""


@dataclass(frozen=True, kw_only=True)
class RewardChoice:
    """ImageReward beside the benchmark's own score."""

    use: Literal["installed", "no"] = "installed"
    """`installed`: where the package is there."""
    weights: str | None = None
    """Its weights; the package's cache when null."""


@dataclass(frozen=True, kw_only=True)
class GenerationEvaluationRecipe:
    """One evaluation, whole."""

    model: str
    """Folder or hub id for `TextToImage.from_pretrained`."""
    name: str = "generation-evaluation"
    """Names the output folder."""
    of: Literal["shapes", "geneval", "dpg"] = "shapes"
    """`shapes`: the built-in world under its exact verifier; `geneval`, `dpg`: pictures for the official evaluators."""
    tokenizer: str | None = None
    """Image tokenizer in place of the one that the model's folder holds or names, for example with another decoder."""
    precision: Literal["file", "fp32", "bf16"] = "file"
    """Of the transformer; `file` keeps that of its weights."""
    sampling: Sampling = field(default_factory=Sampling)
    """How pictures are sampled."""
    shapes: CompositionalPlan = field(default_factory=CompositionalPlan)
    """Prompts and comparisons of `shapes`."""
    benchmark: BenchmarkChoice = field(default_factory=BenchmarkChoice)
    """Prompts of `geneval` and `dpg`."""
    rewriting: RewritingConfig = field(default_factory=RewritingConfig)
    """Rewrites the prompts of `geneval` and `dpg` first."""
    detector: DetectorChoice = field(default_factory=DetectorChoice)
    """Scores `geneval`."""
    image_reward: RewardChoice = field(default_factory=RewardChoice)
    """Scores `geneval` and `dpg`."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.of != "shapes" and not self.benchmark.prompts:
            what = "GenEval's evaluation_metadata.jsonl" if self.of == "geneval" else "DPG-Bench's dpg_bench/prompts"
            raise ValueError(f"of is {self.of!r} and benchmark.prompts is not given; give --benchmark.prompts {what}")
        if self.of == "dpg" and self.benchmark.images_per_prompt not in (1, DPG_PICTURES):
            raise ValueError(
                f"benchmark.images_per_prompt is {self.benchmark.images_per_prompt}; DPG-Bench takes {DPG_PICTURES} "
                "(2 x 2, recommended) or 1"
            )
        if self.of == "shapes" and self.rewriting.by != "nobody":
            raise ValueError("rewriting is for geneval and dpg; the built-in world's prompts are exact as they are")
