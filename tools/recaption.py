"""New captions for shards from a Qwen-VL: `tokenflow recaption` for launchers that want a file.

python tools/recaption.py shards --out recaptioned --model Qwen/Qwen2.5-VL-7B-Instruct
python tools/recaption.py shards --out recaptioned --backend openai --base_url http://localhost:8000/v1
"""

from __future__ import annotations

import sys

from tokenflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["recaption", *sys.argv[1:]]))
