import importlib.util
import io
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokenflow.data.duplicates import HASH_BITS, NearIndex, gradient_hash, pixel_hash
from tokenflow.data.photographs import PHOTOGRAPHS
from tokenflow.data.transforms import decode_image


def noise(width=12, height=8, *, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def again(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return decode_image(stream.getvalue())


def photographs():
    found = []
    for name, (path, _) in PHOTOGRAPHS.items():
        package, _, inside = path.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is not None and (file := Path(spec.origin).parent / inside).exists():
            found.append((name, decode_image(file.read_bytes())))
    return found


def test_equal_pixels_have_equal_hashes_in_any_file():
    image = noise()
    assert pixel_hash(again(image, "PNG")) == pixel_hash(again(image, "BMP")) == pixel_hash(image)


def test_one_level_or_another_shape_changes_the_hash():
    image = noise()
    other = image.copy()
    other.putpixel((3, 3), tuple(level ^ 1 for level in image.getpixel((3, 3))))
    turned = Image.frombytes("RGB", (8, 12), image.tobytes())
    assert len({pixel_hash(picture) for picture in (image, other, turned)}) == 3


def test_a_photograph_stays_near_itself_and_far_from_others():
    pictures = photographs()
    if len(pictures) < 4:
        pytest.skip("needs the photographs inside scikit-image and scikit-learn")
    hashes = [gradient_hash(image) for _, image in pictures]
    for (name, image), value in zip(pictures, hashes, strict=True):
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        for copy in (half, again(image, "JPEG", quality=60), again(half, "WEBP", quality=60)):
            assert (gradient_hash(copy) ^ value).bit_count() <= 10, name
    apart = [(left ^ right).bit_count() for i, left in enumerate(hashes) for right in hashes[:i]]
    assert min(apart) > 40


def test_a_flat_picture_has_no_gradients():
    assert gradient_hash(Image.new("RGB", (32, 32), (90, 200, 10))) is None
    assert gradient_hash(noise(64, 64)) is not None


@given(st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_index_finds_what_comparing_with_everything_finds(distance, rng: random.Random):
    centres = [rng.getrandbits(HASH_BITS) for _ in range(4)]

    def near():
        value = rng.choice(centres)
        for bit in rng.sample(range(HASH_BITS), rng.randint(0, distance)):
            value ^= 1 << bit
        return value

    index, added = NearIndex(distance), []
    for _ in range(20):
        value = near()
        assert index.holds_near(value) == any((value ^ other).bit_count() <= distance for other in added)
        index.add(value)
        added.append(value)


def test_a_distance_that_finds_everything_is_refused():
    with pytest.raises(ValueError, match="expected 0 to 32"):
        NearIndex(33)
