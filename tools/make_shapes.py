"""Writes the built-in world as a data set: shards of pictures with captions, and conversations about them.

python tools/make_shapes.py --out data/shapes --num_samples 6000 --image_size 32
python tools/make_shapes.py --out data/shapes --num_samples 6000 --image_size 32 --conversations

The second also writes LLaVA's format beside the shards: captions.jsonl (alignment), names.jsonl, corners.jsonl,
sides.jsonl, relations.jsonl and questions.jsonl (tuning), and, both without pictures, text.jsonl and corpus.txt. Their
pictures are the members of the shards.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from tokenflow.data.shape_shards import write_shapes
from tokenflow.data.shapes import Split
from tokenflow.data.world_conversations import write_conversations


def main() -> None:
    """Write what the command line asks for; complete files are left alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--num_samples", type=int, default=6000, help="pictures")
    parser.add_argument("--image_size", type=int, default=32, help="side of the pictures, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--split", choices=get_args(Split), default="train", help="train holds no held-out pair")
    parser.add_argument("--samples_per_shard", type=int, default=1024)
    parser.add_argument("--conversations", action="store_true", help="write conversations too")
    parser.add_argument("--turns", type=int, default=8, help="questions a conversation at most")
    chosen = parser.parse_args()
    scenes = {"seed": chosen.seed, "split": chosen.split}
    size = {"image_size": chosen.image_size, "samples_per_shard": chosen.samples_per_shard}
    print(write_shapes(chosen.out, num_samples=chosen.num_samples, **size, **scenes))
    if chosen.conversations:
        for path in write_conversations(
            chosen.out, num_scenes=chosen.num_samples, turns=chosen.turns, **scenes
        ).values():
            print(path)


if __name__ == "__main__":
    main()
