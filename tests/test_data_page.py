"""docs/data.md, run for real: its five commands on a handful of photographs, then the training loader."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.data.caption_server import CaptionServer
from tokenflow.cli import COMMANDS, main
from tokenflow.config import parse
from tokenflow.data import Loader
from tokenflow.data.photographs import export_photographs
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
PAGE = Path(__file__).parent.parent / "docs" / "data.md"


def blocks():
    """The command lines of every block of the page."""
    return [block.strip().splitlines() for block in re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)]


def contents(*folders):
    """Every file under some folders, but the counts that reading leaves behind."""
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in files if "index.json" not in path.name or "faces" in path.name}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Twelve photographs in ./pictures, three with a face, one there twice, one broken."""
    everything = tmp_path / "all"
    folder = tmp_path / "pictures"
    folder.mkdir()
    export_photographs(everything, image_size=128)
    for name in ("astronaut", "cat", "coffee", "rocket"):
        for path in sorted(everything.glob(f"0[0-2]-{name}.*")):
            shutil.copy(path, folder)
    shutil.copy(folder / "00-cat.png", folder / "again.png")
    (folder / "broken.png").write_bytes((folder / "00-cat.png").read_bytes()[:2000])
    shutil.rmtree(everything)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_page_goes_from_a_folder_of_pictures_to_a_training_set(pictures, capsys):
    commands, (training,) = blocks()[:2]
    assert len(commands) == 5
    with CaptionServer() as server:
        for command in commands:
            program, *arguments = shlex.split(command.replace("http://localhost:8000/v1", server.url))
            assert program == "tokenflow" and main(arguments) == 0, capsys.readouterr()
            assert main([*arguments, "--dry_run"]) == 0
        shards = contents("shards", "recaptioned")
        for command in commands:
            assert main(shlex.split(command.replace("http://localhost:8000/v1", server.url))[1:]) == 0
        # it is all done, and done again it leaves no trace
        assert contents("shards", "recaptioned") == shards
    report = json.loads(Path("shards/manifest.json").read_text())["report"]
    assert (report["written"], report["dropped"]) == (12, {"duplicate": 1, "truncated": 1})
    inspected = json.loads(Path("inspected/report.json").read_text())
    assert inspected["samples"] == 12 and inspected["training"]["readable"] and inspected["manifest"]["holds"]
    assert inspected["counts"]["recaptioned"] == inspected["counts"]["faces_known"] == 12
    assert Path("inspected/index.html").is_file() and Path("looked-at/contact_sheet.png").is_file()

    program, *arguments = shlex.split(training)
    assert arguments[:2] == ["-m", "pipelines.tokenizer_pretrain"]
    recipe = parse(TokenizerRecipe, arguments[2:], stage="tokenizer_pretrain", description="").recipe
    (source,) = recipe.data.sources
    assert (source.path, source.face_factor) == ("recaptioned", 2.0)
    data = dataclasses.replace(recipe.data, num_workers=0)
    loader = Loader(data, global_batch_size=4, micro_batch_size=4, seed=0)
    batch, _ = next(loader)
    assert all("fingerprint" in caption for caption in batch["captions"]) and "faces x 2" in loader.reader.names[0]
    loader.close()


def test_every_data_tool_is_on_the_page_with_a_script_and_an_example():
    tools = PAGE.parent.parent / "tools"
    for name in ("make-shards", "find-faces", "recaption", "inspect-shards", "encode-shards"):
        command = next(command for command in COMMANDS if command.name == name)
        assert command.examples and name in PAGE.read_text()
        assert (tools / f"{name.replace('-', '_')}.py").is_file()
