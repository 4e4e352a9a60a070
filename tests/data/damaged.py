"""Shards with much of what goes wrong in the wild."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tokenflow.data.files import write_json
from tokenflow.data.shape_shards import write_shard


def jpeg(width, height, *, seed=0):
    low = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC).save(stream, format="JPEG")
    return stream.getvalue()


def sample(key, content, **members):
    encoded = {
        name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in members.items()
    }
    return {"__key__": key, "jpg": content, **encoded}


def write_damaged(folder: Path, *, good: int = 40) -> Path:
    """Two shards with a manifest: `good` good samples, five unusable ones, a key that is there twice."""
    folder.mkdir(parents=True, exist_ok=True)
    faces = [{"faces": {"count": number % 3, "boxes": [], "detector": "none"}} for number in range(good)]
    half = good // 2
    first = [sample(f"{n:04d}", jpeg(300 + n, 200, seed=n), txt=b"a good picture", json=faces[n]) for n in range(half)]
    second = [
        sample(f"{n:04d}", jpeg(128, 160 + n, seed=n), txt=b"word " * n, json=faces[n]) for n in range(half, good)
    ]
    whole = jpeg(400, 300)
    broken = [
        sample("zero", b"", txt=b"nothing"),
        sample("cut", whole[: len(whole) // 2]),
        sample("text", b"this is no picture at all"),
        sample("record", whole, json=b"{not json"),
        sample("0000", whole, txt=b"caf\xe9"),
        {"__key__": "alone", "txt": b"a caption alone"},
    ]
    shards = [write_shard(folder / f"shard-{n:06d}.tar", part) for n, part in enumerate((first, second + broken))]
    write_json(folder / "manifest.json", {"version": 1, "samples": good + len(broken), "shards": shards})
    return folder
