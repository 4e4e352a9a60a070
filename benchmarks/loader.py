"""Pictures a second of the training loader, reading JPEG shards, against decoding the same pictures alone.

    python -m benchmarks.loader [--json] [--stored_sizes 512] [--image_size 256] [--workers 2] [--crop center]

A row a stored size: the short side of the JPEGs, which are cut at many aspect ratios out of the photographs inside
scikit-image and scikit-learn (drawn where those are not installed), written to shards and read from the page cache.

`decode` is what a picture costs at the least before it can be in a batch: from its bytes in memory to the square uint8
picture of the training size, by the transforms that the loader uses (Pillow's JPEG decoder, then ADM's resize and
crop), and nothing else. `jpeg` is the JPEG decoder alone, without the resize. The loader does all the rest too: order
and mixture, reads from the tar, captions, batches, their way from the workers, float32 in [-1, 1].

`share_of_decode` is the loader's rate over that of `decode`, `share_of_jpeg` over that of `jpeg`. All three run in as
many processes as the loader has workers (0: all in this process), on the same cores, in turn; the best of the repeats
is reported for each, which other work on the machine disturbs least. `median_share` is the median, over the repeats, of
the share within one. A loader's time starts when every worker has delivered, and its first batches do not count.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.rows import print_rows
from tokenflow.data import DataConfig, Loader, SourceConfig, center_crop, decode_image
from tokenflow.data.photographs import PHOTOGRAPHS, photograph
from tokenflow.data.shape_shards import write_shard
from tokenflow.data.shapes import SceneSampler, draw
from tokenflow.data.shards import ShardSource, expand_shards
from tokenflow.data.transforms import random_crop, to_array

_PER_SHARD = 128
_QUALITY = 90
_ASPECTS = (0.67, 0.75, 0.8, 1.0, 1.0, 1.25, 1.33, 1.5, 1.78)
"""Width over height, as web pictures have them."""


def write_pictures(directory: Path, *, count: int, stored_size: int, seed: int = 0) -> int:
    """Shards of `count` JPEGs with that short side; returns how many of them are cut out of real photographs."""
    photographs = [image for name in PHOTOGRAPHS if (image := photograph(name)) is not None]
    rng = random.Random(seed)
    pictures = photographs or [Image.fromarray(draw(SceneSampler(seed, "train")[i], 512)) for i in range(16)]
    for start in range(0, count, _PER_SHARD):
        samples = [
            {
                "__key__": f"{number:08d}",
                "jpg": jpeg(cut(rng.choice(pictures), stored_size, rng=rng)),
                "txt": b"a photograph with a caption of about the usual length, for measuring",
                "json": json.dumps({"number": number, "captions": ["one", "two"]}).encode(),
            }
            for number in range(start, min(start + _PER_SHARD, count))
        ]
        write_shard(directory / f"pictures-{start // _PER_SHARD:06d}.tar", samples)
    return count if photographs else 0


def cut(image: Image.Image, stored_size: int, *, rng: random.Random) -> Image.Image:
    """A random part of a picture, with an aspect as on the web, at that short side."""
    aspect = rng.choice(_ASPECTS)
    width = min(image.width, image.height * aspect) * rng.uniform(0.7, 1.0)
    height = width / aspect
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    size = (round(stored_size * max(1, aspect)), round(stored_size * max(1, 1 / aspect)))
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def jpeg(image: Image.Image) -> bytes:
    """A picture as a JPEG."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_QUALITY)
    return stream.getvalue()


def decode_jpeg(content: bytes) -> None:
    """Pillow's decoder alone."""
    Image.open(io.BytesIO(content)).load()


def decode_and_crop(content: bytes, *, config: DataConfig, rng: random.Random) -> np.ndarray:
    """From bytes to the square uint8 array [S, S, 3] of the training size."""
    image = decode_image(content)
    if config.crop == "random":
        return to_array(random_crop(image, config.image_size, rng=rng, min_fraction=config.min_crop_fraction))
    return to_array(center_crop(image, config.image_size))


