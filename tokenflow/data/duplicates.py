"""Duplicate pictures: equal pixels by a hash of them, nearly equal ones by a hash of their brightness gradients."""

import hashlib
from itertools import pairwise

import numpy as np
from PIL import Image

HASH_BITS = 128
"""Of a gradient hash: 8 x 8 horizontal and 8 x 8 vertical comparisons."""
_SIDE = 8
_LEAST_RANGE = 8


def pixel_hash(image: Image.Image) -> bytes:
    """16 bytes that two RGB pictures share exactly when all their pixels are equal, whatever their files look like."""
    digest = hashlib.sha256(f"{image.mode}{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.digest()[:16]


def gradient_hash(image: Image.Image) -> int | None:
    """A difference hash of HASH_BITS bits; few of them change when a picture is resized or compressed again.

    None for a picture that is almost of one brightness: there, the comparisons would see nothing but noise.
    """
    size = (_SIDE + 1, _SIDE + 1)
    levels = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.int16)
    if int(levels.max()) - int(levels.min()) < _LEAST_RANGE:
        return None
    right = levels[:-1, 1:] > levels[:-1, :-1]
    down = levels[1:, :-1] > levels[:-1, :-1]
    return int.from_bytes(np.packbits(np.concatenate([right.ravel(), down.ravel()])).tobytes(), "big")


class NearIndex:
    """Gradient hashes, searched by Hamming distance.

    The bits are split into `distance` + 1 bands: two hashes that differ in at most `distance` bits agree in one whole
    band, so that only hashes with an equal band are compared.
    """

    def __init__(self, distance: int):
        """`distance` is the number of bits by which two hashes may differ and still count as near."""
        if not 0 <= distance <= 32:
            raise ValueError(f"distance is {distance} bits of {HASH_BITS}; expected 0 to 32")
        self.distance = distance
        edges = [HASH_BITS * band // (distance + 1) for band in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._buckets: list[dict[int, list[int]]] = [{} for _ in self._bands]

    def holds_near(self, value: int) -> bool:
        """Whether a hash at most `distance` bits away was added."""
        return any(
            (value ^ other).bit_count() <= self.distance
            for (low, mask), bucket in zip(self._bands, self._buckets, strict=True)
            for other in bucket.get(value >> low & mask, ())
        )

    def add(self, value: int) -> None:
        """Add a hash."""
        for (low, mask), bucket in zip(self._bands, self._buckets, strict=True):
            bucket.setdefault(value >> low & mask, []).append(value)
