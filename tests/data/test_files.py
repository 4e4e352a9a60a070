import json
import logging
import os
import threading

import pytest

from tokenflow.data.files import replacing, write_beside, write_json, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_not_seen_before_it_is_whole(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"old")
    with replacing(path) as partial:
        partial.write_bytes(b"new")
        assert path.read_bytes() == b"old" and partial.name.startswith(".")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["shard.tar"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, failure):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"old")
    with pytest.raises(failure):
        with replacing(path) as partial:
            partial.write_bytes(b"half")
            raise failure
    assert path.read_bytes() == b"old" and names(tmp_path) == ["shard.tar"]


def test_a_killed_write_leaves_what_was_there_and_the_next_one_takes_its_remains_away(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        with replacing(path) as partial:
            partial.write_bytes(b"half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_bytes() == b"old" and len(names(tmp_path)) == 2
    with replacing(path) as partial:
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["shard.tar"]


def test_of_many_writers_at_once_one_wins_whole(tmp_path):
    contents = [letter * 100_000 for letter in "abcdefgh"]
    writers = [threading.Thread(target=write_whole, args=(tmp_path / "counts", text)) for text in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "counts").read_text() in contents and names(tmp_path) == ["counts"]


def test_text_and_bytes_and_json_come_back_and_others_may_read_them(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_whole(tmp_path / "text", "Füße\n")
    write_whole(tmp_path / "bytes", b"\x00\xff")
    write_json(tmp_path / "json", {"samples": 3, "shards": [1, 2]})
    assert (tmp_path / "text").read_text(encoding="utf-8") == "Füße\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert json.loads((tmp_path / "json").read_text()) == {"samples": 3, "shards": [1, 2]}
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {plain.stat().st_mode}


def test_a_file_that_only_speeds_things_up_may_fail_but_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        write_beside(tmp_path / "missing" / "counts", "{}")
    assert "stays in memory" in caplog.text
    with pytest.raises(OSError):
        write_whole(tmp_path / "missing" / "counts", "{}")
