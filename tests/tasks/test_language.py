"""What a language model's documents are, and which conversations reach the multimodal model."""

import dataclasses

import pytest

from tests.understanding.words import llama_words
from tokenflow.data import ConversationConfig, ConversationReader, ConversationSourceConfig
from tokenflow.data.samples import BadSample
from tokenflow.data.world_conversations import write_conversations, write_lessons
from tokenflow.tasks.conversation_batches import Prepared, teaches
from tokenflow.tasks.language import Document, LanguageRecipe
from tokenflow.train import TrainConfig
from tokenflow.understanding.conversation_tokens import IGNORE, IMAGE_TOKEN, Tokens

TRAIN = TrainConfig(steps=2, global_batch_size=2, micro_batch_size=2)


def recipe(path, **fields):
    data = ConversationConfig(sources=(ConversationSourceConfig(path=str(path)),))
    return LanguageRecipe(name="test", data=data, train=TRAIN, **fields)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return llama_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_conversations(tmp_path_factory.mktemp("talk"), num_scenes=8, seed=0)


def first(path, words):
    chosen = recipe(path)
    return ConversationReader(chosen.data, seed=0, prepare=Document(chosen, words)).read_in_order(0)


def test_a_line_is_a_document_from_its_start_to_its_end(files, words):
    line = files["corpus"].read_text().splitlines()[0]
    found = first(files["corpus"], words)
    assert isinstance(found, Prepared) and found.tokens.labels == found.tokens.ids
    assert found.tokens.ids[0] == words.bos_token_id and found.tokens.ids[-1] == words.eos_token_id
    assert words.decode(found.tokens.ids, skip_special_tokens=True).strip() == line


def test_a_conversation_is_written_by_the_template_and_all_of_it_is_learned(files, words):
    found = first(files["text"], words)
    text = words.decode(found.tokens.ids)
    assert found.tokens.labels == found.tokens.ids
    assert text.count("USER:") == text.count("ASSISTANT:") == found.tokens.ids.count(words.eos_token_id) > 0


def test_a_conversation_with_a_picture_is_no_text(files, words):
    chosen = recipe(files["captions"])
    sample = ConversationReader(
        dataclasses.replace(chosen.data, sources=recipe(files["text"]).data.sources), seed=0
    ).read_in_order(0)
    with pytest.raises(BadSample, match="1 pictures"):
        Document(chosen, words)(dataclasses.replace(sample, images=(None,)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"preset": "huge"}, "preset is 'huge'"),
        ({"language": {"heights": 3}}, "language .*heights"),
        ({"max_length": 10_000}, "max_length is 10000"),
        ({"text_vocabulary": 0}, "text_vocabulary is 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(files, fields, words):
    with pytest.raises(ValueError, match=words):
        recipe(files["corpus"], **fields)


@pytest.mark.parametrize(("max_length", "expected"), [(6, False), (7, True), (100, True)])
def test_a_conversation_teaches_if_an_answer_begins_within_the_row(max_length, expected):
    tokens = Tokens([1, IMAGE_TOKEN, 2, 3, 4], [IGNORE, IGNORE, IGNORE, 3, 4])
    assert teaches(tokens, image_tokens=4, max_length=max_length) is expected


def test_lessons_name_rare_pairs_in_text_alone(tmp_path):
    found = write_lessons(tmp_path, num_scenes=12, seed=0)
    assert set(found) == {"text", "rare_text", "captions", "names", "corners", "sides", "relations", "questions"}
    assert len(found["rare_text"].read_text().splitlines()) == 3
    assert '"image"' not in found["rare_text"].read_text() + found["text"].read_text()
