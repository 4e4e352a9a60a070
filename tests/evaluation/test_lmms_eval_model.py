"""The plug-in under lmms-eval itself, on a local task; skipped where lmms-eval is missing (`pip install .[lmms]`)."""

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("lmms_eval")

from tests.evaluation.tiny_image_to_text import tiny_folder
from tokenflow.data.questions import quiz
from tokenflow.data.shapes import draw
from tokenflow.evaluation.lmms_eval_model import TokenFlowModel
from tokenflow.understanding.image_to_text import ImageToText

TASK = Path(__file__).parent / "lmms_task"


def evaluate(folder, *, tasks, **options):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "task"), include_defaults=False)
    arguments = f"pretrained={folder / 'model'}"
    return simple_evaluate(
        bootstrap_iters=0,
        model="tokenflow",
        model_args=arguments,
        tasks=tasks,
        task_manager=manager,
        device="cpu",
        log_samples=True,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and questions with one picture, two, or none."""
    folder = tmp_path_factory.mktemp("lmms")
    tiny_folder(folder)
    shutil.copytree(TASK, folder / "task")
    lines = []
    for number, item in enumerate(quiz("colour", count=7)):
        names = [str(folder / f"{number}-{place}.png") for place in range((1, 2, 0)[number % 3])]
        for name in names:
            Image.fromarray(draw(item.scene, 32)).save(name)
        lines.append(json.dumps({"images": names, "question": item.question.question, "answer": item.question.answer}))
    (folder / "task" / "questions.jsonl").write_text("\n".join(lines))
    return folder


def request(kind, *arguments, document):
    from lmms_eval.api.instance import Instance

    metadata = {"task": "t", "doc_id": document, "repeats": 1}
    return Instance(request_type=kind, arguments=(*arguments, document, "t", "test"), idx=0, metadata=metadata)


def asked(folder):
    documents = [json.loads(line) for line in (folder / "task" / "questions.jsonl").read_text().splitlines()]
    return [item["images"] for item in documents], [item["question"] for item in documents], documents


def test_lmms_eval_finds_the_model_by_its_entry_point():
    from lmms_eval.models import get_model

    names = [point.name for point in importlib.metadata.entry_points(group="lmms_eval.models")]
    assert "tokenflow" in names, "install the package again: pip install -e ."
    assert get_model("tokenflow").__name__ == "TokenFlowModel"


def test_lmms_eval_gets_the_answers_that_the_model_gives(folder):
    pictures, questions, documents = asked(folder)
    model = ImageToText.from_pretrained(folder / "model")
    expected = model.answer(pictures, questions, max_new_tokens=4)
    assert len(set(expected)) > 1
    results = evaluate(folder, tasks=["tokenflow_shapes"], batch_size=3)
    samples = sorted(results["samples"]["tokenflow_shapes"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0] for sample in samples] == expected
    exact = sum(a == document["answer"] for a, document in zip(expected, documents, strict=True)) / len(documents)
    assert results["results"]["tokenflow_shapes"]["shapes_exact,none"] == pytest.approx(exact)


def test_likelihoods_are_those_of_the_model(folder):
    # not through the evaluator: that of lmms-eval 0.7.3 makes strings of (likelihood, greedy)
    model = TokenFlowModel(str(folder / "model"), device="cpu", batch_size=3)
    pictures, questions, documents = asked(folder)
    model.task_dict = {"t": {"test": documents}}
    visuals = lambda document: [Image.open(name) for name in document["images"]]  # noqa: E731
    targets = [documents[place]["answer"] if place % 2 else lambda document: document["answer"] for place in range(7)]
    requests = [
        request("loglikelihood", questions[place], targets[place], visuals, document=place) for place in range(7)
    ]
    expected = model.model.score(pictures, questions, [document["answer"] for document in documents])
    found = model.loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_arguments_are_checked_before_anything_is_loaded(folder):
    for options, message in (
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
        ({"layout": "llava"}, "layout is 'llava'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenFlowModel(str(folder / "model"), **{"device": "cpu", **options})
    half = TokenFlowModel(str(folder / "model"), dtype="bfloat16", device="cpu")
    assert half.model.model.head.weight.dtype == torch.bfloat16


def test_sound_and_video_are_refused(folder):
    model = TokenFlowModel(str(folder / "model"), device="cpu")
    model.task_dict = {"t": {"test": [{}]}}
    film = request("generate_until", "what?", {}, lambda document: ["film.mp4"], document=0)
    with pytest.raises(ValueError, match="task 't' shows str; expected pictures"):
        model.generate_until([film])
