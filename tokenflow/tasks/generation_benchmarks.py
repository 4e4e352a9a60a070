"""GenEval and DPG-Bench: pictures in the folders that their evaluators take, and what can be scored here.

In the output folder: `images/` (for the official evaluator), `prompts.jsonl` (when rewritten), `scores/` (one file a
prompt), `result.json`, `result.md`. Ranks share the folder and take every so many prompts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tokenflow.evaluation import paper_generation, partial
from tokenflow.evaluation.benchmark_pictures import (
    BenchmarkPrompt,
    DpgLayout,
    GenEvalLayout,
    Layout,
    paint_benchmark,
    read_dpg,
    read_geneval,
)
from tokenflow.evaluation.colour_names import PictureColours, load_colours
from tokenflow.evaluation.detectors import Detector, load_detector
from tokenflow.evaluation.geneval_score import judge, summarise
from tokenflow.evaluation.image_reward import Reward, load_image_reward
from tokenflow.evaluation.measure import NOT_MEASURED, NotMeasured, write_atomic, write_json
from tokenflow.evaluation.progress import EvaluationProgress
from tokenflow.evaluation.prompt_rewriting import build_rewriter, rewrite_all
from tokenflow.evaluation.shares import share
from tokenflow.tasks.evaluation_folder import agreed_state
from tokenflow.tasks.generation_evaluation import describe, load_model, model_fingerprint
from tokenflow.tasks.generation_evaluation_recipe import GenerationEvaluationRecipe
from tokenflow.train import distributed

OFFICIAL = {
    "geneval": "python evaluation/evaluate_images.py IMAGES --outfile results.jsonl --model-path DETECTOR, in "
    "GenEval's repository",
    "dpg": "bash dpg_bench/dist_eval.sh IMAGES RESOLUTION, in ELLA's repository (mPLUG through modelscope)",
}
"""How the official score is taken."""


def evaluate_benchmark(recipe: GenerationEvaluationRecipe, folder: Path, *, resume: str) -> dict[str, Any]:
    """Rewrite, paint, score; see `generation_evaluation.evaluate_into`."""
    prompts = _read(recipe)
    model = load_model(recipe)
    fingerprint = model_fingerprint(model, recipe) | {
        "of": recipe.of,
        "prompts": hashlib.sha256(json.dumps(_texts(prompts)).encode()).hexdigest()[:32],
        "images_per_prompt": recipe.benchmark.images_per_prompt,
        "rewriting": _rewriter_name(recipe),
    }
    agreed_state(folder, fingerprint, resume=resume, begin=lambda: _clear(folder, resume=resume))
    prompts = _rewritten(recipe, prompts, folder)
    layout: Layout = (
        GenEvalLayout(folder / "images", recipe.benchmark.images_per_prompt)
        if recipe.of == "geneval"
        else DpgLayout(folder / "images")
    )
    _paint(model, prompts, layout, recipe)
    size = model.tokenizer.config.image_size
    del model
    scorers = _Scorers(recipe)
    _score(scorers, prompts, layout, folder)
    distributed.barrier()
    content = _content(recipe, scorers, prompts, folder, image_size=size)
    content["fingerprint"] = fingerprint
    if distributed.is_main_process():
        write_atomic(folder / "result.md", _markdown(recipe, content))
        write_json(folder / "result.json", content)
        partial.discard(folder)
    distributed.barrier()
    return {**content, "text": paper_generation.as_text(content["paper_rows"])}


class _Scorers:
    """What looks at the pictures here; each is there or says why not."""

    def __init__(self, recipe: GenerationEvaluationRecipe) -> None:
        device, choice = distributed.device(), recipe.detector
        self.detector: Detector | NotMeasured = NotMeasured(f"needs its own evaluator: {OFFICIAL[recipe.of]}")
        self.colours: PictureColours | NotMeasured = NotMeasured("not asked for")
        if recipe.of == "geneval":
            self.detector = load_detector(choice.model, device=device)
            if not isinstance(self.detector, NotMeasured):
                self.colours = load_colours(
                    choice.colours, clip_model=choice.clip_model, clip_weights=choice.clip_weights, device=device
                )
                if isinstance(self.colours, NotMeasured):
                    self.detector = self.colours
        self.reward: Reward | NotMeasured = NotMeasured("not asked for")
        if recipe.image_reward.use == "installed":
            self.reward = load_image_reward(recipe.image_reward.weights, device=device)

    @property
    def names(self) -> dict[str, str]:
        """What a file of scores was made with."""
        measured = not isinstance(self.detector, NotMeasured)
        return {
            "detector": self.detector.name if measured else NOT_MEASURED,
            "colours": self.colours.name if measured else NOT_MEASURED,
            "image_reward": NOT_MEASURED if isinstance(self.reward, NotMeasured) else "ImageReward-v1.0",
        }

    @property
    def not_measured(self) -> dict[str, str]:
        """Reasons by measure."""
        pairs = (("overall", self.detector), ("image_reward", self.reward))
        return {name: scorer.reason for name, scorer in pairs if isinstance(scorer, NotMeasured)}

    def score(self, prompt: BenchmarkPrompt, layout: Layout) -> dict[str, Any]:
        """Everything about a prompt's pictures, as plain values."""
        pictures = layout.read(prompt)
        found: dict[str, Any] = {"made_with": self.names, "prompt": prompt.text, "painted": prompt.painted}
        if not isinstance(self.detector, NotMeasured):
            found["tag"] = prompt.metadata["tag"]
            found["pictures"] = [self._verdict(prompt, picture) for picture in pictures]
        if not isinstance(self.reward, NotMeasured):
            found["rewards"] = [self.reward(prompt.text, picture) for picture in pictures]
        return found

    def _verdict(self, prompt: BenchmarkPrompt, picture: Any) -> dict[str, Any]:
        detections = self.detector(picture)
        verdict = judge(prompt.metadata, detections, name_colours=lambda objects: self.colours(picture, objects))
        objects = [{"label": item.label, "confidence": item.confidence, "box": list(item.box)} for item in detections]
        return {"correct": verdict.correct, "reasons": list(verdict.reasons), "objects": objects}


