"""Pictures to webdataset shards: `tokenflow make-shards` for launchers that want a file.

python tools/make_shards.py pictures --out shards --short_side 512 --workers 8
"""

from __future__ import annotations

import sys

from tokenflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["make-shards", *sys.argv[1:]]))
