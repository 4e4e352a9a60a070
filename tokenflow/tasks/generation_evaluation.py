"""Evaluation of a text-to-image model: the built-in world here, official benchmarks in `generation_benchmarks`."""

from __future__ import annotations

import io
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenflow import __version__
from tokenflow.config import read_json
from tokenflow.evaluation import generation_tables, partial
from tokenflow.evaluation.compositional import (
    MARKS,
    SINGLE_STEP,
    CompositionalResult,
    judge,
    multi_steps,
    paint_gallery,
    paired_gain,
    score_setting,
)
from tokenflow.evaluation.measure import write_atomic, write_json
from tokenflow.evaluation.progress import EvaluationProgress
from tokenflow.generation.text_to_image import TextToImage
from tokenflow.nn.fingerprint import fingerprint
from tokenflow.tasks.evaluation_folder import agreed_state
from tokenflow.tasks.generation_evaluation_recipe import GenerationEvaluationRecipe
from tokenflow.train import distributed

logger = logging.getLogger(__name__)

VERIFIER = (
    "exact: connected regions off the grey axis, hue names the colour, best template names the shape; a picture is "
    "right when it holds the prompt's objects, no others, related as said"
)


def evaluate(recipe: GenerationEvaluationRecipe) -> CompositionalResult:
    """Prompts of the built-in world on all ranks, in memory; every rank calls it and gets the same numbers.

    Raises ValueError for a recipe of an official benchmark, which needs a folder: see `evaluate_into`.
    """
    if recipe.of != "shapes":
        raise ValueError(f"of is {recipe.of!r}; expected shapes here. Use evaluate_into, which writes the pictures.")
    return judge_shapes(load_model(recipe), recipe)


def evaluate_into(recipe: GenerationEvaluationRecipe, folder: Path, *, resume: str = "auto") -> dict[str, Any]:
    """As `evaluate`, for any recipe, with `result.json`, `result.md` and pictures in `folder`; ranks share the folder.

    With `resume="auto"` what is there already is kept: a killed evaluation goes on, pictures that are complete are not
    painted again. Another evaluation in the folder is an error that names the difference. `resume="none"` starts anew.
    Returns what `result.json` holds.
    """
    if recipe.of != "shapes":
        from tokenflow.tasks.generation_benchmarks import evaluate_benchmark

        return evaluate_benchmark(recipe, folder, resume=resume)
    model = load_model(recipe)
    plan = asdict(recipe.shapes)
    split = {"batch_size": plan.pop("batch_size"), "world_size": distributed.world_size()}
    fingerprint = {**model_fingerprint(model, recipe), "plan": plan, **split}
    if agreed_state(folder, fingerprint, resume=resume) == "finished":
        logger.info("%s holds this evaluation, finished; --resume none takes it again", folder)
        saved = json.dumps(read_json(folder / "result.json")) if distributed.is_main_process() else None
        return json.loads(distributed.broadcast_text(saved))
    result = judge_shapes(model, recipe, folder=folder)
    protocol = describe(recipe, verifier=VERIFIER)
    content = {
        "metrics": result.metrics,
        "table": result.rows(),
        "gallery": [
            {"prompt": row.prompt, "kind": row.kind, "split": row.split, "right": list(row.marks)}
            for row in result.gallery
        ],
        "protocol": protocol,
        "fingerprint": fingerprint,
    }
    if distributed.is_main_process():
        title = f"{recipe.name}: {recipe.model}"
        text = generation_tables.compositional_markdown(result, title=title, protocol=protocol)
        generation_tables.save_gallery(result.gallery, folder / "grid.png")
        write_atomic(folder / "result.md", text)
        write_json(folder / "result.json", content)
        partial.discard(folder)
    distributed.barrier()
    return {**content, "text": generation_tables.compositional_text(result)}