def seconds_alone(work: Callable[[Any], object], contents: Sequence[Any], *, processes: int) -> float:
    """Wall time of `work` on all contents, split over that many processes (0: this one), without starting them."""
    if not processes:
        start = time.perf_counter()
        for content in contents:
            work(content)
        return time.perf_counter() - start
    context = multiprocessing.get_context("fork")
    together = context.Barrier(processes + 1)
    arguments = [(work, contents[number::processes], together) for number in range(processes)]
    members = [context.Process(target=_work_together, args=each) for each in arguments]
    for member in members:
        member.start()
    together.wait()
    start = time.perf_counter()
    together.wait()
    elapsed = time.perf_counter() - start
    for member in members:
        member.join()
        assert not member.exitcode, f"a process of the measurement ended with status {member.exitcode}"
    return elapsed


def _work_together(work: Callable[[Any], object], contents: Sequence[Any], together) -> None:
    # one computing thread a process, as in the loader's workers
    torch.set_num_threads(1)
    together.wait()
    for content in contents:
        work(content)
    together.wait()


def seconds_of_loader(config: DataConfig, *, batch: int, batches: int) -> float:
    """Wall time of `batches` micro-batches, after those that fill the workers' queues."""
    loader = Loader(config, global_batch_size=batch, micro_batch_size=batch, seed=0)
    try:
        for _ in range(max(1, config.num_workers * config.prefetch_batches)):
            next(loader)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return time.perf_counter() - start
    finally:
        loader.close()


def measure(stored_size: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        batches = -(-arguments.pictures // arguments.batch)
        count = batches * arguments.batch
        real = write_pictures(Path(folder), count=count, stored_size=stored_size)
        config = DataConfig(
            sources=(SourceConfig(path=folder),),
            image_size=arguments.image_size,
            crop=arguments.crop,
            num_workers=arguments.workers,
        )
        source = ShardSource(expand_shards(folder))
        contents = [content for index in range(count) if (content := source.read(index).image) is not None]
        alone = partial(decode_and_crop, config=config, rng=random.Random(0))
        times: dict[str, list[float]] = {"loader": [], "decode": [], "jpeg": []}
        for _ in range(arguments.repeats):
            times["loader"].append(seconds_of_loader(config, batch=arguments.batch, batches=batches))
            times["decode"].append(seconds_alone(alone, contents, processes=arguments.workers))
            times["jpeg"].append(seconds_alone(decode_jpeg, contents, processes=arguments.workers))
    best = {name: min(values) for name, values in times.items()}
    pairs = zip(times["loader"], times["decode"], strict=True)
    return {
        "stored_size": stored_size,
        "image_size": arguments.image_size,
        "crop": arguments.crop,
        "workers": arguments.workers,
        "cores": len(os.sched_getaffinity(0)),
        "pictures": count,
        "photographs": real,
        "kilobytes": round(statistics.mean(map(len, contents)) / 1e3, 1),
        "loader_images_per_s": round(count / best["loader"], 1),
        "decode_images_per_s": round(count / best["decode"], 1),
        "jpeg_images_per_s": round(count / best["jpeg"], 1),
        "share_of_decode": round(best["decode"] / best["loader"], 3),
        "median_share": round(statistics.median(decode / loader for loader, decode in pairs), 3),
        "share_of_jpeg": round(best["jpeg"] / best["loader"], 3),
    }


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON row a stored size, nothing else")
    parser.add_argument("--stored_sizes", type=int, nargs="+", default=[512], help="short sides of the JPEGs")
    parser.add_argument("--image_size", type=int, default=256, help="side of the pictures in a batch")
    parser.add_argument("--crop", choices=["center", "random"], default="center")
    parser.add_argument("--workers", type=int, default=cores, help="processes (default: one a core, here %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="pictures a micro-batch")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print_rows((measure(stored_size, arguments) for stored_size in arguments.stored_sizes), as_json=arguments.json)


if __name__ == "__main__":
    main()
