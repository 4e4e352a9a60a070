"""How many samples every shard holds, without opening the shards again at each start.

A folder's own manifest.json is believed. Other counts are kept in one small file beside the shards, each with the size
and the modification time of its shard, so that a shard that changed is counted again.
"""

import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tokenflow.data.files import write_beside

logger = logging.getLogger(__name__)
MANIFEST_NAME = "manifest.json"
COUNTS_NAME = ".tokenflow-counts.json"
_VERSION = 1
_THREADS = 8
_LOG_SECONDS = 5.0
Entry = tuple[int, int, int]
"""(samples, bytes, modification time in ns) of a shard."""


def count_samples(paths: Sequence[str], *, count: Callable[[str], int], at_least: int | None = None) -> list[int]:
    """Samples of every shard, in order; of the first ones that together hold `at_least` samples, if that is given.

    `count` finds them for one shard, and is called for those that neither a manifest nor an earlier count knows.
    """
    if at_least is None:
        return _count_all(paths, count)
    sizes: list[int] = []
    while len(sizes) < len(paths) and sum(sizes) < at_least:
        sizes += _count_all(paths[len(sizes) : len(sizes) + _THREADS], count)
    return sizes


def _count_all(paths: Sequence[str], count: Callable[[str], int]) -> list[int]:
    names: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        names.setdefault(os.path.dirname(path), []).append(path)
    sizes: dict[str, int] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for folder, members in names.items():
            sizes |= _count_folder(folder, members, count=count, pool=pool)
    return [sizes[path] for path in paths]


def _count_folder(
    folder: str, paths: Iterable[str], *, count: Callable[[str], int], pool: ThreadPoolExecutor
) -> dict[str, int]:
    manifest = _manifest_counts(folder)
    sizes = {path: manifest[os.path.basename(path)] for path in paths if os.path.basename(path) in manifest}
    others = [path for path in paths if path not in sizes]
    if not others:
        return sizes
    # before counting: a shard that changes meanwhile is counted again by the next start
    stamps = dict(zip(others, pool.map(_stamp, others), strict=True))
    kept = _read_counts(folder)
    missing = []
    for path, stamp in stamps.items():
        samples, *old = kept.get(os.path.basename(path), (0, -1, -1))
        if tuple(old) == stamp:
            sizes[path] = samples
        else:
            missing.append(path)
    if missing:
        counted = _count_in_threads(missing, count=count, pool=pool)
        sizes |= counted
        # read again: other processes count too
        entries = _read_counts(folder) | {
            os.path.basename(path): (samples, *stamps[path]) for path, samples in counted.items()
        }
        write_beside(Path(folder) / COUNTS_NAME, json.dumps({"version": _VERSION, "shards": entries}))
    return sizes


def _count_in_threads(paths: list[str], *, count: Callable[[str], int], pool: ThreadPoolExecutor) -> dict[str, int]:
    # each process in an order of its own, so that those that start together index different shards first and find
    # the others' indices later
    order = random.Random(os.getpid()).sample(paths, len(paths))
    waiting = {pool.submit(count, path): path for path in order}
    sizes: dict[str, int] = {}
    said = time.monotonic()
    try:
        for done in as_completed(waiting):
            sizes[waiting[done]] = done.result()
            if time.monotonic() - said >= _LOG_SECONDS:
                said = time.monotonic()
                logger.info("indexed %d of %d shards", len(sizes), len(paths))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return sizes


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _read_counts(folder: str) -> dict[str, Entry]:
    try:
        stored = json.loads((Path(folder) / COUNTS_NAME).read_text())
        if stored["version"] != _VERSION:
            return {}
        return {name: (samples, size, modified) for name, (samples, size, modified) in stored["shards"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.info("counts beside the shards in %s are not used: %s", folder, error)
        return {}


def _manifest_counts(folder: str) -> dict[str, int]:
    """Samples of every shard that the folder's manifest.json lists."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        return {}
    return {shard["name"]: shard["samples"] for shard in json.loads(path.read_text())["shards"]}
