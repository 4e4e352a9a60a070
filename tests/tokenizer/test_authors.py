"""Files as the authors' training writes them: read safely, recognised, strict, and written back unchanged."""

import argparse
import dataclasses
import os
import pickle

import pytest
import torch

from tests.parity.fixtures import TOKENIZERS, key_manifest
from tokenflow import TokenFlowTokenizer
from tokenflow.cli import main
from tokenflow.tokenizer.authors import (
    AUTHORS_PRESETS,
    authors_config,
    authors_options,
    dropped_keys,
    import_tokenizer,
    likely_preset,
    read_authors_file,
    write_authors_file,
)
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.state_dict import authors_constants, to_authors


def small_config(name="tokenflow-b"):
    """A released architecture with every size shrunk and every module kept."""
    config = preset(name, codebook_size=64)
    semantic, pixel = config.branches
    stem = semantic.encoder.vision.stem
    stem = stem and dataclasses.replace(stem, channels=(8, 16, 24))
    vision = dataclasses.replace(semantic.encoder.vision, width=24, depth=2, heads=2, mlp_width=48, stem=stem)
    convolutional = dataclasses.replace(pixel.encoder.convolutional, channels=32, latent_channels=16)
    decoder_channels = config.pixel_decoder.convolutional.channels // 4
    decoder_convolutional = dataclasses.replace(
        config.pixel_decoder.convolutional, channels=decoder_channels, latent_channels=16
    )
    decoder = dataclasses.replace(config.semantic_decoder.vision, width=24, depth=1, heads=2, mlp_width=48)
    return dataclasses.replace(
        config,
        branches=(
            dataclasses.replace(semantic, encoder=dataclasses.replace(semantic.encoder, vision=vision)),
            dataclasses.replace(pixel, encoder=dataclasses.replace(pixel.encoder, convolutional=convolutional)),
        ),
        semantic_decoder=dataclasses.replace(config.semantic_decoder, vision=decoder, out_width=20),
        pixel_decoder=dataclasses.replace(config.pixel_decoder, convolutional=decoder_convolutional),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return TokenFlowTokenizer(small_config()).eval()


@pytest.fixture
def theirs(tokenizer):
    return {name: value.contiguous() for name, value in to_authors(tokenizer.config, tokenizer.state_dict()).items()}


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", AUTHORS_PRESETS)
def test_import_after_export_gives_the_same_tokenizer_of_every_architecture(tmp_path, name):
    tokenizer = TokenFlowTokenizer(small_config(name)).eval()
    write_authors_file(tokenizer, tmp_path / "file.pt")
    state = read_authors_file(tmp_path / "file.pt")
    again = import_tokenizer(state, config=tokenizer.config)
    assert equal(again, tokenizer)
    assert set(dropped_keys(state, tokenizer.config)) == set(authors_constants(tokenizer.config))
    write_authors_file(again, tmp_path / "again.pt")
    back = read_authors_file(tmp_path / "again.pt")
    assert list(back) == list(state) and all(torch.equal(value, back[key]) for key, value in state.items())


@pytest.mark.parametrize(("name", "expected"), TOKENIZERS.items())
def test_the_export_has_the_keys_shapes_types_and_order_of_the_authors_checkpoint(name, expected):
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(preset(expected))
    exported = to_authors(tokenizer.config, tokenizer.state_dict())
    listed = [(key, list(value.shape), str(value.dtype)) for key, value in exported.items()]
    assert listed == [(key, shape, f"torch.{dtype}") for key, (shape, dtype) in key_manifest(name).items()]


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


def test_the_average_comes_before_the_model_and_the_model_before_the_state_dict(theirs, tmp_path):
    zeros = {name: torch.zeros_like(value) for name, value in theirs.items()}
    torch.save({"state_dict": zeros, "model": theirs}, tmp_path / "file.pt")
    state = read_authors_file(tmp_path / "file.pt")
    assert all(torch.equal(state[name], value) for name, value in theirs.items())


def test_files_of_parallel_training_and_of_old_torch_are_read(tokenizer, theirs, tmp_path):
    wrapped = {f"module.{name}": value for name, value in theirs.items()}
    torch.save({"model": wrapped}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert equal(import_tokenizer(read_authors_file(tmp_path / "old.pt"), config=tokenizer.config), tokenizer)


def test_half_precision_weights_become_fp32(tokenizer, theirs):
    halves = {name: value.half() for name, value in theirs.items()}
    loaded = import_tokenizer(halves, config=tokenizer.config)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


class Stranger:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["archive", "old", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(theirs, tmp_path, kind):
    trap, file = tmp_path / "trap", tmp_path / "file.pt"
    content = {"model": theirs, "args": Stranger(trap)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "archive")
    message = "nothing but tensors.* is ever unpickled" if kind != "pickle" else "ever unpickled|not a file of torch"
    with pytest.raises(ValueError, match=message):
        read_authors_file(file)
    assert not trap.exists()
    if kind == "archive":
        torch.load(file, weights_only=False)
        assert trap.exists()  # the trap does work


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.99])
def test_a_truncated_file_is_named_in_one_line(theirs, tmp_path, capsys, share):
    torch.save({"model": theirs}, tmp_path / "file.pt")
    content = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "file.pt").write_bytes(content[: int(share * len(content))])
    assert main(["import-checkpoint", str(tmp_path / "file.pt"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "file.pt is " in error and error.count("\n") == 1 and len(error) < 300
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"hello", b"PKnothing", bytes(1000), b'{"model": 3}', b"\x80\x02K\x01."])
def test_a_wrong_file_is_named_in_one_line(tmp_path, capsys, content):
    (tmp_path / "file.pt").write_bytes(content)
    assert main(["import-checkpoint", str(tmp_path / "file.pt"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "file.pt" in error and error.count("\n") == 1 and len(error) < 400


def test_a_folder_and_a_missing_file_are_named(tmp_path, capsys):
    assert main(["import-checkpoint", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is a folder; expected a .pt file" in capsys.readouterr().err
    assert main(["import-checkpoint", str(tmp_path / "none.pt"), "--out", str(tmp_path / "out")]) == 2
    assert "none.pt: no such file; expected a .pt file" in capsys.readouterr().err
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert main(["import-checkpoint", str(tmp_path / "pointer.pt"), "--out", str(tmp_path / "out")]) == 2
    assert "is a pointer of Git LFS, not the file. In its repository: git lfs pull" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(["import-checkpoint", "none.pt", "--out", str(tmp_path / "taken")]) == 2
    assert "taken is a file; expected a folder" in capsys.readouterr().err
    for out, words in (
        (tmp_path, "is a folder; expected a file"),
        (tmp_path / "taken" / "a.pt", "is a file; expected"),
    ):
        assert main(["export-checkpoint", "nowhere", "--out", str(out)]) == 2
        assert words in capsys.readouterr().err


def test_a_missing_and_a_left_over_key_are_named(tokenizer, theirs):
    theirs["stranger"] = theirs.pop("quant_conv.bias")
    with pytest.raises(ValueError, match=r"quant_conv\.bias.*stranger"):
        import_tokenizer(theirs, config=tokenizer.config)


def test_another_shape_names_the_tensor_both_shapes_and_the_likely_preset(tokenizer, theirs):
    theirs["quant_conv.weight"] = torch.zeros(9, 16, 1, 1)
    message = r"quant_conv\.weight: the file has \(9, 16, 1, 1\), the tokenizer \(8, 16, 1, 1\).*tokenflow-b"
    with pytest.raises(ValueError, match=message):
        import_tokenizer(theirs, config=tokenizer.config)


def test_parts_of_a_fused_weight_are_checked_one_by_one():
    config = small_config("tokenflow-xl")
    theirs = to_authors(config, TokenFlowTokenizer(config).state_dict())
    name = "encoder_vqkd.vision_model.encoder.layers.1.self_attn.v_proj.weight"
    message = r"layers\.1\.self_attn\.v_proj\.weight: the file has \(5, 7\), the tokenizer \(24, 24\).*tokenflow-xl"
    with pytest.raises(ValueError, match=message):
        import_tokenizer({**theirs, name: torch.zeros(5, 7)}, config=config)


def test_other_constants_than_the_encoders_are_refused_and_any_usage_record_is_dropped():
    config = small_config("tokenflow-xl")
    theirs = to_authors(config, TokenFlowTokenizer(config).state_dict())
    import_tokenizer({**theirs, "quantize.codebook_used": torch.ones(7)}, config=config)
    with pytest.raises(ValueError, match=r"scaling_layer\.shift is \[0\.25, 0\.25, 0\.25\] in the file"):
        import_tokenizer({**theirs, "scaling_layer.shift": torch.full((1, 3, 1, 1), 0.25)}, config=config)


def test_a_checkpoint_without_its_codebook_is_named(tokenizer, theirs):
    del theirs["quantize.embedding_vqkd.weight"]
    with pytest.raises(ValueError, match=r"1 keys missing \['quantize\.embedding_vqkd\.weight'\]"):
        import_tokenizer(theirs, config=tokenizer.config)
    assert authors_config(theirs) == preset("tokenflow-b")


def test_a_file_without_a_tokenizer_is_named(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds no quantize"):
        read_authors_file(tmp_path / "other.pt")


def test_the_command_says_in_one_line_what_does_not_fit(theirs, tmp_path, capsys):
    torch.save({"model": theirs}, tmp_path / "small.pt")
    assert main(["import-checkpoint", str(tmp_path / "small.pt"), "--out", str(tmp_path / "out")]) == 2
    assert "tokenflow-b" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tokenflow-b", "teacher='clipb_224', codebook_size=32768"),
        ("tokenflow-b-256-enhanced", "teacher='clipb_224', codebook_size=32768, infer_interpolate=True, enhanced_d"),
        ("tokenflow-l-enhanced", "teacher='vitamin_xlarge_256', codebook_size=32768, enhanced_decoder=True"),
        ("tokenflow-xl", "teacher='siglip_384', codebook_size=32768"),
    ],
)
def test_the_options_that_build_it_in_the_authors_code_are_named(name, options):
    trained = dataclasses.replace(preset(name, pretrained=None), commitment_weight=1.0, entropy_weight=0.1)
    assert authors_options(trained).startswith(options)
    assert "codebook_size=64" in authors_options(dataclasses.replace(trained, codebook_size=64))


def test_codebooks_of_another_size_and_width_are_recognised():
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in key_manifest("clipb_224").items()}
    state |= {f"quantize.embedding_{k}.weight": torch.empty(99, w) for k, w in (("vqkd", 24), ("vqgan", 16))}
    config = authors_config(state)
    assert (config.codebook_size, config.code_widths, config.semantic_decoder.vision.in_channels) == (99, (24, 16), 24)
    assert authors_options(config).endswith("codebook_size=99, semantic_code_dim=24, codebook_embed_dim=16")
    with torch.device("meta"):
        theirs = to_authors(config, TokenFlowTokenizer(config).state_dict())
    assert theirs["quant_conv.weight"].shape == (16, 256, 1, 1) and theirs["encode_task_layer.2.weight"].shape[0] == 24


@pytest.mark.parametrize("name", ["tokenflow-nano", "tokenflow-l-table11", "vqgan"])
def test_what_the_authors_code_cannot_build_is_not_exported(name, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"builds nothing but tokenflow-b.*Export one of these"):
        authors_options(preset(name))
    if name == "tokenflow-nano":
        TokenFlowTokenizer(preset(name)).save_pretrained(tmp_path / "folder")
        assert main(["export-checkpoint", str(tmp_path / "folder"), "--out", str(tmp_path / "file.pt")]) == 2
        assert "this tokenizer has 32 pixels" in capsys.readouterr().err
        assert not (tmp_path / "file.pt").exists()


@pytest.mark.parametrize(("name", "expected"), TOKENIZERS.items())
def test_released_files_are_recognised_by_their_shapes(name, expected):
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in key_manifest(name).items()}
    assert likely_preset(state) == expected
    assert authors_config(state) == preset(expected)


@pytest.mark.parametrize(("name", "expected"), TOKENIZERS.items())
def test_every_teacher_is_recognised_with_the_enhanced_decoder_too(name, expected):
    decoder = {k: v for k, v in key_manifest("clipb_224_enh_interp").items() if k.startswith("decoder.")}
    keys = {k: v for k, v in key_manifest(name).items() if not k.startswith("decoder.")} | decoder
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in keys.items()}
    recognised = "tokenflow-b-256-enhanced" if name.startswith("clipb") else f"{expected}-enhanced"
    assert likely_preset(state) == recognised
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(preset(recognised))
    exported = to_authors(tokenizer.config, tokenizer.state_dict())
    assert {key: list(value.shape) for key, value in exported.items()} == {k: shape for k, (shape, _) in keys.items()}


def test_a_whole_file_has_the_manifest_and_is_imported_at_224_and_at_interpolated_256_pixels(tmp_path, capsys):
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(preset("tokenflow-b")).bfloat16()
    tokenizer = tokenizer.to_empty(device="cpu")
    for value in tokenizer.state_dict().values():
        value.fill_(0.5)
    file = tmp_path / "file.pt"
    write_authors_file(tokenizer, file)
    content = torch.load(file, weights_only=True, mmap=True)["model"]
    listed = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in content.items()}
    assert list(listed.items()) == list(key_manifest("clipb_224").items())
    assert not content["quantize.codebook_used"].any()
    assert file.stat().st_size < 1.01 * sum(value.nbytes for value in content.values())

    for size, name, options in ((224, "tokenflow-b", []), (256, "tokenflow-b-256", ["--preset", "tokenflow-b-256"])):
        assert main(["import-checkpoint", str(file), "--out", str(tmp_path / "out"), *options]) == 0
        said = capsys.readouterr().out
        assert f"preset {name}" in said and "dropped on purpose: quantize.codebook_used" in said
        assert f"{size} pixels, {preset(name).num_tokens} codes an image" in said
        loaded = TokenFlowTokenizer.from_pretrained(tmp_path / "out")
        assert loaded.config == preset(name)
        assert all(value.dtype == torch.float32 and (value == 0.5).all() for value in loaded.state_dict().values())
    del content, loaded
    assert main(["export-checkpoint", str(tmp_path / "out"), "--out", str(file)]) == 0
    assert "strict=True, built with teacher='clipb_224'" in capsys.readouterr().out
    back = torch.load(file, weights_only=True, mmap=True)["model"]
    assert [[key, list(value.shape)] for key, value in back.items()] == [[key, s] for key, (s, _) in listed.items()]


def test_weights_of_nothing_known_are_refused():
    with pytest.raises(ValueError, match="Name the preset"):
        likely_preset({"a.weight": torch.zeros(1)})
