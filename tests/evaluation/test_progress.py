import io
import re
import sys

from tokenflow.evaluation.progress import EvaluationProgress


def lines(caplog, **settings):
    with caplog.at_level("INFO"), EvaluationProgress(10, **settings) as progress:
        for done in (4, 8, 12):
            progress.update(done)
    return [record.message for record in caplog.records]


def test_plain_lines_say_how_many_how_fast_and_how_long(caplog):
    first, second, last = lines(caplog, seconds_between_lines=0)
    assert re.fullmatch(r"evaluated 4/10 images  \d+\.\d images/s  eta \d+:\d\d:\d\d", first)
    assert second.startswith("evaluated 8/10 ") and last.startswith("evaluated 10/10 ")


def test_lines_keep_their_distance_but_the_last_is_there(caplog):
    (line,) = lines(caplog, seconds_between_lines=1e9)
    assert line.startswith("evaluated 10/10 ")


def test_an_evaluation_that_continues_says_where(caplog):
    assert lines(caplog, done=3)[0] == "continuing after 3 of 10 images"


def test_other_ranks_are_silent(caplog):
    assert lines(caplog, active=False, seconds_between_lines=0, done=3) == []


def test_a_terminal_gets_a_bar(monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert lines(caplog) == []
    assert "10/10" in sys.stderr.getvalue() and "images/s" in sys.stderr.getvalue()
