"""Evaluation of a trained tokenizer: which pictures, which measures, which protocol, on how many ranks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tokenflow.config import read_json
from tokenflow.data import DataConfig, EvaluationBatches, SourceConfig, TooManyBadSamples
from tokenflow.data.sources import SkippedSample
from tokenflow.evaluation import paper_table, partial
from tokenflow.evaluation.evaluate import EvaluationProtocol, EvaluationResult, TokenizerEvaluation
from tokenflow.evaluation.measure import NotMeasured, write_atomic
from tokenflow.evaluation.progress import EvaluationProgress
from tokenflow.evaluation.scenes import verify_scenes
from tokenflow.evaluation.weights import INCEPTION_FILE, find_weights, load_inception, load_lpips
from tokenflow.nn.fingerprint import fingerprint
from tokenflow.tasks.evaluation_folder import agreed_state
from tokenflow.tasks.tokenizer_recipe import TeacherChoice
from tokenflow.tokenizer.losses import VGG16_FILE
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import build_teacher
from tokenflow.train import distributed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The reference pictures."""

    sources: tuple[SourceConfig, ...]
    """Shards or folders; `--data PATH` sets one."""
    count: int | None = None
    """The first so many, in order; all when null."""
    batch_size: int = 32
    """Pictures a rank holds at once; changes no result."""
    num_workers: int = 0
    """Processes that read and decode, a rank; changes no result."""
    max_bad_fraction: float = 0.01
    """Share of unusable pictures above which it ends; fewer (or 10) are left out, and the result says so."""

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"data.count {self.count}; expected at least 1, or null for all")
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction {self.max_bad_fraction} is a share; expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """One evaluation, whole."""

    tokenizer: str
    """Folder or hub id for `TokenFlowTokenizer.from_pretrained`."""
    data: EvaluationData
    """The reference pictures."""
    name: str = "tokenizer-evaluation"
    """Names the output folder."""
    image_size: int | None = None
    """The size that the tokenizer must have, for a protocol that fixes it; any when null."""
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
    save_every_seconds: float = 60.0
    """How often a rank saves its sums, so that a killed evaluation continues; 0 is after every batch."""

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ValueError(f"pictures {self.pictures}; expected at least 1 for the grid")
        if not self.save_every_seconds >= 0:
            raise ValueError(f"save_every_seconds is {self.save_every_seconds}; expected 0 (every batch) or more")


def evaluate(recipe: EvaluationRecipe) -> EvaluationResult:
    """Run it on all ranks; the result is the same on each but for the pictures shown. Every rank calls it.

    Raises ValueError where tokenizer, pictures or weights are not what the recipe says.
    """
    return _Job(recipe).run(None)


def evaluate_into(recipe: EvaluationRecipe, folder: Path, *, resume: str = "auto") -> dict[str, Any]:
    """As `evaluate`, with `result.json`, `result.md` and `grid.png` in `folder`; returns what `result.json` holds.

    With `resume="auto"` a killed evaluation continues from its `partial/` files and ends in the very same result; one
    that is finished is not run again; another one in the folder (other weights, pictures or protocol, or unfinished
    on another number of ranks) is an error that names the difference. `resume="none"` starts anew and replaces it.

    Raises ValueError as `evaluate` does, and for another evaluation in the folder.
    """
    job = _Job(recipe)
    fingerprint = job.fingerprint()
    if agreed_state(folder, fingerprint, resume=resume) == "finished":
        logger.info("%s holds this evaluation, finished; --resume none takes it again", folder)
        # Other machines need not see rank 0's folder.
        saved = json.dumps(read_json(folder / "result.json")) if distributed.is_main_process() else None
        return json.loads(distributed.broadcast_text(saved))
    file = partial.PartialFile(
        folder, fingerprint=fingerprint, rank=distributed.rank(), every_seconds=recipe.save_every_seconds
    )
    result = job.run(file)
    result.notes["fingerprint"] = fingerprint
    result.notes["paper_rows"] = paper_table.beside_ours(
        name="/".join(Path(recipe.tokenizer).parts[-2:]),
        metrics=result.metrics,
        images=result.protocol["images"],
        image_size=result.protocol["image_size"],
        scales=result.scales,
    )
    if distributed.is_main_process():
        write_atomic(folder / "result.md", _markdown(recipe, result))
        result.save(folder)
    distributed.barrier()
    file.remove()
    distributed.barrier()
    if distributed.is_main_process():
        partial.discard(folder)
    return result.content()


