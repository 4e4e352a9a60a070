"""Prints by how much memory grew while MEGABYTES were allocated: python -m tests.benchmarks.allocates MEGABYTES"""

import sys

from benchmarks.memory import peak_growth_mb


def allocate(megabytes: int) -> None:
    # Written to: untouched pages are no memory.
    assert len(b"x" * (megabytes << 20)) == megabytes << 20


if __name__ == "__main__":
    print(peak_growth_mb(lambda: allocate(int(sys.argv[1])), "cpu"))
