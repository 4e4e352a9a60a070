"""The manifest of a finished set of shards and the report beside it: what it holds, how made, what was left out."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenflow.data.counts import MANIFEST_NAME
from tokenflow.data.files import write_json, write_whole
from tokenflow.data.shard_writer import ShardEntry

REPORT_NAME = "report.jsonl"
_VERSION = 1


def write_manifest(
    folder: Path,
    entries: Iterable[ShardEntry],
    *,
    lines: Iterable[Mapping[str, str]],
    settings: Mapping[str, Any],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the report's lines, then the manifest, which appears last.

    Args:
        folder: Of the shards.
        entries: The shards, in order.
        lines: Of the report, one a sample that was left out or changed.
        settings: What the set was made with.
        report: Counts.

    Returns:
        The manifest.
    """
    write_whole(folder / REPORT_NAME, "".join(json.dumps(line) + "\n" for line in lines))
    shards = [entry.to_json() for entry in entries]
    manifest = {
        "version": _VERSION,
        "samples": sum(entry["samples"] for entry in shards),
        "bytes": sum(entry["bytes"] for entry in shards),
        "shards": shards,
        "settings": settings,
        "report": report,
    }
    write_json(folder / MANIFEST_NAME, manifest)
    return manifest
