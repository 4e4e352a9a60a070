"""Codes that stand for the pictures of conversations are those of the run's tokenizer, or refused."""

import re

import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.data import ConversationConfig, ConversationSourceConfig, SourceConfig, write_shapes
from tokenflow.data.code_shards import CodeShards
from tokenflow.tasks.stored_codes import check_conversations_codes, describe_codes
from tokenflow.tokenizer.presets import preset
from tokenflow.tokenizer.teachers import Teacher


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return TokenFlowTokenizer(preset("tokenflow-nano")).eval()


@pytest.fixture(scope="module")
def conversations(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    write_shapes(folder / "train", num_samples=4, image_size=32, seed=0)
    description = describe_codes(tokenizer, name="runs/tok")
    shards = CodeShards(SourceConfig(path=str(folder / "train")), folder / "codes", description=description)
    assert shards.run(lambda x: torch.zeros(len(x), description.num_codes, dtype=torch.int64), batch_size=4)
    sources = (ConversationSourceConfig(path="talk.jsonl"), ConversationSourceConfig(path="text.jsonl"))
    return ConversationConfig(sources=sources, images=str(folder / "codes"))


def test_its_own_codes_serve(conversations, tokenizer):
    check_conversations_codes(conversations, tokenizer, name="runs/tok", aspect="crop")


def test_other_shapes_than_a_centre_crop_are_refused(conversations, tokenizer):
    with pytest.raises(ValueError, match=r"model.aspect is pad, but .*codes holds codes of centre crops"):
        check_conversations_codes(conversations, tokenizer, name="runs/tok", aspect="pad")


def test_codes_of_another_tokenizer_are_refused_by_both_names(conversations):
    torch.manual_seed(1)
    other = TokenFlowTokenizer(preset("tokenflow-nano")).eval()
    with pytest.raises(ValueError, match=r"holds codes of runs/tok .* the run's tokenizer is runs/other"):
        check_conversations_codes(conversations, other, name="runs/other", aspect="crop")


def test_a_teacher_sees_pictures_alone(conversations):
    teacher = Teacher.__new__(Teacher)
    with pytest.raises(ValueError, match=re.escape("runs/teacher is a teacher, which sees pictures")):
        check_conversations_codes(conversations, teacher, name="runs/teacher", aspect="crop")