class _Job:
    """What a recipe names, opened: tokenizer, batches, measures."""

    def __init__(self, recipe: EvaluationRecipe) -> None:
        self.recipe = recipe
        self.device = distributed.device()
        self.tokenizer = TokenFlowTokenizer.from_pretrained(recipe.tokenizer).eval().to(self.device)
        size = self.tokenizer.config.image_size
        if recipe.image_size not in (None, size):
            raise ValueError(
                f"the recipe {recipe.name!r} expects image_size {recipe.image_size}, the tokenizer "
                f"{recipe.tokenizer!r} has {size}. Evaluate it with a recipe for {size}, or give --image_size null."
            )
        self.batches = EvaluationBatches(
            DataConfig(
                sources=recipe.data.sources,
                image_size=size,
                records=recipe.verifier == "scenes",
                max_bad_fraction=recipe.data.max_bad_fraction,
            ),
            count=recipe.data.count,
            batch_size=recipe.data.batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            num_workers=recipe.data.num_workers,
        )
        self.teacher = _on_all_ranks(_load_teacher(recipe, self.tokenizer))
        self.perceptual = _on_all_ranks(load_lpips(recipe.lpips_weights, self.device))
        self.inception = _on_all_ranks(load_inception(recipe.inception_weights, self.device))

    def evaluation(self) -> TokenizerEvaluation:
        """The measures, nothing counted yet."""
        recipe = self.recipe
        names = ", ".join(source.path for source in recipe.data.sources)
        return TokenizerEvaluation(
            self.tokenizer,
            teacher=self.teacher,
            perceptual=self.perceptual,
            inception=self.inception,
            device=self.device,
            verifier=verify_scenes if recipe.verifier == "scenes" else None,
            protocol=EvaluationProtocol(
                reference=f"the first {self.batches.count} pictures of {names}, in order",
                crop="ADM centre crop: halved with BOX while twice the size, BICUBIC, integer centre crop",
                rounding=recipe.rounding,
                reference_rounding=recipe.reference_rounding,
            ),
            pictures=recipe.pictures,
        )

    def run(self, file: partial.PartialFile | None) -> EvaluationResult:
        """All batches of this rank from the first that is not counted in `file`, then the sums of all ranks."""
        evaluation = self.evaluation()
        try:
            self._count(evaluation, file)
        except TooManyBadSamples as error:
            raise ValueError(f"{error} (--data.max_bad_fraction)") from error
        note = "; ".join(text for text in _from_all_ranks(self.batches.skipped_note()) if text)
        if not int(distributed.sum_over_ranks(evaluation.images)):
            raise ValueError(f"none of the {self.batches.count} pictures can be used, expected at least 2: {note}")
        result = evaluation.compute(distributed.sum_over_ranks)
        result.protocol["left_out"] = note or "none"
        return result

    def _count(self, evaluation: TokenizerEvaluation, file: partial.PartialFile | None) -> None:
        batches, first, skipped = self.batches, 0, []
        saved = file.load(self.device) if file else None
        if saved is not None:
            evaluation.load_state_dict(saved.evaluation)
            first = saved.batches
            skipped = [SkippedSample(key=key, where=where, reason=reason) for key, where, reason in saved.skipped]
        images = batches.batch_size * batches.world_size
        done = min(first * images, batches.count)
        with EvaluationProgress(batches.count, done=done, active=distributed.is_main_process()) as progress:
            for counted, batch in enumerate(batches.starting_at(first, skipped=skipped), start=first + 1):
                evaluation.update(batch)
                # The other ranks are about as far: they have equally many batches.
                progress.update(counted * images)
                if file and counted < len(batches):
                    file.save_if_due(lambda counted=counted: self._saved(evaluation, batches=counted))

    def _saved(self, evaluation: TokenizerEvaluation, *, batches: int) -> partial.Saved:
        skipped = [[item.key, item.where, item.reason] for item in self.batches.skipped]
        return partial.Saved(batches=batches, evaluation=evaluation.state_dict(), skipped=skipped)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the numbers, by name; the same on every rank. Every rank calls it."""
        recipe = self.recipe
        teacher = self.teacher
        own = {
            "tokenizer": fingerprint(self.tokenizer),
            "sources": [source.path for source in recipe.data.sources],
            "pictures": self.batches.stamp(),
            "count": self.batches.count,
            "image_size": self.tokenizer.config.image_size,
            "max_bad_fraction": recipe.data.max_bad_fraction,
            "rounding": recipe.rounding,
            "reference_rounding": recipe.reference_rounding,
            "verifier": recipe.verifier,
            "shown": recipe.pictures,
            "teacher": fingerprint(teacher) if isinstance(teacher, torch.nn.Module) else "not measured",
            "lpips": _weights_stamp(self.perceptual, find_weights(VGG16_FILE, recipe.lpips_weights)),
            "rfid": _weights_stamp(self.inception, find_weights(INCEPTION_FILE, recipe.inception_weights)),
            "device": self.device.type,
            "versions": {"torch": torch.__version__},
            "batch_size": recipe.data.batch_size,
            "world_size": distributed.world_size(),
        }
        return json.loads(distributed.broadcast_text(json.dumps(own)))


def _markdown(recipe: EvaluationRecipe, result: EvaluationResult) -> str:
    values = "\n".join(
        f"| {name} | {value if isinstance(value, str) else f'{value:.4f}'} |" for name, value in result.metrics.items()
    )
    protocol = "\n".join(f"- {name}: {value}" for name, value in result.protocol.items())
    table = paper_table.as_markdown(result.notes["paper_rows"])
    return (
        f"# {recipe.name}: {recipe.tokenizer}\n\n| measure | value |\n| --- | ---: |\n{values}\n\n"
        f"## Beside the paper\n\n{table}\n## Protocol\n\n{protocol}\n"
    )


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


def _from_all_ranks(text: str, *, length: int = 1000) -> list[str]:
    """Every rank's text, cut to `length` bytes, on every rank."""
    content = text.encode()[:length]
    table = torch.zeros(distributed.world_size(), length, dtype=torch.int64)
    table[distributed.rank(), : len(content)] = torch.tensor(list(content), dtype=torch.int64)
    rows = distributed.sum_over_ranks(table).tolist()
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def _weights_stamp(measure: Callable | NotMeasured, path: Path | None) -> str:
    if isinstance(measure, NotMeasured) or path is None:
        return "not measured"
    return f"{path.name}, {path.stat().st_size} bytes"
