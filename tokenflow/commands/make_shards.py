"""`tokenflow make-shards`: pictures, captions and records of whatever holds them, checked, as webdataset shards."""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from tokenflow.data.inputs import open_input
from tokenflow.data.manifest import REPORT_NAME
from tokenflow.data.picture_check import PictureConfig, PictureFormat
from tokenflow.data.sample_check import CaptionConfig
from tokenflow.data.shard_making import MakeShardsConfig, ShardMaking
from tokenflow.data.tables import TableConfig
from tokenflow.evaluation.progress import EvaluationProgress

_PREVIEWED = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="PATH", help="a folder of pictures, shards, .csv, .tsv, .parquet, hf:NAME")
    parser.add_argument("--out", "--output", type=Path, required=True, metavar="DIR", help="folder for the new shards")
    parser.add_argument("--image_column", metavar="NAME", help="tables: of pictures or paths to them (default: usual)")
    parser.add_argument("--caption_column", metavar="NAME", help="tables: of captions (default: a usual one)")
    parser.add_argument("--images", metavar="DIR", help="tables: what paths are relative to (default: the table's own)")
    parser.add_argument("--split", help="Hugging Face data sets: which (default: the only one, or train)")
    parser.add_argument("--shard_size", type=float, default=256, metavar="MIB", help="largest (default: %(default)s)")
    parser.add_argument("--samples_per_shard", type=int, help="most samples a shard (default: as many as fit)")
    parser.add_argument("--short_side", type=int, help="pixels to resize to, never up (default: keep the size)")
    parser.add_argument("--format", choices=get_args(PictureFormat), default="keep", help="default: %(default)s")
    parser.add_argument("--min_side", type=int, default=1, help="leave out pictures with a shorter side")
    parser.add_argument("--max_aspect", type=float, help="leave out pictures longer than this many times their breadth")
    parser.add_argument("--min_caption", type=int, default=0, help="leave out captions of fewer characters")
    parser.add_argument("--max_caption", type=int, help="leave out captions of more characters")
    parser.add_argument("--duplicates", choices=("pixels", "near", "keep"), default="pixels", help="which to leave out")
    parser.add_argument("--repeat_faces", type=int, default=1, help="times to write a picture whose record has faces")
    parser.add_argument("--seed", type=int, help="shuffle the samples with this seed (default: keep their order)")
    parser.add_argument("--workers", type=int, default=0, help="processes; the shards are the same for any number")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON, nothing else")
    parser.add_argument("--dry_run", action="store_true", help="check a few samples, say what would happen, then stop")


def run(arguments: argparse.Namespace) -> int:
    """Make the missing shards; 0 when the set is complete, 1 when no sample could be used."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if arguments.workers < 0:
        raise ValueError(f"--workers is {arguments.workers}; expected at least 0")
    tables = TableConfig(
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        images=arguments.images,
        split=arguments.split,
    )
    source = open_input(arguments.path, tables)
    if not sum(source.shard_sizes):
        raise ValueError(f"{arguments.path!r} holds no samples; is it empty or damaged?")
    given = {name: value for name, value in asdict(tables).items() if value is not None}
    making = ShardMaking(source, arguments.out, path=arguments.path, config=_config(arguments), columns=given)
    done, shards = making.done()
    if arguments.dry_run:
        return _preview(making, done=done, shards=shards, out=arguments.out)
    with EvaluationProgress(making.total, done=done, verbs=("checking", "checked")) as progress:
        manifest = making.run(workers=arguments.workers, progress=progress.update)
    print(json.dumps(manifest) if arguments.json else _summary(manifest, arguments.out))
    return 0 if manifest["samples"] else 1


def _config(arguments: argparse.Namespace) -> MakeShardsConfig:
    return MakeShardsConfig(
        pictures=PictureConfig(
            format=arguments.format,
            short_side=arguments.short_side,
            min_side=arguments.min_side,
            max_aspect=arguments.max_aspect,
        ),
        captions=CaptionConfig(min_length=arguments.min_caption, max_length=arguments.max_caption),
        duplicates=arguments.duplicates,
        repeat_faces=arguments.repeat_faces,
        shard_bytes=int(arguments.shard_size * 1024**2),
        samples_per_shard=arguments.samples_per_shard,
        shuffle_seed=arguments.seed,
    )


def _preview(making: ShardMaking, *, done: int, shards: int, out: Path) -> int:
    checked = making.preview(_PREVIEWED)
    dropped = [sample for sample in checked if sample.reason]
    print(f"{making.total:,} samples; {done:,} of them are done with, in {shards} finished shards in {out}")
    print(f"of {len(checked)} looked at, {len(dropped)} would be left out (duplicates are not counted here)")
    for sample in dropped[:10]:
        print(f"  {sample.original_key}: {sample.reason}: {sample.detail}")
    return 0


def _summary(manifest: dict[str, Any], out: Path) -> str:
    size = manifest["bytes"] / 1024**2
    lines = [f"{manifest['samples']:,} samples in {len(manifest['shards'])} shards, {size:,.1f} MiB: {out}"]
    for name, counted in manifest["report"].items():
        groups = {f"{name}: {reason}": count for reason, count in counted.items()} if isinstance(counted, dict) else {}
        lines += [f"  {line:<32} {count:>10,}" for line, count in (groups or {name: counted}).items() if count]
    if any(manifest["report"][group] for group in ("dropped", "changed")):
        lines.append(f"sample by sample: {out / REPORT_NAME}")
    return "\n".join(lines)
