import dataclasses

import pytest
import torch

from tests.tokenizer.killed_saves import save_and_die
from tokenflow.tokenizer.presets import TEACHERS, preset, teacher_preset
from tokenflow.tokenizer.teachers import (
    SmallClipConfig,
    Teacher,
    build_open_clip,
    build_teacher,
    load_teacher,
    save_teacher,
    teacher_tower,
    teacher_vision_config,
)

SMALL = SmallClipConfig(vocabulary_size=100)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    torch.manual_seed(1)
    model = build_open_clip(SMALL)
    for parameter in model.visual.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return save_teacher(model, tmp_path_factory.mktemp("teacher"))


def test_target_is_every_patch_token_normed_and_projected(teacher_folder):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    visual = load_teacher(teacher_folder).visual
    visual.output_tokens = True
    tokens = visual(images)[1]  # open_clip has normed them already
    teacher = build_teacher(teacher_preset("nano", pretrained=str(teacher_folder)))
    torch.testing.assert_close(teacher(images), tokens @ visual.proj, atol=1e-4, rtol=1e-4)


def test_saved_teacher_is_a_folder_open_clip_reads(teacher_folder):
    import open_clip

    ours, theirs = load_teacher(teacher_folder), open_clip.create_model(f"local-dir:{teacher_folder}")
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert ours.small_clip_config == SMALL


def test_with_average_pooling_the_tokens_that_tokenizers_learn_are_what_is_compared(tmp_path):
    config = dataclasses.replace(SMALL, pooling="avg")
    model = build_open_clip(config)
    folder = save_teacher(model, tmp_path / "teacher")
    assert load_teacher(folder).small_clip_config == config
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    tokens = teacher_tower(folder)(images)
    torch.testing.assert_close(tokens.mean(1), model.encode_image(images), atol=1e-5, rtol=1e-5)


def test_teacher_is_never_in_train_mode_and_has_no_gradients():
    teacher = Teacher(teacher_preset("nano"))
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    target = teacher(torch.zeros(1, 3, 32, 32, requires_grad=True))
    assert target.shape == (1, 64, 64)
    assert not target.requires_grad


def test_feature_maps_let_gradients_reach_the_image():
    teacher = Teacher(teacher_preset("nano"))
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    maps = teacher.feature_maps(images)
    assert [tuple(x.shape) for x in maps] == [(2, 64, 64)] * 3
    sum(x[..., 0].sum() for x in maps).backward()
    assert images.grad.abs().max() > 0


def test_teacher_is_fp32_under_autocast():
    teacher = Teacher(teacher_preset("nano"))
    images = torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        target = teacher(images.bfloat16().float())
    torch.testing.assert_close(target, teacher(images.bfloat16().float()), atol=0, rtol=0)


def test_nano_encoder_and_teacher_have_the_sizes_of_the_small_clip():
    assert teacher_vision_config(SmallClipConfig()) == TEACHERS["nano"].vision
    assert preset("tokenflow-nano").branches[0].encoder.vision == TEACHERS["nano"].vision
    assert teacher_vision_config(SmallClipConfig(image_size=64, patch_size=8)) == TEACHERS["nano-64"].vision


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_build_on_meta(name):
    config = teacher_preset(name, pretrained="random")
    with torch.device("meta"):
        teacher = build_teacher(config)
    assert teacher.config.width > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "convolutional"}, "vision transformer"), ({"feature_blocks": (3,)}, "feature_blocks")],
)
def test_impossible_teachers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TEACHERS["nano"], **change)


def constant_teacher(value, **changes):
    model = build_open_clip(dataclasses.replace(SMALL, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def loaded_value(folder):
    """The one value of all weights of a teacher, or "refused"."""
    try:
        (value,) = {value.unique().item() for value in load_teacher(folder).parameters()}
    except FileNotFoundError:
        return "refused"
    return value


@pytest.mark.parametrize("changes", [{}, {"text_depth": 1}])
def test_a_teachers_save_killed_at_any_step_leaves_the_old_the_new_or_a_clear_error(tmp_path, changes):
    seen = []
    for step in range(20):
        save_teacher(constant_teacher(0.0, **changes), tmp_path)
        died = save_and_die(lambda: save_teacher(constant_teacher(1.0), tmp_path), tmp_path, step=step)
        seen.append(loaded_value(tmp_path))
        if not died:
            break
    assert seen[0] == 0.0 and seen[-1] == 1.0 and set(seen) <= {0.0, 1.0, "refused"}
    # Training writes over its own teacher: there one survives whatever happens.
    assert changes or "refused" not in seen
    save_teacher(constant_teacher(0.0), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_a_folder_without_a_teacher_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher_pretrain"):
        load_teacher(tmp_path)
