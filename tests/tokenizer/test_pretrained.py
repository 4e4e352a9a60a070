import json
import pathlib
import subprocess
import sys

import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer.presets import TEACHERS, preset, teacher_preset
from tokenflow.tokenizer.pretrained import pretrained_weights, tower_weights
from tokenflow.tokenizer.state_dict import authors_table, from_authors, to_authors
from tokenflow.tokenizer.teachers import SmallClipConfig, build_open_clip, build_teacher, save_teacher


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    torch.manual_seed(1)
    return str(save_teacher(build_open_clip(SmallClipConfig(vocabulary_size=50)), tmp_path_factory.mktemp("teacher")))


def test_saved_tokenizer_computes_the_same(tmp_path):
    tokenizer = TokenFlowTokenizer(preset("tokenflow-nano")).eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = TokenFlowTokenizer.from_pretrained(tmp_path / "tokenizer")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert not again.training
    assert again.config == tokenizer.config
    assert torch.equal(again.encode(images), tokenizer.encode(images))
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))
    assert {file.name for file in (tmp_path / "tokenizer").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }


def test_frozen_parts_stay_frozen_after_a_round_trip(tmp_path):
    config = preset("tokenflow-nano")
    names = [name for name, parameter in TokenFlowTokenizer(config).named_parameters() if parameter.requires_grad]
    TokenFlowTokenizer(config).save_pretrained(tmp_path)
    again = TokenFlowTokenizer.from_pretrained(tmp_path)
    assert [name for name, parameter in again.named_parameters() if parameter.requires_grad] == names


def test_encoder_starts_from_the_teacher(teacher_folder):
    tokenizer = TokenFlowTokenizer.build(preset("tokenflow-nano", pretrained=teacher_folder))
    teacher = build_teacher(teacher_preset("nano", pretrained=teacher_folder))
    for name, value in teacher.tower.state_dict().items():
        assert torch.equal(value, tokenizer.encoders["semantic"].tower.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in tokenizer.parameters())


def test_pretrained_weights_carry_the_tokenizers_names(teacher_folder):
    config = preset("tokenflow-nano", pretrained=teacher_folder)
    shapes = {name: value.shape for name, value in TokenFlowTokenizer(config).state_dict().items()}
    weights = pretrained_weights(config)
    assert weights
    assert all(shapes[name] == value.shape for name, value in weights.items())
    assert pretrained_weights(preset("tokenflow-nano")) == {}


@pytest.mark.parametrize("name", ["clip-b16", "siglip-so400m"])
def test_weights_that_cannot_be_fetched_are_named_with_the_remedy(name):
    config = TEACHERS[name]
    with pytest.raises(OSError, match=r"cannot be fetched") as raised:
        tower_weights(config.kind, config.pretrained, vision=config.vision)
    assert config.pretrained in str(raised.value)
    assert "`pretrained`" in str(raised.value)


def test_a_missing_teacher_folder_is_named():
    with pytest.raises(FileNotFoundError, match="runs/nowhere"):
        build_teacher(teacher_preset("nano", pretrained="runs/nowhere"))


def test_a_source_of_another_size_is_refused(teacher_folder):
    with pytest.raises(ValueError, match=r"blocks|do not fit|shape"):
        build_teacher(teacher_preset("nano-64", pretrained=teacher_folder))
    with pytest.raises(ValueError, match="do not fit"):
        build_teacher(teacher_preset("clip-b16", pretrained=teacher_folder))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"weights": pathlib.Path("anything")}, tmp_path / "tower.pt")
    with pytest.raises(ValueError, match="plain file of tensors"):
        build_teacher(teacher_preset("clip-b16", pretrained=str(tmp_path / "tower.pt")))


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "model.pt").write_text("")
    with pytest.raises(OSError, match=r"model\.pt is a file; expected the folder"):
        TokenFlowTokenizer.from_pretrained(tmp_path / "model.pt")


def test_what_is_no_tokenizer_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        TokenFlowTokenizer.from_pretrained(tmp_path)
    TokenFlowTokenizer(preset("tokenflow-nano")).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ValueError, match="tokenizer"):
        TokenFlowTokenizer.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="neither a folder nor a hub repository"):
        TokenFlowTokenizer.from_pretrained("nobody/nothing")
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor a hub repository's name.*make demo"):
        TokenFlowTokenizer.from_pretrained("runs/nothing/model")


@pytest.mark.parametrize("name", ["tokenflow-b", "tokenflow-l", "tokenflow-xl"])
def test_the_authors_keys_cover_every_weight_both_ways(name):
    config = preset(name)
    with torch.device("meta"):
        state = TokenFlowTokenizer(config).state_dict()
    theirs = to_authors(config, state)
    back = from_authors(config, theirs)
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in state.items()}
    foreign = [key for entry in authors_table(config) for key in entry.theirs]
    assert len(foreign) == len(set(foreign))


def test_wrong_checkpoints_are_refused():
    config = preset("tokenflow-b")
    with torch.device("meta"):
        state = TokenFlowTokenizer(config).state_dict()
    theirs = to_authors(config, state)
    with pytest.raises(ValueError, match="1 unexpected"):
        from_authors(config, theirs | {"more": torch.zeros(1)})
    del theirs["quant_conv.bias"]
    with pytest.raises(ValueError, match=r"quant_conv\.bias"):
        from_authors(config, theirs)
    with pytest.raises(ValueError, match="branches"):
        authors_table(preset("vqgan"))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, tokenflow; assert 'torch' not in sys.modules; tokenflow.TokenFlowTokenizer"
    subprocess.run([sys.executable, "-c", code], check=True)