def load_model(recipe: GenerationEvaluationRecipe) -> TextToImage:
    """The recipe's model on this rank's device; ValueError for one that takes classes in place of texts."""
    model = TextToImage.from_pretrained(recipe.model, tokenizer=recipe.tokenizer)
    if model.text_tokenizer is None:
        raise ValueError(f"{recipe.model!r} paints classes; expected a model that is prompted by text")
    dtype = {"file": None, "fp32": torch.float32, "bf16": torch.bfloat16}[recipe.precision]
    if dtype is not None:
        model.generator.to(dtype)
    return model.to(distributed.device())


def judge_shapes(
    model: TextToImage, recipe: GenerationEvaluationRecipe, *, folder: Path | None = None
) -> CompositionalResult:
    """All settings of the plan on all ranks; in `folder`, each setting is kept as soon as it is judged."""
    plan, main = recipe.shapes, recipe.sampling
    settings = plan.settings(main)
    questions = [plan.asked(setting, main) for setting in settings]
    total = sum(map(len, questions)) * plan.images_per_prompt
    marks, done = [], 0
    with EvaluationProgress(total, active=distributed.is_main_process()) as progress:
        for number, (setting, asked) in enumerate(zip(settings, questions, strict=True)):
            counted = _Counter(done, progress.update)
            part = (distributed.rank(), distributed.world_size())
            path = folder and folder / "partial" / f"setting_{number:03d}_rank_{part[0]:05d}.npy"
            own = _load_marks(path)
            if own is None:
                own = judge(model, asked, setting, plan=plan, part=part, progress=counted)
                _save_marks(path, own)
            marks.append(_over_ranks(own))
            done += len(asked) * plan.images_per_prompt
    scores = [score_setting(*parts) for parts in zip(questions, marks, settings, strict=True)]
    found = {(setting.steps, setting.guidance_scale): number for number, setting in reversed(list(enumerate(settings)))}
    single = found.get((SINGLE_STEP, main.guidance_scale))
    multi = found.get((multi_steps(main), main.guidance_scale))
    gain = None
    if single is not None and multi is not None:
        gain = paired_gain(questions[multi], marks[single], marks[multi])
    return CompositionalResult(plan=plan, scores=scores, gain=gain, gallery=paint_gallery(model, plan, main))


def model_fingerprint(model: TextToImage, recipe: GenerationEvaluationRecipe) -> dict[str, Any]:
    """What decides the pictures, by name; the same on every rank."""
    own = {
        "generator": fingerprint(model.generator),
        "tokenizer": fingerprint(model.tokenizer),
        "precision": str(model.generator.head.weight.dtype),
        "sampling": asdict(recipe.sampling),
        "device": distributed.device().type,
        "versions": {"torch": torch.__version__},
    }
    return json.loads(distributed.broadcast_text(json.dumps(own)))


def describe(recipe: GenerationEvaluationRecipe, **more: Any) -> dict[str, Any]:
    """The record that goes beside the numbers."""
    return {
        "model": recipe.model,
        "sampling": asdict(recipe.sampling),
        "precision": recipe.precision,
        "error": "one standard error of the mean over prompts; a prompt's pictures are one observation",
        **more,
        "versions": {"tokenflow": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


class _Counter:
    """Adds up the pictures of this rank; the others are about as far."""

    def __init__(self, done: int, update: Callable[[int], None]) -> None:
        self.done, self._update = done, update

    def __call__(self, pictures: int) -> None:
        self.done += pictures * distributed.world_size()
        self._update(self.done)


def _over_ranks(marks: MARKS) -> MARKS:
    summed = distributed.sum_over_ranks(torch.from_numpy(marks).to(torch.int64).to(distributed.device()))
    return summed.cpu().numpy().astype(np.int8)


def _load_marks(path: Path | None) -> MARKS | None:
    return np.load(path) if path is not None and path.is_file() else None


def _save_marks(path: Path | None, marks: MARKS) -> None:
    if path is None:
        return
    buffer = io.BytesIO()
    np.save(buffer, marks)
    write_atomic(path, buffer.getvalue())
