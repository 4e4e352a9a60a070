"""Files as the authors' training writes them: read safely, recognised, strict, and written back unchanged."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.cli import main
from tokenflow.tokenizer.authors import import_tokenizer, likely_preset, read_authors_file, write_authors_file
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.state_dict import to_authors

SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
MANIFESTS = sorted(SHARED.glob("keys_tokenizer_*.json"))
EXPECTED = {
    "keys_tokenizer_clipb_224": "tokenflow-b",
    "keys_tokenizer_clipb_224_enh_interp": "tokenflow-b-256-enhanced",
    "keys_tokenizer_vitamin_xlarge_256": "tokenflow-l",
    "keys_tokenizer_siglip_384": "tokenflow-xl",
}


def small_config():
    """TokenFlow-B with every size shrunk and every module kept."""
    config = preset("tokenflow-b", codebook_size=64)
    semantic, pixel = config.branches
    vision = dataclasses.replace(semantic.encoder.vision, width=24, depth=2, heads=2, mlp_width=48)
    convolutional = dataclasses.replace(pixel.encoder.convolutional, channels=32, latent_channels=16)
    decoder = dataclasses.replace(config.semantic_decoder.vision, width=24, depth=1, heads=2, mlp_width=48)
    return dataclasses.replace(
        config,
        branches=(
            dataclasses.replace(semantic, encoder=dataclasses.replace(semantic.encoder, vision=vision)),
            dataclasses.replace(pixel, encoder=dataclasses.replace(pixel.encoder, convolutional=convolutional)),
        ),
        semantic_decoder=dataclasses.replace(config.semantic_decoder, vision=decoder, out_width=20),
        pixel_decoder=dataclasses.replace(config.pixel_decoder, convolutional=convolutional),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return TokenFlowTokenizer(small_config()).eval()


@pytest.fixture
def theirs(tokenizer):
    return {name: value.contiguous() for name, value in to_authors(tokenizer.config, tokenizer.state_dict()).items()}


@pytest.mark.parametrize("key", ["ema", "model", "state_dict"])
def test_a_training_file_with_a_namespace_gives_the_same_tokenizer(tokenizer, theirs, tmp_path, key):
    content = {key: theirs, "args": argparse.Namespace(lr=1e-4, tags=["a"]), "steps": 7}
    if key == "ema":
        content["model"] = {name: torch.zeros_like(value) for name, value in theirs.items()}
    torch.save(content, tmp_path / "file.pt")
    loaded = import_tokenizer(read_authors_file(tmp_path / "file.pt"), config=tokenizer.config)
    wanted = tokenizer.state_dict()
    assert set(loaded.state_dict()) == set(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.state_dict().items())
    images = torch.rand(1, 3, 224, 224) * 2 - 1
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))


def test_what_is_written_back_holds_the_authors_keys_shapes_and_values(tokenizer, theirs, tmp_path):
    write_authors_file(tokenizer, tmp_path / "back.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["back.pt"]
    written = torch.load(tmp_path / "back.pt", weights_only=True)["model"]
    assert set(written) == set(theirs)
    assert all(torch.equal(written[name], value) for name, value in theirs.items())


class Stranger:
    """Stands for anything that a file could ask to be unpickled."""


def test_a_file_that_needs_more_than_tensors_is_refused(tmp_path):
    torch.save({"model": {}, "args": Stranger()}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="Nothing else is ever unpickled"):
        read_authors_file(tmp_path / "file.pt")


def test_a_missing_and_a_left_over_key_are_named(tokenizer, theirs):
    theirs["stranger"] = theirs.pop("quant_conv.bias")
    with pytest.raises(ValueError, match=r"quant_conv\.bias.*stranger"):
        import_tokenizer(theirs, config=tokenizer.config)


def test_another_shape_names_the_tensor_both_shapes_and_the_likely_preset(tokenizer, theirs):
    theirs["quant_conv.weight"] = torch.zeros(9, 16, 1, 1)
    message = r"quant_conv\.weight: the file has \(9, 16, 1, 1\), the tokenizer \(8, 16, 1, 1\).*tokenflow-b"
    with pytest.raises(ValueError, match=message):
        import_tokenizer(theirs, config=tokenizer.config)


def test_a_file_without_a_tokenizer_is_named(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds no quantize"):
        read_authors_file(tmp_path / "other.pt")


def test_the_command_says_in_one_line_what_does_not_fit(theirs, tmp_path, capsys):
    torch.save({"model": theirs}, tmp_path / "small.pt")
    assert main(["import-checkpoint", str(tmp_path / "small.pt"), "--out", str(tmp_path / "out")]) == 2
    assert "tokenflow-b" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_becomes_the_authors_file_on_the_command_line(tokenizer, theirs, tmp_path):
    tokenizer.save_pretrained(tmp_path / "folder")
    assert main(["export-checkpoint", str(tmp_path / "folder"), "--out", str(tmp_path / "file.pt")]) == 0
    assert set(torch.load(tmp_path / "file.pt", weights_only=True)["model"]) == set(theirs)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_released_files_are_recognised_by_their_shapes(manifest):
    shapes = json.loads(manifest.read_text())
    state = {name: torch.empty(shape, device="meta") for name, (shape, _) in shapes.items()}
    assert likely_preset(state) == EXPECTED[manifest.stem]


def test_weights_of_nothing_known_are_refused():
    with pytest.raises(ValueError, match="Name the preset"):
        likely_preset({"a.weight": torch.zeros(1)})
