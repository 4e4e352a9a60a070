"""Evaluation of a multimodal model on the built-in world's questions; lmms-eval has the public benchmarks."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tokenflow import __version__
from tokenflow.config import read_json
from tokenflow.evaluation import partial
from tokenflow.evaluation.measure import write_atomic, write_json
from tokenflow.evaluation.progress import EvaluationProgress
from tokenflow.evaluation.question_answering import QuestionPlan, QuestionResult, answer_questions, score_answers
from tokenflow.evaluation.question_tables import questions_markdown, questions_text
from tokenflow.nn.fingerprint import fingerprint
from tokenflow.tasks.evaluation_folder import agreed_state
from tokenflow.train import distributed
from tokenflow.understanding.image_to_text import ImageToText

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UnderstandingEvaluationRecipe:
    """One evaluation, whole."""

    model: str
    """Folder or hub id for `ImageToText.from_pretrained`."""
    name: str = "understanding-evaluation"
    """Names the output folder."""
    tokenizer: str | None = None
    """Image tokenizer in place of the one that the model's folder holds or names."""
    max_new_tokens: int = 8
    """Tokens of an answer at most."""
    questions: QuestionPlan = field(default_factory=QuestionPlan)
    """What is asked."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")


class _Briefly:
    """Greedy answers of limited length."""

    def __init__(self, model: ImageToText, *, max_new_tokens: int, batch_size: int) -> None:
        self._model, self._options = model, {"max_new_tokens": max_new_tokens, "batch_size": batch_size}

    def answer(self, images: Any, questions: Any) -> list[str]:
        """One answer a question."""
        return self._model.answer(images, questions, **self._options)


def evaluate(recipe: UnderstandingEvaluationRecipe) -> QuestionResult:
    """The questions on this process alone, in memory."""
    return _ask(_load(recipe), recipe, folder=None)


def evaluate_into(recipe: UnderstandingEvaluationRecipe, folder: Path, *, resume: str = "auto") -> dict[str, Any]:
    """As `evaluate`, on all ranks, with `result.json` and `result.md` in `folder`, which they share.

    With `resume="auto"` a finished evaluation is not taken again, and of a killed one the ranks that were done are
    kept; another evaluation in the folder is an error that names the difference. Returns what `result.json` holds.
    """
    model = _load(recipe)
    own = fingerprint_of(model, recipe)
    if agreed_state(folder, own, resume=resume) == "finished":
        logger.info("%s holds this evaluation, finished; --resume none takes it again", folder)
        saved = json.dumps(read_json(folder / "result.json")) if distributed.is_main_process() else None
        return json.loads(distributed.broadcast_text(saved))
    result = _ask(model, recipe, folder=folder)
    protocol = {
        "model": recipe.model,
        "answers": f"greedy, {recipe.max_new_tokens} tokens at most",
        "error": "one standard error of the mean over questions, each about a picture of its own",
        "versions": {"tokenflow": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    content = {"metrics": result.metrics, "protocol": protocol, "fingerprint": own}
    if distributed.is_main_process():
        title = f"{recipe.name}: {recipe.model}"
        write_atomic(folder / "result.md", questions_markdown(result, title=title, protocol=protocol))
        write_json(folder / "result.json", content)
        partial.discard(folder)
    distributed.barrier()
    return {**content, "text": questions_text(result)}


def fingerprint_of(model: ImageToText, recipe: UnderstandingEvaluationRecipe) -> dict[str, Any]:
    """What decides the answers, by name; the same on every rank."""
    own = {
        "model": fingerprint(model.model),
        "tokenizer": fingerprint(model.tokenizer),
        "questions": asdict(recipe.questions),
        "max_new_tokens": recipe.max_new_tokens,
        "device": distributed.device().type,
        "world_size": distributed.world_size(),
        "versions": {"torch": torch.__version__},
    }
    return json.loads(distributed.broadcast_text(json.dumps(own)))


def _load(recipe: UnderstandingEvaluationRecipe) -> ImageToText:
    return ImageToText.from_pretrained(recipe.model, tokenizer=recipe.tokenizer).to(distributed.device())


def _ask(model: ImageToText, recipe: UnderstandingEvaluationRecipe, *, folder: Path | None) -> QuestionResult:
    plan = recipe.questions
    briefly = _Briefly(model, max_new_tokens=recipe.max_new_tokens, batch_size=plan.batch_size)
    rank, world_size = distributed.rank(), distributed.world_size()
    path = folder and folder / "partial" / f"answers_{rank:05d}.json"
    if path is None or not path.is_file():
        with EvaluationProgress(len(plan.questions()), active=distributed.is_main_process()) as progress:
            counter = _Counter(progress.update)
            found = answer_questions(briefly, plan, part=(rank, world_size), progress=counter)
        if path is None:
            return score_answers(plan, found)
        write_json(path, {str(place): answer for place, answer in found.items()})
    distributed.barrier()
    answers = [read_json(path.with_name(f"answers_{other:05d}.json")) for other in range(world_size)]
    distributed.barrier()
    return score_answers(plan, {int(place): answer for part in answers for place, answer in part.items()})


class _Counter:
    """Adds up the answers of this rank; the others are about as far."""

    def __init__(self, update: Any) -> None:
        self._done, self._update = 0, update

    def __call__(self, answers: int) -> None:
        self._done += answers * distributed.world_size()
        self._update(self._done)
