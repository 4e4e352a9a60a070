import json
from collections import defaultdict

import pytest

from tokenflow.data.conversation_files import ConversationFile
from tokenflow.data.questions import questions
from tokenflow.data.shapes import HELD_OUT_PAIRS, SceneSampler, corner, relation
from tokenflow.data.world_conversations import DESCRIBE, WORLD_FILES, description, write_conversations


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(path):
    file = ConversationFile(path)
    return [file.read(index) for index in range(file.size)]


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_conversations(tmp_path / name, num_scenes=30, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_every_file_has_a_usable_conversation_about_every_scene(tmp_path):
    for kind, path in write_conversations(tmp_path, num_scenes=30, seed=0).items():
        file = ConversationFile(path)
        assert file.unusable == 0 and (file.size == 30 or kind in ("corners", "sides", "relations"))
        assert set(file.images.tolist()) == ({0} if kind in ("text", "corpus") else {1})


@pytest.mark.parametrize("kind", ["questions", "text"])
def test_answers_are_those_of_the_scene_and_turns_are_few(tmp_path, kind):
    path = write_conversations(tmp_path, num_scenes=50, seed=0, turns=4)[kind]
    for index, found in enumerate(read(path)):
        scene = SceneSampler(0, "train")[index]
        known = {(item.question, item.answer) for item in questions(scene)}
        retold = {description(scene, variant=variant) for variant in range(8)}
        known |= {(question, told) for question in DESCRIBE for told in retold if kind == "text"}
        texts = [text for _, text in found.turns]
        asked = [texts[0].rpartition("\n")[2] if kind == "questions" else texts[0].rpartition(". ")[2], *texts[2::2]]
        assert len(asked) <= 4 and set(zip(asked, texts[1::2], strict=True)) <= known


def test_a_description_answers_every_question():
    for index in range(300):
        scene = SceneSampler(0, "train")[index]
        told = description(scene, variant=index % 8)
        for item in scene.objects:
            assert item.colour in told and item.shape in told
        if scene.kind == "pair":
            first, second = scene.objects
            assert any(word in told for word in (" left of ", " right of ", " above ", " below "))
            flipped = told.startswith(f"a {second.colour}")
            a, b = (second, first) if flipped else (first, second)
            assert (" left of " in told) == (a.x < b.x and abs(a.x - b.x) > abs(a.y - b.y))
        for asked in questions(scene):
            if asked.kind == "where" and scene.kind == "single":
                assert told.endswith(f"at the {asked.answer}")


def test_names_ask_for_the_shape_of_what_is_alone_and_for_both_words_of_what_is_not(tmp_path):
    paths = write_conversations(tmp_path, num_scenes=200, seed=0, files=("names",))
    sampler, asked = SceneSampler(0, "train"), set()
    for index, found in enumerate(read(paths["names"])):
        (_, text), (_, answer) = found.turns
        question = text.removeprefix("<image>\n")
        kind = question.split()[1]
        known = {(item.question, item.answer) for item in questions(sampler[index]) if item.kind == kind}
        assert (question, answer) in known
        asked.add((sampler[index].kind in ("single", "group"), kind))
    assert asked == {(True, "shape"), (False, "shape"), (False, "colour")}


def asked_about_scenes(path):
    """{scene: [(question, answer), ...]}"""
    asked = defaultdict(list)
    for line in path.read_text().splitlines():
        record = json.loads(line)
        question, answer = (turn["value"] for turn in record["conversations"])
        index = int(record["image"].removeprefix("train-").removesuffix(".png"))
        asked[index].append((question.removeprefix("<image>\n"), answer))
    return asked


def test_corners_ask_for_each_of_several_objects_by_a_name_of_its_own(tmp_path):
    asked = asked_about_scenes(write_conversations(tmp_path, num_scenes=200, seed=0)["corners"])
    sampler = SceneSampler(0, "train")
    for index, pairs in asked.items():
        scene = sampler[index]
        assert scene.kind in ("pair", "triple") and len(pairs) <= len(scene.objects)
        for question, answer in pairs:
            name = question.removeprefix("where is the ").removesuffix("?").removesuffix(" object").split()
            (found,) = [item for item in scene.objects if {*name} <= {item.colour, item.shape}]
            assert answer == corner(found)
    assert len(asked) > 50


def test_relations_ask_one_question_about_every_pair(tmp_path):
    asked = asked_about_scenes(write_conversations(tmp_path, num_scenes=200, seed=0)["relations"])
    sampler = SceneSampler(0, "train")
    assert set(asked) == {index for index in range(200) if sampler[index].kind == "pair"}
    for index, pairs in asked.items():
        known = {(item.question, item.answer) for item in questions(sampler[index]) if item.kind == "where"}
        assert len(pairs) == 1 and set(pairs) <= known


def test_sides_are_the_relations_of_pairs_that_lie_side_by_side(tmp_path):
    asked = asked_about_scenes(write_conversations(tmp_path, num_scenes=200, seed=0)["sides"])
    sampler = SceneSampler(0, "train")
    pairs = {index: sampler[index].objects for index in range(200) if sampler[index].kind == "pair"}
    assert set(asked) == {index for index, pair in pairs.items() if relation(*pair) in ("left of", "right of")}
    for index, [(question, answer)] in asked.items():
        known = [(item.question, item.answer) for item in questions(sampler[index]) if item.kind == "where"]
        assert (question, answer) in known and answer in ("left", "right")


def test_training_text_names_no_held_out_pair(tmp_path):
    write_conversations(tmp_path, num_scenes=200, seed=0)
    for name in WORLD_FILES.values():
        text = (tmp_path / name).read_text()
        assert not [pair for pair in HELD_OUT_PAIRS if " ".join(pair) in text]


def test_a_complete_file_is_left_alone_and_a_damaged_or_different_one_is_written_again(tmp_path):
    paths = write_conversations(tmp_path, num_scenes=20, seed=0)
    before = contents(tmp_path)
    stamps = {kind: path.stat().st_mtime_ns for kind, path in paths.items()}
    write_conversations(tmp_path, num_scenes=20, seed=0)
    assert stamps == {kind: path.stat().st_mtime_ns for kind, path in paths.items()}
    paths["text"].write_text("cut off")
    write_conversations(tmp_path, num_scenes=20, seed=0)
    assert contents(tmp_path) == before
    write_conversations(tmp_path, num_scenes=10, seed=0, files=("text",))
    assert len(read(paths["text"])) == 10 and len(read(paths["questions"])) == 20
    assert set(json.loads((tmp_path / "conversations.json").read_text())) == set(WORLD_FILES)


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_scenes 0"):
        write_conversations(tmp_path, num_scenes=0, seed=0)
    with pytest.raises(ValueError, match="unknown kinds of file songs"):
        write_conversations(tmp_path, num_scenes=1, seed=0, files=("songs",))
