import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity.fixtures import goldens, images
from tokenflow.data.samples import BadSample
from tokenflow.data.transforms import center_crop, decode_image, random_crop, to_array, to_planes, to_tensor, to_uint8


def encode(image, *, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def noise(width, height, *, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramp(width, height):
    x = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray(x.astype(np.uint8))


@pytest.mark.parametrize("golden", goldens("preprocess"))
@pytest.mark.parametrize("size", [224, 256, 384])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_center_crop_equals_the_authors_preprocessing(golden, size, number):
    height, width = golden.array(f"hw_{number}").tolist()
    pixels = images(1, 832, int(golden.array("image_seed")) + number)[0, :height, :width]
    if golden.whole and number < 2:
        assert torch.equal(pixels, golden.array(f"image_{number}"))
    cropped = torch.from_numpy(np.array(center_crop(Image.fromarray(pixels.numpy()), size)))
    golden.close(f"crop{size}_{number}", cropped[::4, ::4], atol=0)
    assert int(cropped.sum()) == int(golden.array(f"crop{size}_{number}_sum"))


def test_center_crop_halves_by_box_then_resizes_once_then_crops():
    image = noise(300, 200)
    expected = image.resize((150, 100), Image.Resampling.BOX).resize((96, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(center_crop(image, 64)), np.asarray(expected)[:, 16:80])


@pytest.mark.parametrize(("width", "height"), [(64, 64), (67, 64), (64, 65), (71, 69), (256, 130), (131, 300)])
def test_halving_equals_pillows_box_filter_to_the_bit(width, height):
    image = noise(width, height)
    size = min(width, height) // 2
    halved = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    left, top = (halved.width - size) // 2, (halved.height - size) // 2
    expected = np.asarray(halved)[top : top + size, left : left + size]
    assert np.array_equal(np.asarray(center_crop(image, size)), expected)


def test_a_picture_of_the_right_size_is_untouched():
    image = noise(32, 32)
    assert np.array_equal(np.asarray(center_crop(image, 32)), np.asarray(image))


@pytest.mark.parametrize("shape", [(5, 900), (900, 5), (1, 1), (33, 32), (64, 63)])
def test_any_aspect_gives_a_square(shape):
    for crop in (center_crop, lambda image, size: random_crop(image, size, rng=random.Random(0))):
        assert crop(noise(*shape), 32).size == (32, 32)


def test_random_crops_depend_on_the_generator_alone_and_move():
    image = noise(100, 80)
    crops = [np.asarray(random_crop(image, 32, rng=random.Random(seed))).tobytes() for seed in (0, 0, 1, 2)]
    assert crops[0] == crops[1] and len(set(crops)) == 3


def test_min_fraction_one_keeps_the_whole_short_side():
    crop = np.asarray(random_crop(ramp(32, 64), 32, rng=random.Random(0), min_fraction=1.0))
    assert np.array_equal(crop[0], np.asarray(ramp(32, 64))[0])


def test_tensors_are_in_minus_one_to_one_and_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 48 // 1 // 3, 3)
    images = to_tensor(pixels)
    assert images.shape == (1, 3, 16, 16) and images.dtype == torch.float32 and images.is_contiguous()
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images), pixels)


@pytest.mark.parametrize("shape", [(7, 5), (32, 32), (1, 9)])
def test_planes_are_the_pictures_channels(shape):
    image = noise(*shape)
    assert np.array_equal(to_planes(image), to_array(image).transpose(2, 0, 1))


def test_levels_become_what_half_and_half_gives_to_the_bit():
    levels = torch.arange(256, dtype=torch.uint8)
    expected = levels.float().div(255).sub(0.5).div(0.5)
    assert torch.equal(to_tensor(levels.reshape(1, 16, 16, 1).expand(-1, -1, -1, 3))[0, 1].flatten(), expected)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encode(ramp(40, 20), exif=exif))
    assert image.size == (20, 40)
    # orientation 6: the left edge of the stored picture is the top
    assert np.asarray(image)[0].mean() < 10 and np.asarray(image)[-1].mean() > 245


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("L", (8, 8), 90), "PNG", (90, 90, 90)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 255)), "WEBP", (200, 0, 0)),
        (Image.new("LA", (8, 8), (0, 0)), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((8, 8), 40000, np.uint16)), "PNG", (155, 155, 155)),
        (Image.fromarray(np.full((8, 8), 40000, np.uint16)), "TIFF", (155, 155, 155)),
        (Image.new("P", (8, 8), 0), "GIF", (0, 0, 0)),
    ],
)
def test_every_kind_of_picture_becomes_rgb(image, kind, expected):
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(encode(image, kind=kind, **options))
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).max() <= 3


def test_a_transparent_palette_is_laid_on_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 30, 30] + [0] * 762)
    assert np.asarray(decode_image(encode(image, transparency=1))).min() == 255
    assert np.asarray(decode_image(encode(image)))[0, 0].tolist() == [200, 30, 30]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encode(frames[0], kind=kind, save_all=True, append_images=frames[1:])
    red, _, blue = np.asarray(decode_image(content)).reshape(-1, 3).mean(axis=0)
    assert red > 200 and blue < 50


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_pictures_are_bad_samples(kind, share):
    content = encode(noise(64, 64), kind=kind)
    with pytest.raises(BadSample):
        decode_image(content[: int(share * len(content))])


def test_garbage_and_emptiness_are_bad_samples():
    with pytest.raises(BadSample, match="zero bytes"):
        decode_image(b"")
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(b"this is no picture")


def test_flipped_bits_never_raise_anything_but_bad_sample():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP"):
        content = np.frombuffer(encode(noise(16, 16), kind=kind), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[rng.integers(0, len(damaged), 3)] = rng.integers(0, 256, 3)
            try:
                decode_image(damaged.tobytes())
            except BadSample:
                continue


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    import struct
    import zlib

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(BadSample, match="bomb"):
        decode_image(bomb)


def test_floating_point_pixels_are_refused():
    with pytest.raises(BadSample, match="floating-point"):
        decode_image(encode(Image.fromarray(np.zeros((8, 8), np.float32)), kind="TIFF"))
