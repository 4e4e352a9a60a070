"""GenEval's and DPG-Bench's files: read as they are, written as their evaluators take them, continued."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.painters import NoisePainter
from tokenflow.evaluation.benchmark_pictures import (
    DpgLayout,
    GenEvalLayout,
    paint_benchmark,
    read_dpg,
    read_geneval,
)
from tokenflow.evaluation.painting import Sampling, read_picture, sheet

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a teddy bear",
    },
]


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n")
    return path


@pytest.fixture
def prompts_folder(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("10", "9", "COCOval2014000000581929", "diffusiondb2"):
        (folder / f"{name}.txt").write_text(f"A picture\n numbered {name}. ")
    return folder


def paint(prompts, layout, *, count=4, painter=None, **options):
    painter = painter or NoisePainter()
    defaults = {"images_per_prompt": count, "batch_size": 4}
    paint_benchmark(painter, prompts, layout, Sampling(), **{**defaults, **options})
    return painter


def test_genevals_folder_is_what_its_evaluator_reads(metadata, tmp_path):
    prompts = read_geneval(metadata)
    paint(prompts, GenEvalLayout(tmp_path / "images", 4))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["00000", "00001", "00002"]
    for folder, line in zip(sorted((tmp_path / "images").iterdir()), LINES, strict=True):
        assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "metadata.jsonl", "samples"]
        # The evaluator takes the whole file as one JSON object.
        assert json.loads((folder / "metadata.jsonl").read_text()) == line
        samples = sorted((folder / "samples").iterdir())
        assert [path.name for path in samples] == [f"{number:05d}.png" for number in range(4)]
        pictures = [np.asarray(Image.open(path)) for path in samples]
        assert all(picture.shape == (8, 8, 3) for picture in pictures)
        assert np.array_equal(np.asarray(Image.open(folder / "grid.png")), np.concatenate(pictures, axis=1))


def test_dpg_is_one_picture_a_prompt_of_its_name_cut_by_the_evaluator_into_four(prompts_folder, tmp_path):
    prompts = read_dpg(prompts_folder)
    assert [prompt.name for prompt in prompts] == ["9", "10", "COCOval2014000000581929", "diffusiondb2"]
    assert prompts[0].text == "A picture numbered 9."
    layout = DpgLayout(tmp_path / "images")
    paint(prompts, layout)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {f"{prompt.name}.png" for prompt in prompts}
    side = 8
    for prompt in prompts:
        image = Image.open(tmp_path / "images" / f"{prompt.name}.png")
        assert image.size == (2 * side, 2 * side)
        boxes = [(0, 0), (side, 0), (0, side), (side, side)]
        crops = [np.asarray(image.crop((x, y, x + side, y + side))) for x, y in boxes]
        assert np.array_equal(np.stack(crops), np.stack(layout.read(prompt)))
        alone = NoisePainter().generate([prompt.text], first_image=prompt.index * 4 + 2)[0]
        assert np.abs(crops[2].transpose(2, 0, 1) - (alone.numpy() * 127.5 + 127.5)).max() <= 0.51


def test_what_is_complete_is_skipped_and_the_rest_is_painted_as_if_nothing_had_stopped(metadata, tmp_path):
    prompts = read_geneval(metadata)
    whole, broken = (GenEvalLayout(tmp_path / name, 3) for name in ("whole", "broken"))
    paint(prompts, whole, count=3)
    paint(prompts[:2], broken, count=3)
    (broken.folder / "00001" / "samples" / "00002.png").unlink()
    (broken.folder / "00000" / "metadata.jsonl").touch()
    painter = paint(prompts, broken, count=3)
    assert [texts[0] for texts, _ in painter.calls] == [line["prompt"] for line in LINES[1:]]
    for prompt in prompts:
        for path, same in zip(whole.samples(prompt), broken.samples(prompt), strict=True):
            assert path.read_bytes() == same.read_bytes()


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (3, 1), (8, 2)])
def test_batches_and_ranks_change_no_picture(metadata, tmp_path, batch_size, world_size):
    prompts = read_geneval(metadata)
    whole, parts = GenEvalLayout(tmp_path / "whole", 4), GenEvalLayout(tmp_path / "parts", 4)
    paint(prompts, whole)
    for rank in range(world_size):
        paint(prompts, parts, batch_size=batch_size, part=(rank, world_size))
    for prompt in prompts:
        assert np.array_equal(np.stack(whole.read(prompt)), np.stack(parts.read(prompt)))


def test_a_rewritten_prompt_is_painted_and_the_metadata_stays(metadata, tmp_path):
    prompt = read_geneval(metadata)[0].asking("a long wooden bench in a park")
    layout = GenEvalLayout(tmp_path / "images", 1)
    painter = paint([prompt], layout, count=1)
    assert painter.calls[0][0] == ("a long wooden bench in a park",)
    assert json.loads((layout.folder / "00000" / "metadata.jsonl").read_text())["prompt"] == "a photo of a bench"


def test_a_sheet_has_no_gaps():
    pictures = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3)]
    assert sheet(pictures, columns=2)[..., 0].tolist() == [[1] * 3 + [2] * 3] * 2 + [[3] * 3 + [0] * 3] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"tag": "colors"}', "line 1 lacks include, prompt"),
        ('{"tag": "colors", "include": [], "prompt": " "}', "line 1 has an empty prompt"),
        ("not json", "line 1: not valid JSON"),
        ("", "holds no prompts"),
    ],
)
def test_files_that_are_no_prompts_are_named(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_geneval(tmp_path / "x.jsonl")


def test_absent_files_and_counts_beyond_are_named(metadata, prompts_folder, tmp_path):
    with pytest.raises(ValueError, match=r"expected GenEval's evaluation_metadata.jsonl"):
        read_geneval(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected DPG-Bench's folder"):
        read_dpg(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="count is 4; expected 1 to 3"):
        read_geneval(metadata, count=4)
    assert len(read_geneval(metadata, count=2)) == 2
    (prompts_folder / "11.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"11.txt is empty"):
        read_dpg(prompts_folder)


def test_a_picture_reads_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture)
