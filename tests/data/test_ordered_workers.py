import os
import signal
import subprocess
import sys
import time

import pytest

from tokenflow.data.ordered_workers import WorkerDied, ordered_map


def slow_square(number):
    time.sleep(0.002 * (number % 3))
    return number, number**2, bytes(100_000 * (number % 2))


def killed_at_seven(number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_results_come_in_order_for_any_number_of_workers(workers, count):
    found = list(ordered_map(slow_square, range(count), workers=workers))
    assert found == [(number, slow_square(number)) for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_worker_that_dies_costs_its_item_alone(workers):
    found = dict(ordered_map(killed_at_seven, range(20), workers=workers))
    assert found.pop(7) == WorkerDied(-signal.SIGKILL)
    assert found == {number: -number for number in range(20) if number != 7}


def test_items_are_taken_a_little_ahead_only():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = ordered_map(slow_square, items(), workers=2)
    next(results)
    assert len(taken) <= 8
    results.close()


ORPHANS = r"""
import os, signal
from tokenflow.data.ordered_workers import ordered_map
def work(item):
    os.write(1, b"%d\n" % os.getpid())  # one write: lines of several processes must not mix
    return bytes(1_000_000)
results = ordered_map(work, range(100), workers=3)
next(results), next(results), next(results)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_process_that_started_them_even_by_sigkill():
    # the pipe to stdout closes when the last of them has ended
    done = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, timeout=60, text=True)
    assert done.returncode == -signal.SIGKILL and len(set(done.stdout.split())) == 3
