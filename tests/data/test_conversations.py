import json

import numpy as np
import pytest

from tokenflow.data.conversation_files import ConversationFile
from tokenflow.data.conversations import ConversationRecord, parse_conversation, parse_line
from tokenflow.data.samples import BadSample

HUMAN, GPT = "human", "gpt"


def turns(*texts):
    return [{"from": (HUMAN, GPT)[place % 2], "value": text} for place, text in enumerate(texts)]


def record(*texts, **fields):
    return {"id": "a", **fields, "conversations": turns(*texts)}


def parse(value):
    return parse_conversation(json.dumps(value).encode(), number=7)


def test_a_record_becomes_pictures_and_turns():
    found = parse(record("<image>\nWhat?", "A cat.", "Sure?", "Yes.", image="coco/1.jpg"))
    assert found == ConversationRecord(
        id="a",
        images=("coco/1.jpg",),
        turns=(("user", "<image>\nWhat?"), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes.")),
    )
    assert found.words == 2 + 2 + 1 + 1


def test_several_pictures_and_none():
    assert parse(record("<image><image> Same?", "No.", image=["a.jpg", "b.jpg"])).images == ("a.jpg", "b.jpg")
    for nothing in ({}, {"image": None}, {"image": ""}, {"image": []}):
        assert parse(record("Hello?", "Hi.", **nothing)).images == ()


def test_a_record_without_id_is_called_by_its_place_and_numbers_become_text():
    assert parse({"conversations": turns("Q", "A")}).id == "#7"
    assert parse(record("Q", "A") | {"id": 12}).id == "12"


def test_answers_before_the_first_question_are_left_out():
    shared = {"id": "s", "conversations": [{"from": "gpt", "value": "and so on"}, *turns("Q", "A")]}
    assert parse(shared).turns == (("user", "Q"), ("assistant", "A"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1], "it is a list"),
        (record("<image> Q", "A"), "1 <image> for 0 pictures"),
        (record("Q", "A", image="a.jpg"), "0 <image> for 1 pictures"),
        (record("<image> Q", "A", image=["a.jpg", "b.jpg"]), "1 <image> for 2 pictures"),
        (record("<image> Q", "A", "<image>?", "B", image="a.jpg"), "2 <image> for 1 pictures"),
        (record("Q", "A", image=3), "its image is 3"),
        (record("Q"), "ends with a question"),
        (record("Q", "A", "Q"), "ends with a question"),
        (record("", "A"), r"turn 1 \(user\) is empty"),
        (record("Q", " \n"), r"turn 2 \(assistant\) is empty"),
        (record("Q", "an <image>"), "turn 2 is an answer with <image>"),
        ({"id": "a"}, "no conversations"),
        ({"id": "a", "conversations": []}, "no conversations"),
        ({"id": "a", "conversations": [{"from": GPT, "value": "A"}]}, "nobody asks"),
        ({"id": "a", "conversations": [*turns("Q", "A"), {"from": GPT, "value": "B"}]}, "turns 2 and 3 are both of"),
        ({"id": "a", "conversations": [{"from": "robot", "value": "Q"}]}, "turn 1 is from 'robot'"),
        ({"id": "a", "conversations": [{"from": HUMAN}]}, "turn 1 has no text"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_said(bad, message):
    with pytest.raises(BadSample, match=message):
        parse(bad)


def test_a_line_of_a_corpus_is_the_answer_to_nothing():
    assert parse_line(b" some words \n", number=0).turns == (("user", ""), ("assistant", "some words"))


GOOD = [
    record("Wie heißt „<image>“?", "Käse 🧀 [x], {y}", image="ü.jpg"),
    record("Q", 'A "quoted" \\ ] text'),
    record("a", "b"),
]
BAD = record("Q")


def write(path, records, **style):
    if path.suffix == ".json":
        path.write_text(json.dumps(records, **style), encoding="utf-8")
    else:
        path.write_text("\n\n".join(json.dumps(item, **style) for item in records) + "\n", encoding="utf-8")
    return path


def contents(file):
    return [file.read(index) for index in range(file.size)]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indexed", ["scanned", "from the index beside"])
def test_every_record_is_found_at_random_in_any_file(tmp_path, name, ascii_only, indexed):
    path = write(tmp_path / name, [GOOD[0], BAD, *GOOD[1:]], ensure_ascii=ascii_only)
    file = ConversationFile(path)
    if indexed != "scanned":
        file = ConversationFile(path)
    assert contents(file) == [parse(item) for item in GOOD]
    assert file.images.tolist() == [1, 0, 0] and file.words.tolist() == [item.words for item in contents(file)]
    assert file.unusable == 1 and list(file.faults(at_most=9)) == [("a", "it ends with a question; expected an answer")]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_arrays_may_be_indented_and_begin_with_a_byte_order_mark(tmp_path, indent, mark):
    path = tmp_path / "x.json"
    path.write_bytes(mark + json.dumps(GOOD, indent=indent, ensure_ascii=False).encode())
    assert contents(ConversationFile(path)) == [parse(item) for item in GOOD]


def test_a_corpus_has_a_document_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("one\n\n  \ntwo words\r\ndrei Wörter hier".encode())
    assert [item.turns[1][1] for item in contents(ConversationFile(path))] == ["one", "two words", "drei Wörter hier"]


def test_a_file_that_changed_is_indexed_again(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD)
    assert ConversationFile(path).size == 3
    write(path, GOOD[:1])
    assert contents(ConversationFile(path)) == [parse(GOOD[0])]


def test_a_damaged_index_is_made_again(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD)
    ConversationFile(path)
    for content in (b"", b"no array", np.arange(3).tobytes()):
        (tmp_path / "x.jsonl.index.npy").write_bytes(content)
        assert ConversationFile(path).size == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "", "is empty"),
        ("x.json", '{"id": 1}', "begins with"),
        ("x.json", '[{"id": 1}', "no comma"),
        ("x.json", '[{"id": 1} {"id": 2}]', "no comma"),
        ("x.json", '[{"id": 1}, {"id"', "is damaged"),
        ("x.csv", "", "ends in '.csv'"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        ConversationFile(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json' does not exist"):
        ConversationFile(tmp_path / "nowhere.json")


def test_broken_lines_are_counted_and_named_by_their_place(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(GOOD[2]) + "\n{broken\n" + json.dumps(GOOD[1]) + "\n")
    file = ConversationFile(path)
    assert file.size == 2
    [(name, reason)] = file.faults(at_most=9)
    assert name == "#1" and "not JSON" in reason
