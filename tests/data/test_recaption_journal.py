"""What is noted stays noted, whatever ends the process."""

import multiprocessing
import os
import signal

import pytest

from tokenflow.data.recaption_journal import Journal, read_journal

LINES = {(0, "a"): {"answer": "one"}, (3, "b/c"): {"answer": "zwei ü 三", "cut": False}}


def write(path, lines, **options):
    with Journal(path, shard="s.tar", **options) as journal:
        for (position, key), content in lines.items():
            journal.add(position, key, content)


def test_what_is_added_is_read_again(tmp_path):
    path = tmp_path / "s.jsonl"
    write(path, LINES)
    noted, whole = read_journal(path, shard="s.tar")
    assert noted == LINES and whole == path.stat().st_size
    with Journal(path, shard="s.tar") as journal:
        assert journal.get(3, "b/c") == LINES[3, "b/c"] and journal.get(1, "a") is None and len(journal) == 2
    assert read_journal(path, shard="other.tar")[0] == {}


@pytest.mark.parametrize("missing", range(1, 60, 7))
def test_a_torn_last_line_is_cut_away_and_the_rest_stays(tmp_path, missing):
    path = tmp_path / "s.jsonl"
    write(path, LINES)
    path.write_bytes(path.read_bytes()[:-missing])
    assert read_journal(path, shard="s.tar")[0] == {(0, "a"): LINES[0, "a"]}
    write(path, {(3, "b/c"): {"answer": "again"}})
    assert read_journal(path, shard="s.tar")[0] == {(0, "a"): LINES[0, "a"], (3, "b/c"): {"answer": "again"}}


def test_lines_that_cannot_be_read_cost_only_themselves(tmp_path, caplog):
    path = tmp_path / "s.jsonl"
    write(path, {(0, "a"): LINES[0, "a"]})
    path.write_bytes(path.read_bytes() + b'\0\0\0\n[1]\n{"shard":"s.tar"}\n')
    write(path, {(3, "b/c"): LINES[3, "b/c"]})
    assert read_journal(path, shard="s.tar")[0] == LINES
    assert "3 lines" in caplog.text


def test_lines_are_written_at_once_and_survive_sigkill(tmp_path):
    path = tmp_path / "s.jsonl"

    def write_and_die():
        with Journal(path, shard="s.tar", lines_a_sync=1000) as journal:
            for (position, key), content in LINES.items():
                journal.add(position, key, content)
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=write_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_journal(path, shard="s.tar")[0] == LINES


def test_two_processes_do_not_write_one_journal(tmp_path):
    path = tmp_path / "s.jsonl"

    def open_it():
        try:
            write(path, {})
        except ValueError as error:
            assert "--part" in str(error)
            os._exit(7)

    with Journal(path, shard="s.tar"):
        process = multiprocessing.get_context("fork").Process(target=open_it)
        process.start()
        process.join()
    assert process.exitcode == 7
