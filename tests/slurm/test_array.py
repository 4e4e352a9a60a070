"""The array job of new captions: its tasks share the shards, and an answer that was noted is never asked for again."""

import json
import os
import re
import signal
import threading
from collections import Counter

import pytest

from tests.data.caption_server import GOOD, CaptionServer, write_shards

TOOL = "tools/recaption.py"
SIZES = (4, 4, 3, 4)
HELD = (2, 6)
"""A picture in the second half of the first shard of either task."""


class Held:
    """Counts how often each picture is asked about; the first request about one of `HELD` gets no answer."""

    def __init__(self):
        self.asked = Counter()
        self._lock = threading.Lock()

    def __call__(self, number, body):
        picture = int(re.search(r"old caption (\d+)", json.dumps(body))[1])
        with self._lock:
            self.asked[picture] += 1
            return "hang" if picture in HELD and self.asked[picture] == 1 else GOOD


@pytest.mark.slow
def test_tasks_that_are_killed_or_stopped_go_on_and_no_answer_is_asked_for_twice(cluster, tmp_path):
    held, output = Held(), tmp_path / "out"
    with CaptionServer(held) as server:
        words = ("--backend", "openai", "--base_url", server.url, "--prompt", "refine", "--concurrency", 1)
        given = {"DATA": write_shards(tmp_path / "shards", SIZES), "OUTPUT": output, "MODEL": "tiny"}
        array = cluster.submit("recaption.sh", *words, options=("--array=0-1",), **given)
        killed, stopped = array.task(0), array.task(1)
        killed.until(lambda: held.asked[HELD[0]] == 1)
        (process,) = killed.processes(TOOL)
        os.kill(process, signal.SIGKILL)
        stopped.until(lambda: held.asked[HELD[1]] == 1)
        cluster.command("scancel", "--signal=USR1", "--batch", stopped.number)
        for task in (killed, stopped):
            assert task.end().restarts == 1, task.output
    assert "goes back into the queue at answer 2" in killed.output
    assert "stopped by a signal, and saved" in stopped.output
    assert held.asked == {picture: 1 + (picture in HELD) for picture in range(sum(SIZES))}
    assert json.loads((output / "manifest.json").read_text())["report"]["recaptioned"] == sum(SIZES)
