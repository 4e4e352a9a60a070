import json

import pytest
from sentencepiece import SentencePieceProcessor

from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece

CAPTIONS = [
    f"a {color} {shape} left of {number} squares"
    for color in ("red", "green", "blue", "yellow")
    for shape in ("circle", "triangle", "cross")
    for number in (1, 2, 13)
]
TEXTS = [
    "a red circle left of a blue square",
    "two  spaces, a tab\tand a\nline",
    "Ünïcödé, 漢字 and 🙂",
    "13 circles",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_sentencepiece(CAPTIONS, tmp_path_factory.mktemp("tokenizer"), vocabulary_size=340)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(folder, text):
    tokenizer = load_text_tokenizer(folder)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1 and tokenizer.eos_token_id == 2
    assert tokenizer.unk_token_id not in ids and max(ids) < len(tokenizer) <= 340
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_sentencepiece_and_survive_a_save(folder, text, tmp_path):
    tokenizer = load_text_tokenizer(folder)
    ids = tokenizer(text)["input_ids"]
    assert ids[1:] == SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(text)
    tokenizer.save_pretrained(tmp_path)
    assert load_text_tokenizer(tmp_path)(text)["input_ids"] == ids


def test_words_of_the_captions_are_single_tokens(folder):
    tokenizer = load_text_tokenizer(folder)
    assert len(tokenizer("a red circle left of", add_special_tokens=False)["input_ids"]) == 5


def test_training_twice_writes_the_same_files(folder, tmp_path):
    again = train_sentencepiece(iter(CAPTIONS), tmp_path / "deep" / "folder", vocabulary_size=340)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_a_small_vocabulary_and_no_captions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vocabulary_size is 200; expected at least 2\d\d"):
        train_sentencepiece(CAPTIONS, tmp_path, vocabulary_size=200)
    with pytest.raises(ValueError, match="no captions"):
        train_sentencepiece(["", "  "], tmp_path, vocabulary_size=400)


def test_the_least_vocabulary_that_is_named_works(tmp_path):
    with pytest.raises(ValueError) as error:
        train_sentencepiece(CAPTIONS, tmp_path, vocabulary_size=1)
    least = int(str(error.value).split("at least ")[1].split(":")[0])
    assert len(load_text_tokenizer(train_sentencepiece(CAPTIONS, tmp_path, vocabulary_size=least))) <= least


def test_incomplete_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="is a file; expected its folder"):
        load_text_tokenizer(folder / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    with pytest.raises(ValueError, match="no complete text tokenizer"):
        load_text_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="is no folder here, and the hub did not give it"):
        load_text_tokenizer("nobody/nothing")


def test_a_tokenizer_that_lost_its_vocabulary_is_refused(folder, tmp_path):
    load_text_tokenizer(folder).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] = {"<unk>": 0, "<s>": 1, "</s>": 2}
    content["model"]["merges"] = []
    content["model"]["byte_fallback"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="reads 'a red circle' as"):
        load_text_tokenizer(tmp_path)
