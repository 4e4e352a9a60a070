"""Shards made by the command, and what is in them."""

import io
import json

import numpy as np
import webdataset
from PIL import Image

from tokenflow.cli import main

CAPTIONS = ["plain, with a comma", 'two\nlines and "quotes"', "schön", "; semicolon", "last"]


def png(seed):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def make(path, out, *options, workers=0):
    """(report, samples by key) of make-shards."""
    assert main(["make-shards", str(path), "--out", str(out), "--workers", str(workers), *map(str, options)]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    shards = [str(out / shard["name"]) for shard in manifest["shards"]]
    return manifest["report"], {
        sample["__key__"]: sample for sample in webdataset.WebDataset(shards, shardshuffle=False)
    }
