import json

import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer.config import TokenizerConfig, from_dict, to_dict
from tokenflow.tokenizer.presets import PRESET_TEACHERS, PRESETS, TEACHERS, preset, teacher_preset

# As in the authors' models; their checkpoints of L and XL hold six constants more (mean and deviation of the pixels).
PARAMETERS = {
    "tokenflow-b": 181_902_251,
    "tokenflow-b-enhanced": 376_569_643,
    "tokenflow-b-256": 181_902_251,
    "tokenflow-b-256-enhanced": 376_569_643,
    "tokenflow-l": 559_964_145 - 6,
    "tokenflow-l-enhanced": 559_964_145 - 6 + 376_569_643 - 181_902_251,
    "tokenflow-xl": 554_009_969 - 6,
    "tokenflow-xl-enhanced": 554_009_969 - 6 + 376_569_643 - 181_902_251,
}
TOKENS = {
    "tokenflow-b": 561,
    "tokenflow-b-enhanced": 561,
    "tokenflow-b-256": 817,
    "tokenflow-b-256-enhanced": 817,
    "tokenflow-l": 817,
    "tokenflow-l-table11": 826,
    "tokenflow-xl": 2227,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_authors(name):
    with torch.device("meta"):
        model = TokenFlowTokenizer(preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", TOKENS)
def test_token_counts_are_the_authors(name):
    assert preset(name).num_tokens == TOKENS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_forward_and_backward_on_meta(name):
    config = preset(name)
    with torch.device("meta"):
        model = TokenFlowTokenizer(config)
        images = torch.zeros(1, 3, config.image_size, config.image_size)
        features = torch.cat([encoder(images) for encoder in model.encoders.values()], dim=1)
    assert features.shape == (1, sum(config.code_widths), config.grid, config.grid)
    reconstruction, semantic = model._decode(features)
    assert (reconstruction is None) == (config.pixel_decoder is None)
    assert (semantic is None) == (config.semantic_decoder is None)
    if reconstruction is not None:
        assert reconstruction.shape == images.shape
    if semantic is not None:
        assert semantic.shape[1:] == (config.grid**2, TEACHERS[PRESET_TEACHERS[name]].width)
    sum(x.sum() for x in (reconstruction, semantic) if x is not None).backward()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    assert from_dict(TokenizerConfig, json.loads(json.dumps(to_dict(PRESETS[name])))) == PRESETS[name]


def test_table_5_adds_one_design_choice_a_row():
    rows = [preset(f"table5-{row}") for row in ("semantic-only", "shared", "shared-msvq", "full")]
    assert [len(row.branches) for row in rows] == [1, 2, 2, 2]
    assert [len(row.scales) for row in rows] == [1, 1, 8, 8]
    assert [row.branches[0].encoder.is_pretrained for row in rows] == [False, False, False, True]
    assert rows[0].pixel_decoder.reads == ("semantic",)


@pytest.mark.parametrize(("name", "width"), [("nano-pixel-only", 8), ("nano-semantic-only", 16)])
def test_a_single_codebook_has_as_many_codes_as_nano_and_features_of_its_own_width(name, width, tmp_path):
    config, both = preset(name), preset("tokenflow-nano")
    assert (config.num_tokens, config.codebook_size) == (both.num_tokens, both.codebook_size)
    TokenFlowTokenizer(config).save_pretrained(tmp_path)
    tokenizer = TokenFlowTokenizer.from_pretrained(tmp_path)
    codes = tokenizer.encode(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert codes.shape == (2, both.num_tokens)
    assert tokenizer.features(codes, "last_scale").shape == (2, 64, width)


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"no 'codebok_size'; expected one of .*codebook_size"):
        preset("tokenflow-nano", codebok_size=64)


def test_overrides_replace_fields():
    config = preset("tokenflow-nano", codebook_size=64, pretrained="runs/teacher")
    assert config.codebook_size == 64
    assert [branch.encoder.pretrained for branch in config.branches] == ["runs/teacher", None]
    assert PRESETS["tokenflow-nano"].codebook_size == 1024
    assert teacher_preset("nano", pretrained="runs/teacher").pretrained == "runs/teacher"


@pytest.mark.parametrize(("build", "listed"), [(preset, "tokenflow-xl"), (teacher_preset, "clip-b16")])
def test_an_unknown_name_lists_the_known_ones(build, listed):
    with pytest.raises(ValueError, match=listed):
        build("tokenflow-huge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": (1, 2, 4)}, "scales must end at 8"),
        ({"scales": (1, 4, 4, 8)}, "increase"),
        ({"branches": ()}, "non-empty"),
        ({"branches": PRESETS["tokenflow-nano"].branches[:1]}, r"reads \['pixel'\]"),
    ],
)
def test_contradictions_are_refused_with_the_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        preset("tokenflow-nano", **change)


def test_unknown_and_missing_keys_are_refused():
    values = to_dict(PRESETS["tokenflow-nano"])
    with pytest.raises(ValueError, match="patch_nums"):
        from_dict(TokenizerConfig, values | {"patch_nums": [1]})
    del values["scales"]
    with pytest.raises(ValueError, match="scales"):
        from_dict(TokenizerConfig, values)
