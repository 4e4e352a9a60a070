import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokenflow.data.duplicates import pixel_hash
from tokenflow.data.picture_check import BadPicture, PictureConfig, check_picture
from tokenflow.data.transforms import decode_image


def noise(width=24, height=16, *, channels=3, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(levels.squeeze())


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def png_of_size(width, height, *, bits=8, rows=b""):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def reason(content, **config):
    with pytest.raises(BadPicture) as error:
        check_picture(content, config=PictureConfig(**config))
    return error.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_plain_picture_keeps_its_bytes(kind, channels):
    content = encoded(noise(channels=channels), kind)
    checked = check_picture(content, config=PictureConfig())
    assert checked.content == content and checked.changes == () and checked.scale == 1
    assert (checked.width, checked.height) == (24, 16)
    assert checked.extension == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]


@pytest.mark.parametrize("wanted", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_picture_becomes_the_format_asked_for(wanted, kind):
    content = encoded(noise(), kind)
    checked = check_picture(content, config=PictureConfig(format=wanted))
    same = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}.get(kind) == wanted
    assert checked.extension == wanted and (checked.content == content) == same
    assert ("converted" in checked.changes) != same
    assert Image.open(io.BytesIO(checked.content)).format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[wanted]
    if wanted == "png":
        assert decode_image(checked.content).tobytes() == decode_image(content).tobytes()


def cmyk():
    return encoded(noise(channels=4).convert("RGB").convert("CMYK"), "JPEG")


def animated():
    frames = [noise(seed=seed).quantize() for seed in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(), "JPEG", exif=exif)


def grey_16_bit():
    return encoded(Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170), "PNG")


def rgb_16_bit():
    rows = b"".join(b"\0" + bytes(range(24 * 6)) for _ in range(16))
    return png_of_size(24, 16, bits=16, rows=rows)


SPECIAL = [
    (cmyk, "cmyk"),
    (animated, "animated"),
    (rotated, "rotated"),
    (grey_16_bit, "16-bit"),
    (rgb_16_bit, "16-bit"),
    (lambda: encoded(noise(channels=4), "PNG"), "alpha"),
    (lambda: encoded(noise(channels=3), "TIFF"), "converted"),
]


@pytest.mark.parametrize(("make", "change"), SPECIAL)
def test_what_needs_special_handling_is_stored_as_training_would_see_it(make, change):
    content = make()
    checked = check_picture(content, config=PictureConfig(format="png"))
    assert change in checked.changes
    stored = Image.open(io.BytesIO(checked.content))
    assert stored.mode == "RGB" and getattr(stored, "n_frames", 1) == 1 and 0x0112 not in stored.getexif()
    assert stored.tobytes() == decode_image(content).tobytes()
    assert stored.size == ((16, 24) if change == "rotated" else (24, 16)) == (checked.width, checked.height)


@pytest.mark.parametrize(("make", "change"), SPECIAL)
def test_checking_again_changes_nothing(make, change):
    first = check_picture(make(), config=PictureConfig(short_side=12))
    again = check_picture(first.content, config=PictureConfig(short_side=12))
    assert again.changes == () and again.content == first.content


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_truncated_picture_is_left_out(kind, share):
    content = encoded(noise(96, 80), kind)
    assert reason(content[: int(len(content) * share)]) in ("truncated", "corrupt", "not_a_picture")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_a_picture_cut_in_the_middle_counts_as_truncated(kind):
    content = encoded(noise(96, 80), kind)
    assert reason(content[: len(content) // 2]) == "truncated"


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum():
    content = bytearray(encoded(noise(96, 80), "PNG"))
    content[len(content) // 2] ^= 1
    assert reason(bytes(content)) == "corrupt"


def test_what_is_no_picture_is_named():
    assert reason(b"") == "empty"
    assert reason(b"<html>404 not found</html>") == "not_a_picture"
    assert reason(encoded(noise(), "JPEG")[:3]) == "not_a_picture"
    assert reason(encoded(Image.fromarray(np.ones((16, 24), np.float32)), "TIFF")) == "float_pixels"


@pytest.mark.parametrize("side", [20_000, 65_000])
def test_a_bomb_is_left_out_before_it_is_decoded(side):
    # a few bytes that promise gigabytes; beyond its own limit Pillow refuses to open, below it we refuse
    assert reason(png_of_size(side, side)) == "bomb"


def test_the_filters_look_at_sides_and_aspect():
    content = encoded(noise(24, 16), "PNG")
    assert reason(content, min_side=17) == "too_small" and reason(content, max_aspect=1.4) == "too_narrow"
    assert reason(content, max_pixels=300) == "bomb"
    check_picture(content, config=PictureConfig(min_side=16, max_aspect=1.5, max_pixels=24 * 16))


@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 60))
def test_resizing_goes_down_to_the_short_side_and_never_up(width, height, short_side):
    content = encoded(noise(width, height), "PNG")
    checked = check_picture(content, config=PictureConfig(short_side=short_side))
    assert min(checked.width, checked.height) == min(short_side, width, height)
    assert (checked.content == content) == (min(width, height) <= short_side)
    # the aspect is kept to a pixel
    scale = min(checked.width, checked.height) / min(width, height)
    assert abs(checked.width - width * scale) <= 1 and abs(checked.height - height * scale) <= 1


def test_the_hash_is_that_of_the_pixels_before_the_resize():
    image = noise(40, 30)
    small, whole = (
        check_picture(encoded(image, kind), config=PictureConfig(short_side=side))
        for kind, side in (("PNG", 10), ("BMP", None))
    )
    assert small.pixels == whole.pixels == pixel_hash(image) and small.content != whole.content


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "gif"},
        {"quality": 0},
        {"short_side": 4},
        {"min_side": 0},
        {"max_aspect": 0.5},
        {"max_pixels": 1 << 40},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*expected"):
        PictureConfig(**wrong)
