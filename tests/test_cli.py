import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow import TokenFlowTokenizer
from tokenflow.cli import COMMANDS, Command, main
from tokenflow.commands.reconstruct import choose_device, target_paths
from tokenflow.tokenizer.presets import preset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokenizer")
    TokenFlowTokenizer(preset("tokenflow-nano")).eval().save_pretrained(path)
    return path


@pytest.fixture
def size(folder):
    return TokenFlowTokenizer.from_pretrained(folder).config.image_size


def photograph(path, *, width: int, height: int, mode: str = "RGB"):
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_help_imports_no_torch_and_shows_every_command_with_examples():
    program = (
        "import sys; from tokenflow.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for command in COMMANDS:
        assert command.name in shown and command.examples[0] in shown


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_help_with_its_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"tokenflow {command}" in capsys.readouterr().out


def test_help_says_each_default_once(capsys):
    with pytest.raises(SystemExit):
        main(["make-shards", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "a shorter side (default: 1)" in shown and "any number (default: 0)" in shown
    assert "shuffle the samples with this seed (default: keep their order) --workers" in shown
    assert "print the manifest as JSON, nothing else --dry_run" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "pipelines.lm_pretrain", "--recipe", "nano", "--data", "x.jsonl", "--output", "run", "--dry_run"],
        ["-m", "tokenflow.cli", "make-shards", "--help"],
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error(words):
    shown = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # nobody reads: everything that is printed meets a closed pipe
    shown.stdout.close()
    assert shown.wait() == 0
    assert b"error" not in shown.stderr.read().lower()
    shown.stderr.close()


def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch, capsys):
    def run(arguments):
        raise BrokenPipeError(32, "Broken pipe")

    module = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setitem(sys.modules, "tokenflow.commands.failing", module)
    with open(os.devnull, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        command = Command(name="fail", summary="fails", module="tokenflow.commands.failing")
        assert main(["fail"], commands=[command]) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_no_command_and_unknown_command_exit_two(capsys):
    assert main([]) == 2
    assert "examples" in capsys.readouterr().err
    assert main(["reconstrct"]) == 2
    assert "did you mean tokenflow reconstruct?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["paint-a-cat"])
    assert end.value.code == 2
    assert "reconstruct" in capsys.readouterr().err


def test_what_a_user_can_mend_is_one_line_and_a_fault_of_ours_is_not(monkeypatch, capsys):
    def failing(error):
        module = SimpleNamespace(add_arguments=lambda parser: None, run=lambda arguments: (_ for _ in ()).throw(error))
        monkeypatch.setitem(sys.modules, "tokenflow.commands.failing", module)
        command = Command(name="fail", summary="fails", module="tokenflow.commands.failing")
        return main(["fail"], commands=[command])

    assert failing(ValueError("size is 3,\n expected 4")) == 2
    assert capsys.readouterr().err == "error: size is 3, expected 4\n"
    assert failing(PermissionError(13, "Permission denied", "x.png")) == 2
    said = "error: x.png: Permission denied. Check the path, and whether you may read or write there.\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def test_reconstruct_writes_the_tokenizers_own_picture_for_any_file(folder, size, tmp_path, capsys):
    exact = photograph(tmp_path / "exact.png", width=size, height=size)
    files = [
        exact,
        photograph(tmp_path / "wide.jpg", width=301, height=97),
        photograph(tmp_path / "small.webp", width=9, height=14),
        photograph(tmp_path / "grey.png", width=64, height=65, mode="L"),
    ]
    out = tmp_path / "out"
    assert (
        main(["reconstruct", *map(str, files), "--tokenizer", str(folder), "--out", str(out), "--device", "cpu"]) == 0
    )
    shown = capsys.readouterr().out
    written = {path.name: np.array(Image.open(path)) for path in out.iterdir()}
    assert set(written) == {"exact.png", "wide.png", "small.png", "grey.png"}
    assert all(picture.shape == (size, size, 3) for picture in written.values())

    tokenizer = TokenFlowTokenizer.from_pretrained(folder).eval()
    original = np.array(Image.open(exact))
    images = torch.from_numpy(original).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = (tokenizer.reconstruct(images)[0].clamp(-1, 1) * 127.5 + 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(written["exact.png"].astype(int) - expected.astype(int)).max() <= 1
    error = np.mean((original.astype(float) - written["exact.png"].astype(float)) ** 2)
    assert f"exact.png: PSNR {10 * np.log10(255**2 / error):.2f} dB" in shown
    assert f"{tokenizer.encode(images).numel()} codes" in shown
    assert "cropped from 301x97" in shown and "mean PSNR of 4 pictures" in shown


def test_reconstruct_side_by_side_holds_the_original(folder, size, tmp_path):
    file = photograph(tmp_path / "a.png", width=size, height=size)
    out = tmp_path / "out"
    arguments = ["reconstruct", str(file), "--tokenizer", str(folder), "--out", str(out), "--side_by_side"]
    assert main(arguments) == 0
    picture = np.array(Image.open(out / "a.png"))
    factor = max(1, -(-64 // size))
    assert np.array_equal(
        picture[4 : 4 + size * factor : factor, 4 : 4 + size * factor : factor], np.array(Image.open(file))
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.png"], "absent.png: no such file; expected a picture file"),
        (["folder"], "holds no pictures; expected files ending in jpg"),
        (["text.png"], "of no known format. Expected a JPEG, PNG or the like"),
        (["good.png", "--device", "meta"], "expected auto, cpu"),
        (["good.png", "--out", "text.png"], "text.png is a file; expected a folder. Choose another name"),
        (["good.png", "--out", "text.png/below"], "text.png is a file; expected a folder. Choose another name"),
        (["good.png", "--device", "cuda:9"], "use --device cpu"),
        (["good.png", "--device", "abacus"], "expected auto, cpu"),
        (["good.png", "--out", "."], "overwritten"),
    ],
)
def test_reconstruct_complains_in_one_line(arguments, words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "good.png", width=20, height=20)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    assert main(["reconstruct", *arguments, "--tokenizer", str(folder)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and complaint.count("\n") == 1 and words in complaint


def test_reconstruct_leaves_out_what_is_no_picture_and_says_so(folder, tmp_path, capsys):
    good = photograph(tmp_path / "good.png", width=20, height=20)
    (tmp_path / "text.png").write_text("no picture")
    arguments = [str(tmp_path / "text.png"), str(good), "--out", str(tmp_path / "out"), "--tokenizer", str(folder)]
    assert main(["reconstruct", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"left out: {tmp_path / 'text.png'}: ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_reconstruct_says_when_a_picture_comes_back_blank(folder, tmp_path, capsys):
    tokenizer = TokenFlowTokenizer.from_pretrained(folder)
    with torch.no_grad():
        for weight in tokenizer.pixel_decoder.parameters():
            weight.zero_()
    tokenizer.save_pretrained(tmp_path / "blank")
    picture = photograph(tmp_path / "a.png", width=20, height=20)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "b.png")
    arguments = [str(picture), str(tmp_path / "b.png"), "--tokenizer", str(tmp_path / "blank")]
    assert main(["reconstruct", *arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "1 of 2 pictures came back in one colour" in shown.err and "resized from 20x20" in shown.out


def test_reconstruct_takes_folders_but_not_what_it_wrote_into_them(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    photograph(tmp_path / "a.png", width=20, height=20)
    photograph(tmp_path / "below" / "b.JPG", width=20, height=20)
    (tmp_path / "notes.txt").write_text("no picture")
    for _ in range(2):
        assert main(["reconstruct", ".", "--tokenizer", str(folder)]) == 0
        assert "mean PSNR of 2 pictures" in capsys.readouterr().out
        assert sorted(path.name for path in (tmp_path / "reconstructions").iterdir()) == ["a.png", "b.png"]
    # a folder of reconstructions may itself be looked at
    assert main(["reconstruct", "reconstructions", "--tokenizer", str(folder), "--out", "again"]) == 0
    assert main(["reconstruct", "reconstructions", "--tokenizer", str(folder)]) == 2
    assert "would be overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--tokeniser", "--tokenizer"), ("--side_by_sid", "--side_by_side"), ("--ouput=x", "--output")],
)
def test_a_misspelt_option_is_named_with_the_one_that_was_meant(option, meant, folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["reconstruct", "x.png", "--tokenizer", str(folder), option])
    assert end.value.code == 2
    said = f"error: tokenflow reconstruct has no option {option.split('=')[0]}; did you mean {meant}?\n"
    assert capsys.readouterr().err == said


def test_a_run_in_place_of_its_model_is_told_apart(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "run" / "model")
    picture = photograph(tmp_path / "good.png", width=20, height=20)
    assert main(["reconstruct", str(picture), "--tokenizer", str(tmp_path / "run")]) == 2
    assert f"Did you mean {tmp_path / 'run' / 'model'}?" in capsys.readouterr().err


def test_reconstruct_names_a_folder_that_is_no_tokenizer(tmp_path, capsys):
    file = photograph(tmp_path / "good.png", width=20, height=20)
    (tmp_path / "empty").mkdir()
    assert main(["reconstruct", str(file), "--tokenizer", str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path):
    images = [tmp_path / name for name in ("a/x.png", "b/x.jpg", "b/y.png")]
    assert [path.name for path in target_paths(images, tmp_path / "out")] == ["x-1.png", "x-2.png", "y.png"]


def test_auto_device_is_one_that_exists():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
