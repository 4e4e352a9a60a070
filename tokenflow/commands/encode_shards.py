"""`tokenflow encode-shards`: the codes of a source's pictures, written once, read by every later training run."""

import argparse
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tokenflow import TokenFlowTokenizer
from tokenflow.commands.reconstruct import choose_device
from tokenflow.data import SourceConfig
from tokenflow.data.code_shards import CodeShards
from tokenflow.evaluation.progress import EvaluationProgress
from tokenflow.tasks.stored_codes import describe_codes

_HEADER = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--data", required=True, metavar="PATH", help="shards, a pattern of them, or a picture folder")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="what save_pretrained wrote, or a hub id")
    parser.add_argument(
        "--out", "--output", type=Path, required=True, metavar="DIR", help="folder for the shards of codes"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="images at once (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read pictures (default: here)")
    parser.add_argument("--device", default="auto", help="auto (default: this process's GPU), cpu, cuda:1, ...")
    parser.add_argument("--samples_per_shard", type=int, help="cut anew; default: mirror the shards of pictures")
    parser.add_argument("--rank", type=int, help="default: RANK or SLURM_PROCID, else 0")
    parser.add_argument("--world_size", type=int, help="default: WORLD_SIZE or SLURM_NTASKS, else 1")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, then stop")


def run(arguments: argparse.Namespace) -> int:
    """Encode this rank's shards; 0 also when other ranks are not done yet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    rank, world_size = ranks(arguments.rank, arguments.world_size, os.environ)
    tokenizer = TokenFlowTokenizer.from_pretrained(arguments.tokenizer)
    shards = CodeShards(
        SourceConfig(path=arguments.data),
        arguments.out,
        description=describe_codes(tokenizer, name=arguments.tokenizer),
        samples_per_shard=arguments.samples_per_shard,
    )
    mine, done = shards.spans[rank::world_size], shards.done()
    total = sum(span.stop - span.start for span in mine)
    ready = sum(span.stop - span.start for span in mine if span in done)
    print(_plan(shards, done=len(done)), flush=True)
    if arguments.dry_run:
        return 0
    device = _device(arguments.device, os.environ)
    tokenizer.to(device)
    with EvaluationProgress(total, done=ready, verbs=("encoding", "encoded")) as progress:
        complete = shards.run(
            lambda images: _encode(tokenizer, images, device=device),
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
            rank=rank,
            world_size=world_size,
            progress=lambda count: progress.update(progress.done + count),
        )
    waiting = "complete; train with --data on it" if complete else "the other ranks' shards are still missing"
    if unusable := shards.without_codes():
        print(f"{unusable} pictures could not be read; they keep their places, and training skips and counts them")
    print(f"rank {rank} of {world_size}: {len(mine)} shards of codes in {arguments.out}: {waiting}")
    return 0


def ranks(rank: int | None, world_size: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, number of processes): the options, else what a launcher says, else one process.

    Raises:
        ValueError: Only one of the two options, or a rank that does not exist.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"--rank is {rank} and --world_size {world_size}; give both or neither")
    if rank is None or world_size is None:
        names = ("RANK", "WORLD_SIZE") if "RANK" in environment else ("SLURM_PROCID", "SLURM_NTASKS")
        # Only inside a step of srun: a batch script is one process, whatever the job was given.
        launched = names[0] == "RANK" or "SLURM_STEP_ID" in environment
        defaults = zip(names, ("0", "1"), strict=True)
        rank, world_size = (int(environment.get(name, value) if launched else value) for name, value in defaults)
    if not 0 <= rank < world_size:
        raise ValueError(f"--rank is {rank}; expected 0 to {world_size - 1} (--world_size {world_size})")
    return rank, world_size


def _plan(shards: CodeShards, *, done: int) -> str:
    description = shards.description
    width = max(1, (description.codebook_size - 1).bit_length() + 7 >> 3)
    width = 4 if width == 3 else width
    # Header and content of the codes in whole blocks; captions and records come on top.
    sample = _HEADER + -(-(128 + description.num_codes * width) // _HEADER) * _HEADER
    return (
        f"{shards.total:,} pictures, {description.num_codes} codes each, of {description}\n"
        f"{len(shards.spans)} shards in {shards.folder}, {done} of them complete; about "
        f"{shards.total * sample / 1024**3:.3f} GiB besides captions and records"
    )


def _encode(tokenizer: TokenFlowTokenizer, images: Tensor, *, device: torch.device) -> Tensor:
    return tokenizer.encode(images.to(device))


def _device(name: str, environment: Mapping[str, str]) -> torch.device:
    device = choose_device(name)
    if name != "auto" or device.type != "cuda":
        return device
    local = int(environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", "0")))
    return torch.device("cuda", local % torch.cuda.device_count())
