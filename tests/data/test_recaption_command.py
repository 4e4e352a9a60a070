"""`tokenflow recaption` against a server on loopback, from the command line to shards."""

import json
import os
import signal

import pytest

from tests.data.caption_server import CaptionServer, write_shards
from tokenflow.cli import Command, main

COMMANDS = (Command(name="recaption", summary="new captions", module="tokenflow.commands.recaption"),)


def recaption(*arguments):
    return main(["recaption", *arguments], commands=COMMANDS)


@pytest.fixture
def shards(tmp_path):
    return str(write_shards(tmp_path / "in", [3, 2]))


def test_shards_get_new_captions_from_a_server_and_its_only_model(shards, tmp_path, capsys):
    out = tmp_path / "out"
    with CaptionServer(models=("qwen",)) as server:
        arguments = (shards, "--out", str(out), "--backend", "openai", "--base_url", server.url)
        assert recaption(*arguments) == 0
        assert "5 of 5 samples have a new caption" in capsys.readouterr().out
        # nothing is left to ask
        assert recaption(*arguments, "--json") == 0
        assert len(server.requests) == 5
    assert json.loads(capsys.readouterr().out)["recaptioned"] == 5
    assert json.loads((out / "manifest.json").read_text())["settings"]["model"] == "qwen"


def test_parts_say_what_is_missing(shards, tmp_path, capsys):
    with CaptionServer() as server:
        arguments = (shards, "--out", str(tmp_path / "out"), "--backend", "openai", "--base_url", server.url)
        assert recaption(*arguments, "--part", "1", "--parts", "2") == 0
        assert "part 1 of 2 is done" in capsys.readouterr().out
        assert recaption(*arguments, "--part", "0", "--parts", "2") == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_dry_run_shows_what_would_be_asked_and_writes_nothing(shards, tmp_path, capsys):
    assert recaption(shards, "--out", str(tmp_path / "out"), "--prompt", "refine", "--dry_run") == 0
    printed = capsys.readouterr().out
    assert "5 samples in 2 shards" in printed and "old caption 2" in printed and "Qwen2.5-VL" in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_needs_no_server(shards, tmp_path, capsys):
    options = ("--backend", "openai", "--base_url", "http://127.0.0.1:9/v1", "--dry_run")
    assert recaption(shards, "--out", str(tmp_path / "out"), *options) == 0
    printed = capsys.readouterr()
    assert "5 samples in 2 shards" in printed.out and "the server's model would be asked" in printed.out
    assert "does not list its models" in printed.err


def test_a_key_comes_from_the_environment_and_is_written_nowhere(shards, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with CaptionServer() as server:
        arguments = (shards, "--out", str(out), "--backend", "openai", "--base_url", server.url)
        monkeypatch.delenv("CAPTION_KEY", raising=False)
        assert recaption(*arguments, "--key_env", "CAPTION_KEY") == 2
        assert "not set" in capsys.readouterr().err
        monkeypatch.setenv("CAPTION_KEY", "very-secret")
        assert recaption(*arguments, "--key_env", "CAPTION_KEY") == 0
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer very-secret"}
    assert not any(b"very-secret" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_server_that_goes_away_ends_with_the_code_of_what_can_be_continued(shards, tmp_path, capsys):
    with CaptionServer(lambda number, body: (503, {})) as server:
        arguments = ("--model", "m", "--backend", "openai", "--base_url", server.url, "--tries", "1")
        assert recaption(shards, "--out", str(tmp_path / "out"), *arguments, "--stop_after", "2") == 75
    assert "the same command continues" in capsys.readouterr().err


def test_a_folder_without_an_answer_may_be_begun_with_other_settings(shards, tmp_path, capsys, caplog):
    arguments = (shards, "--out", str(tmp_path / "out"), "--backend", "openai")
    nobody = ("--base_url", "http://127.0.0.1:9/v1", "--tries", "1", "--stop_after", "2")
    assert recaption(*arguments, "--model", "wrong", *nobody) == 75
    assert sum("is tried up to 1 times" in line for line in caplog.messages) == 1
    with CaptionServer(models=("right",)) as server:
        assert recaption(*arguments, "--base_url", server.url) == 0
        assert recaption(*arguments, "--model", "wrong", "--base_url", server.url) == 2
    assert "begun with other settings: model is wrong, there right" in capsys.readouterr().err


def test_a_wrong_server_is_refused_with_a_remedy(shards, tmp_path, capsys):
    with CaptionServer(lambda number, body: (404, {})) as server:
        arguments = ("--model", "m", "--backend", "openai", "--base_url", server.url)
        assert recaption(shards, "--out", str(tmp_path / "out"), *arguments) == 2
    assert "--base_url" in capsys.readouterr().err


@pytest.fixture(params=[signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def number(request):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield request.param
    # a stopped command ends with both of them ignored
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_of_slurm_end_it_so_that_it_can_continue(shards, tmp_path, number, capsys):
    def interrupt(count, body):
        if count == 2:
            # Slurm signals every process, and the script around this one passes the signal on
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            return "hang"
        return "good"

    with CaptionServer(interrupt) as server:
        options = ("--model", "m", "--backend", "openai", "--base_url", server.url, "--concurrency", "1")
        arguments = (shards, "--out", str(tmp_path / "out"), *options)
        assert recaption(*arguments) == 75
        assert number.name in capsys.readouterr().err
        # one that comes late
        os.kill(os.getpid(), number)
        before = signal.getsignal(number)
        assert recaption(*arguments) == 0
        assert signal.getsignal(number) == before
        # two answers were noted; the third was in flight
        assert len(server.requests) == 2 + 1 + 3
    assert "5 of 5 samples" in capsys.readouterr().out


def test_options_that_do_not_go_together_are_refused(shards, tmp_path, capsys):
    for options in (["--temperature", "1"], ["--prompt", "nonsense"], ["--part", "3"], ["--max_tokens", "0"]):
        assert recaption(shards, "--out", str(tmp_path / "out"), *options) == 2
        assert "expected" in capsys.readouterr().err
