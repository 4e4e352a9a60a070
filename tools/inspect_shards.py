"""What is in a set of shards: `tokenflow inspect-shards` as a file.

python tools/inspect_shards.py shards --out inspected --workers 8
"""

from __future__ import annotations

import sys

from tokenflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect-shards", *sys.argv[1:]]))