def _read(recipe: GenerationEvaluationRecipe) -> list[BenchmarkPrompt]:
    read = read_geneval if recipe.of == "geneval" else read_dpg
    return read(recipe.benchmark.prompts, count=recipe.benchmark.count)


def _clear(folder: Path, *, resume: str) -> None:
    images = folder / "images"
    if resume == "auto" and images.is_dir() and any(images.iterdir()):
        raise ValueError(
            f"{images} holds pictures, and nothing says of which model. Give another --output, or --resume none to "
            "replace them."
        )
    for name in ("images", "scores"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _rewriter_name(recipe: GenerationEvaluationRecipe) -> dict[str, Any]:
    choice = recipe.rewriting
    if choice.by == "nobody":
        return {"by": "nobody"}
    return {"by": choice.by, "model": choice.model, "instruction": choice.instruction, "max_tokens": choice.max_tokens}


def _rewritten(
    recipe: GenerationEvaluationRecipe, prompts: list[BenchmarkPrompt], folder: Path
) -> list[BenchmarkPrompt]:
    """The prompts as the model is asked; rank 0 rewrites, the others wait."""
    answer = {}
    if distributed.is_main_process() and recipe.rewriting.by != "nobody":
        try:
            rewrite = build_rewriter(recipe.rewriting, device=distributed.device())
            texts = [prompt.text for prompt in prompts]
            with EvaluationProgress(len(texts)) as progress:
                answer["texts"] = rewrite_all(
                    texts,
                    rewrite,
                    folder / "prompts.jsonl",
                    by=_rewriter_name(recipe),
                    progress=lambda count: progress.update(progress.done + count),
                )
        except OSError as error:
            answer["error"] = str(error)
    answer = json.loads(distributed.broadcast_text(json.dumps(answer)))
    if "error" in answer:
        raise ValueError(answer["error"])
    return [prompt.asking(text) for prompt, text in zip(prompts, answer.get("texts", _texts(prompts)), strict=True)]


def _paint(model: Any, prompts: list[BenchmarkPrompt], layout: Layout, recipe: GenerationEvaluationRecipe) -> None:
    done = sum(layout.complete(prompt) for prompt in prompts)
    # Others may write while this rank counts, which only moves the bar.
    with EvaluationProgress(len(prompts), done=done, active=distributed.is_main_process()) as progress:
        paint_benchmark(
            model,
            prompts,
            layout,
            recipe.sampling,
            images_per_prompt=recipe.benchmark.images_per_prompt,
            batch_size=recipe.benchmark.batch_size,
            part=(distributed.rank(), distributed.world_size()),
            progress=lambda count: progress.update(progress.done + count * distributed.world_size()),
        )


def _score(scorers: _Scorers, prompts: list[BenchmarkPrompt], layout: Layout, folder: Path) -> None:
    if all(isinstance(scorer, NotMeasured) for scorer in (scorers.detector, scorers.reward)):
        return
    own = prompts[distributed.rank() :: distributed.world_size()]
    with EvaluationProgress(len(own), active=distributed.is_main_process()) as progress:
        for number, prompt in enumerate(own, start=1):
            path = folder / "scores" / f"{prompt.name}.json"
            if _saved(path).get("made_with") != scorers.names:
                write_json(path, scorers.score(prompt, layout))
            progress.update(number)


def _content(
    recipe: GenerationEvaluationRecipe,
    scorers: _Scorers,
    prompts: list[BenchmarkPrompt],
    folder: Path,
    *,
    image_size: int,
) -> dict[str, Any]:
    saved = {prompt.name: _saved(folder / "scores" / f"{prompt.name}.json") for prompt in prompts}
    missing = scorers.not_measured
    metrics: dict[str, float | str] = {"overall": NOT_MEASURED, "image_reward": NOT_MEASURED}
    if "overall" not in missing:
        verdicts = [
            (row["tag"], name, picture["correct"]) for name, row in saved.items() for picture in row["pictures"]
        ]
        for name, part in summarise(verdicts).items():
            metrics |= {name: part.value, f"{name}_error": part.error}
    if "image_reward" not in missing:
        rewards = share([sum(row["rewards"]) / len(row["rewards"]) for row in saved.values()])
        metrics |= {"image_reward": rewards.value, "image_reward_error": rewards.error}
    official = OFFICIAL[recipe.of].replace("IMAGES", str(folder / "images")).replace("RESOLUTION", str(image_size))
    table = paper_generation.beside_ours(
        recipe.of,
        name="/".join(Path(recipe.model).parts[-2:]),
        scores=metrics,
        caution=_caution(recipe, scorers, prompts, official=official),
    )
    protocol = describe(
        recipe,
        prompts=f"{len(prompts)} of {recipe.benchmark.prompts}",
        images_per_prompt=recipe.benchmark.images_per_prompt,
        rewriting=_rewriter_name(recipe),
        scored_with=scorers.names,
        official=official,
        not_measured=missing,
    )
    return {"metrics": metrics, "paper_rows": table, "protocol": protocol}


def _caution(
    recipe: GenerationEvaluationRecipe, scorers: _Scorers, prompts: list[BenchmarkPrompt], *, official: str
) -> str:
    few = f" Ours is over {len(prompts)} prompts only." if recipe.benchmark.count is not None else ""
    if isinstance(scorers.detector, NotMeasured):
        return f"Ours is not measured: {scorers.detector.reason}. The official score: {official}.{few}"
    return (
        f"Ours is GenEval's rules on {scorers.names['detector']}, colours by {scorers.names['colours']}: NOT the "
        f"official detector. For a score to publish: {official}.{few}"
    )


def _markdown(recipe: GenerationEvaluationRecipe, content: dict[str, Any]) -> str:
    rows = [[name, value if isinstance(value, str) else f"{value:.4f}"] for name, value in content["metrics"].items()]
    protocol = "\n".join(f"- {name}: {value}" for name, value in content["protocol"].items())
    return (
        f"# {recipe.name}: {recipe.model}\n\n{paper_generation.markdown([['measure', 'value'], *rows])}\n\n"
        f"## Beside the paper\n\n{paper_generation.as_markdown(content['paper_rows'])}\n## Protocol\n\n{protocol}\n"
    )


def _texts(prompts: list[BenchmarkPrompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def _saved(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
