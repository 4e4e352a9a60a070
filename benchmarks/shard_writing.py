"""How fast `tokenflow make-shards` is against what it cannot do without: `tar` of the same files, and verification.

    python -m benchmarks.shard_writing [--json] [--pictures 512] [--workers 0 2]

A folder of JPEGs cut out of real photographs (quality 90, short side `--stored_size`), each with a caption and a
record. `tar` is the program, on all these files, its output synced to the disk as make-shards syncs its own. `verify`
is `SampleChecker` on contents that lie in memory, in as many processes as make-shards has: every picture decoded whole,
its pixels hashed, name, caption and record made safe. `make_shards` does that, finds duplicates, and writes, hashes and
syncs shards.

`share` is (tar + verify) / make_shards, each the best of the repeats, taken in turn; `median_share` is the median of
the shares within a repeat. `cpu_share` is the same as `share` in processor seconds of all processes, which other work
on the machine disturbs least, but which leaves out waiting for the disk and for each other. `--workers 0` is everything
in one process. Files lie in the page cache.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.loader import cut, jpeg, seconds_alone
from tokenflow.data.folders import FolderSource
from tokenflow.data.photographs import PHOTOGRAPHS, photograph
from tokenflow.data.sample_check import SampleChecker
from tokenflow.data.samples import RawSample
from tokenflow.data.shapes import SceneSampler, draw
from tokenflow.data.shard_making import MakeShardsConfig, ShardMaking

_CAPTION = "a photograph with a caption of about the usual length, for measuring"


class InMemory:
    """Samples that were read before."""

    def __init__(self, source: FolderSource):
        self.rows: list[RawSample] = [source.read(index) for index in range(len(source.files))]
        self.shard_sizes = [len(self.rows)]

    def describe(self, index: int) -> tuple[str, str]:
        """(key, file) of a sample."""
        return self.rows[index].key, self.rows[index].where

    def read(self, index: int) -> RawSample:
        """Sample number `index`."""
        return self.rows[index]


def write_files(folder: Path, *, count: int, stored_size: int) -> int:
    """Pictures, captions and records; returns how many are cut out of real photographs."""
    photographs = [image for name in PHOTOGRAPHS if (image := photograph(name)) is not None]
    pictures = photographs or [Image.fromarray(draw(SceneSampler(0, "train")[i], 512)) for i in range(16)]
    rng = random.Random(0)
    for number in range(count):
        stem = folder / f"{number:08d}"
        stem.with_suffix(".jpg").write_bytes(jpeg(cut(rng.choice(pictures), stored_size, rng=rng)))
        stem.with_suffix(".txt").write_text(_CAPTION)
        stem.with_suffix(".json").write_text(json.dumps({"number": number, "url": "https://example.org/a.jpg"}))
    return count if photographs else 0


def tar(folder: Path, target: Path) -> None:
    """The program, and syncing what it wrote."""
    subprocess.run(["tar", "--format=ustar", "-cf", str(target), "-C", str(folder), "."], check=True)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def make_shards(folder: Path, target: Path, *, shard_bytes: int, workers: int) -> None:
    """All of it, from listing the folder to the manifest."""
    config = MakeShardsConfig(shard_bytes=shard_bytes)
    manifest = ShardMaking(FolderSource(folder), target, path=str(folder), config=config).run(workers=workers)
    report = manifest["report"]
    assert report["written"] + report["dropped"].get("duplicate", 0) == report["read"], report


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) seconds; the latter of this process and of those that it waited for."""
    cpu, start = _cpu_seconds(), time.perf_counter()
    found = work()
    elapsed = time.perf_counter() - start
    # what measures itself says so, for its processes take time to start
    return found if isinstance(found, float) else elapsed, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(folder: Path, scratch: Path, *, workers: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One row."""
    source = FolderSource(folder)
    checker = SampleChecker(source=InMemory(source))
    indices = list(range(len(source.files)))
    made, shard_bytes = scratch / "shards", int(arguments.shard_size * 1024**2)
    works: dict[str, Callable[[], object]] = {
        "tar": lambda: tar(folder, scratch / "all.tar"),
        "verify": lambda: seconds_alone(lambda index: checker([index]), indices, processes=workers),
        "make_shards": lambda: make_shards(folder, made, shard_bytes=shard_bytes, workers=workers),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(arguments.repeats):
        for name, work in works.items():
            times[name].append(timed(work))
        shutil.rmtree(made)
    best, cpu = ({name: min(pair[which] for pair in pairs) for name, pairs in times.items()} for which in (0, 1))
    together = zip(*([wall for wall, _ in times[name]] for name in works), strict=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "workers": workers,
        "cores": len(os.sched_getaffinity(0)),
        "pictures": len(indices),
        "photographs": arguments.photographs,
        "megabytes": round(size / 1e6, 1),
        "tar_s": round(best["tar"], 3),
        "verify_s": round(best["verify"], 3),
        "make_shards_s": round(best["make_shards"], 3),
        "images_per_s": round(len(indices) / best["make_shards"], 1),
        "verify_ms_a_picture": round(1e3 * best["verify"] * max(1, workers) / len(indices), 2),
        "share": round((best["tar"] + best["verify"]) / best["make_shards"], 3),
        "median_share": round(statistics.median((tar + verify) / making for tar, verify, making in together), 3),
        "cpu_share": round((cpu["tar"] + cpu["verify"]) / cpu["make_shards"], 3),
    }


def main() -> None:
    """Measure, and print a row for each number of workers."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON row a number of workers, nothing else")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, cores], help="processes (default: 0 and all cores)"
    )
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--stored_size", type=int, default=512, help="short side of the JPEGs")
    parser.add_argument("--shard_size", type=float, default=16, help="MiB (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, scratch = Path(place, "files"), Path(place, "scratch")
        folder.mkdir()
        scratch.mkdir()
        arguments.photographs = write_files(folder, count=arguments.pictures, stored_size=arguments.stored_size)
        for number, workers in enumerate(arguments.workers):
            row = measure(folder, scratch, workers=workers, arguments=arguments)
            if arguments.json:
                print(json.dumps(row), flush=True)
                continue
            if not number:
                print(*row)
            print(*(f"{value!s:>{len(name)}}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
