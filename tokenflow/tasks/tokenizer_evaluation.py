"""Evaluation of a trained tokenizer: which pictures, which measures, which protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from tokenflow.data import DataConfig, EvaluationBatches, SourceConfig
from tokenflow.evaluation.evaluate import EvaluationProtocol, EvaluationResult, evaluate_tokenizer
from tokenflow.evaluation.measure import NotMeasured
from tokenflow.evaluation.scenes import verify_scenes
from tokenflow.evaluation.weights import load_inception, load_lpips
from tokenflow.tasks.tokenizer_recipe import TeacherChoice
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import build_teacher
from tokenflow.train import distributed


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The reference pictures."""

    sources: tuple[SourceConfig, ...]
    """Shards or folders; `--data PATH` sets one."""
    count: int | None = None
    """The first so many, in order; all when null."""
    batch_size: int = 32
    """Pictures a rank holds at once; changes no result."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """One evaluation, whole."""

    tokenizer: str
    """Folder or hub id for `TokenFlowTokenizer.from_pretrained`."""
    data: EvaluationData
    """The reference pictures."""
    name: str = "tokenizer-evaluation"
    """Names the output folder."""
    teacher: TeacherChoice | None = None
    """In whose feature space the Frechet distance is taken; when null, the one that the tokenizer was trained with."""
    lpips_weights: str | None = None
    """VGG-16 for LPIPS; torch hub's cache when null, else "not measured"."""
    inception_weights: str | None = None
    """Inception-v3 for rFID; torch hub's cache when null, else "not measured"."""
    rounding: Literal["round", "trunc", "floor"] = "round"
    """How reconstructions become uint8; the authors' script truncates."""
    reference_rounding: Literal["round", "trunc", "floor"] = "round"
    """How originals become uint8; the authors' script floors."""
    verifier: Literal["none", "scenes"] = "none"
    """`scenes` reads the built-in world's objects back from the reconstructions."""
    pictures: int = 16
    """Pictures in the grid."""


def evaluate(recipe: EvaluationRecipe) -> EvaluationResult:
    """Run it on all ranks; the result is the same on each but for the pictures shown. Every rank calls it."""
    device = distributed.device()
    tokenizer = TokenFlowTokenizer.from_pretrained(recipe.tokenizer).eval().to(device)
    batches = EvaluationBatches(
        DataConfig(
            sources=recipe.data.sources,
            image_size=tokenizer.config.image_size,
            records=recipe.verifier == "scenes",
        ),
        count=recipe.data.count,
        batch_size=recipe.data.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    names = ", ".join(source.path for source in recipe.data.sources)
    result = evaluate_tokenizer(
        tokenizer,
        batches,
        teacher=_on_all_ranks(_load_teacher(recipe, tokenizer)),
        perceptual=_on_all_ranks(load_lpips(recipe.lpips_weights, device)),
        inception=_on_all_ranks(load_inception(recipe.inception_weights, device)),
        device=device,
        all_reduce=distributed.sum_over_ranks,
        verifier=verify_scenes if recipe.verifier == "scenes" else None,
        protocol=EvaluationProtocol(
            reference=f"the first {batches.count} pictures of {names}, in order",
            crop="ADM centre crop: halved with BOX while twice the size, BICUBIC, integer centre crop",
            rounding=recipe.rounding,
            reference_rounding=recipe.reference_rounding,
        ),
        pictures=recipe.pictures,
    )
    result.protocol["left_out"] = batches.skipped_note() or "none"
    return result


def _load_teacher(recipe: EvaluationRecipe, tokenizer: TokenFlowTokenizer) -> Callable | NotMeasured:
    """The teacher that the recipe names (an error when it cannot be had), else the tokenizer's own if it can be had."""
    device = distributed.device()
    if recipe.teacher is not None:
        config = recipe.teacher.config("")
        if config is None:
            raise ValueError("teacher.pretrained is given without teacher.preset. Name the preset, such as nano.")
        return build_teacher(config).to(device)
    if tokenizer.teacher is None:
        return NotMeasured("the tokenizer's config.json names no teacher: give --teacher.preset")
    try:
        return build_teacher(tokenizer.teacher).to(device)
    except OSError as error:
        return NotMeasured(f"the teacher that it was trained with cannot be had ({error}): give --teacher.pretrained")


def _on_all_ranks(measure: Callable | NotMeasured) -> Callable | NotMeasured:
    """A measure that every rank can take, or on every rank none: reductions must pair up."""
    missing = torch.tensor(float(isinstance(measure, NotMeasured)), device=distributed.device())
    ranks = int(distributed.sum_over_ranks(missing))
    if ranks == 0 or isinstance(measure, NotMeasured):
        return measure
    return NotMeasured(f"its weights are missing on {ranks} of {distributed.world_size()} ranks")
