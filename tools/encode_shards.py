"""Pictures to shards of codes: `tokenflow encode-shards` for launchers that want a file, as `torchrun` does.

python tools/encode_shards.py --data pictures --tokenizer runs/demo/tokenizer/model --out codes
srun python tools/encode_shards.py --data "pictures/{0000..0127}.tar" --tokenizer tokenflow-b-256 --out codes
"""

from __future__ import annotations

import sys

from tokenflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["encode-shards", *sys.argv[1:]]))
