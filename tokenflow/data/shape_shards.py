"""Writes the built-in world to webdataset shards, like any other data set: `.png` + `.txt` + `.json` a sample.

The bytes are a function of the arguments, shards appear under their final name only when complete, and a manifest gives
counts, bytes and sha256 of every shard.
"""

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from tokenflow.data.captions import caption
from tokenflow.data.counts import MANIFEST_NAME
from tokenflow.data.files import replacing, write_json
from tokenflow.data.questions import questions
from tokenflow.data.shapes import Scene, SceneSampler, Split, draw

_CAPTIONS = 8


def scene_key(split: Split, index: int) -> str:
    """Name of a scene in shards and conversations."""
    return f"{split}-{index:08d}"


def scene_sample(scene: Scene, *, key: str, image_size: int) -> dict[str, Any]:
    """A scene as a webdataset sample: "png" bytes, "txt" caption, "json" with scene, more captions and questions."""
    stream = io.BytesIO()
    Image.fromarray(draw(scene, image_size)).save(stream, format="PNG", compress_level=6)
    texts = _captions(scene, reading_order=True)
    record = {
        "scene": scene.to_json(),
        "captions": texts,
        "captions_in_any_order": _captions(scene, reading_order=False),
        "questions": [asdict(item) for item in questions(scene)],
    }
    return {
        "__key__": key,
        "png": stream.getvalue(),
        "txt": texts[0].encode(),
        "json": json.dumps(record, separators=(",", ":")).encode(),
    }


def _captions(scene: Scene, *, reading_order: bool) -> list[str]:
    texts = (caption(scene, variant=variant, reading_order=reading_order) for variant in range(_CAPTIONS))
    return list(dict.fromkeys(texts))


def write_shapes(
    directory: str | Path,
    *,
    num_samples: int,
    image_size: int,
    seed: int,
    split: Split = "train",
    samples_per_shard: int = 1024,
) -> Path:
    """Write scenes 0 to `num_samples` - 1 as `shapes-NNNNNN.tar` with a manifest.json; returns the manifest's path.

    A folder that already holds exactly this data set is left alone. Raises ValueError for sizes that make no sense.
    """
    if num_samples < 1 or samples_per_shard < 1:
        raise ValueError(f"num_samples {num_samples} and samples_per_shard {samples_per_shard} must both be at least 1")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    source = {
        "kind": "shapes",
        "version": 2,
        "num_samples": num_samples,
        "image_size": image_size,
        "seed": seed,
        "split": split,
        "samples_per_shard": samples_per_shard,
    }
    manifest_path = directory / MANIFEST_NAME
    if _is_complete(manifest_path, source):
        return manifest_path
    sampler = SceneSampler(seed, split)
    shards = []
    for number, start in enumerate(range(0, num_samples, samples_per_shard)):
        path = directory / f"shapes-{number:06d}.tar"
        stop = min(start + samples_per_shard, num_samples)
        samples = (
            scene_sample(sampler[index], key=scene_key(split, index), image_size=image_size)
            for index in range(start, stop)
        )
        shards.append(write_shard(path, samples))
    write_json(manifest_path, {"source": source, "samples": num_samples, "shards": shards})
    return manifest_path


def write_shard(path: Path, samples: Any) -> dict[str, Any]:
    """Write an iterable of webdataset samples (bytes values) to one tar, atomically; returns its manifest entry."""
    count = 0
    with replacing(path) as partial:
        with open(partial, "wb") as stream:
            with webdataset.TarWriter(stream, encoder=False, mtime=0, user="tokenflow", group="tokenflow") as writer:
                for sample in samples:
                    writer.write(sample)
                    count += 1
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        size = partial.stat().st_size
    return {"name": path.name, "samples": count, "bytes": size, "sha256": digest}


def _is_complete(manifest_path: Path, source: dict[str, Any]) -> bool:
    if not manifest_path.is_file():
        return False
    manifest = json.loads(manifest_path.read_text())
    return manifest.get("source") == source and all(
        (path := manifest_path.parent / shard["name"]).is_file() and path.stat().st_size == shard["bytes"]
        for shard in manifest["shards"]
    )
