"""Face detectors against each other on real photographs, those inside scikit-image and scikit-learn.

    python -m benchmarks.faces [--json] [--yunet face_detection_yunet_2023mar.onnx]

Three counts for every detector that can run here. `photographs with a face`: how many of the pictures that show a face
from the front were found, over the one such photograph, mirrored, cropped, and at several sizes. `others`: how many
pictures without one raised a false alarm, over all other photographs, whole and in four quarters. `small faces`: of
the 200 crops of 25 pixels in scikit-image (100 faces of Labeled Faces in the Wild, 100 crops without), enlarged and
mounted on grey, how many faces were found, and how many of the rest were taken for one. `milliseconds` are one
core's a picture of up to 480 pixels.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tokenflow.data.face_detectors import FaceDetector, HaarFaces, LbpFaces, YuNetFaces
from tokenflow.data.photographs import package_file

FACE = "skimage/data/astronaut.png"
OTHERS = (
    *(f"skimage/data/{name}" for name in (
        "brick.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png",
        "retina.jpg", "rocket.jpg", "text.png",
    )),
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)  # fmt: skip
"""Photographs, and scans of a page, that show no face."""
_CROPS = "skimage/data/lfw_subset.npy"


def with_a_face() -> Iterator[Image.Image]:
    """The astronaut: whole and mirrored, at five sizes and cut around her."""
    picture = _load(FACE)
    for side in (512, 384, 256, 192, 128):
        yield picture.resize((side, side))
        yield ImageOps.mirror(picture.resize((side, side)))
    for margin in (32, 64, 96):
        yield picture.crop((margin, 0, 448 - margin, 448 - 2 * margin))


def without_faces() -> Iterator[Image.Image]:
    """Photographs without faces, whole and in quarters."""
    for name in OTHERS:
        picture = _load(name)
        yield picture
        width, height = picture.width // 2, picture.height // 2
        for left in (0, width):
            for top in (0, height):
                yield picture.crop((left, top, left + width, top + height))


def small_crops() -> Iterator[tuple[Image.Image, bool]]:
    """(crop enlarged to 75 pixels on a grey ground of 128, whether it is a face)."""
    crops = np.load(_path(_CROPS))
    for number, crop in enumerate(crops):
        ground = Image.new("RGB", (128, 128), (128, 128, 128))
        ground.paste(
            Image.fromarray((crop * 255).astype(np.uint8)).resize((75, 75), Image.Resampling.BICUBIC), (26, 26)
        )
        yield ground, number < len(crops) // 2


def measure(detector: FaceDetector) -> dict[str, object]:
    """The row of a detector: its name, counts as `found/all`, and milliseconds a picture."""
    faces, others, crops = list(with_a_face()), list(without_faces()), list(small_crops())
    detector.find(np.asarray(faces[0]))
    began = time.perf_counter()
    found = sum(bool(detector.find(np.asarray(picture))) for picture in faces)
    alarms = sum(bool(detector.find(np.asarray(picture))) for picture in others)
    seconds = time.perf_counter() - began
    small = [(bool(detector.find(np.asarray(picture))), is_face) for picture, is_face in crops]
    halves = {kind: [hit for hit, is_face in small if is_face == kind] for kind in (True, False)}
    return {
        "detector": detector.name,
        "photographs with a face": f"{found}/{len(faces)}",
        "others": f"{alarms}/{len(others)}",
        "small faces": f"{sum(halves[True])}/{len(halves[True])}",
        "small others": f"{sum(halves[False])}/{len(halves[False])}",
        "milliseconds": round(1000 * seconds / (len(faces) + len(others)), 1),
    }


def _load(name: str) -> Image.Image:
    return Image.open(_path(name)).convert("RGB")


def _path(name: str) -> Path:
    path = package_file(name)
    if path is None:
        raise ValueError(f"{name} is not there; install the extra: pip install -e '.[demo]'")
    return path


def main() -> None:
    """Measure the detectors that can run here, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yunet", help="measure YuNet too, from this .onnx")
    parser.add_argument("--neighbours", type=int, nargs="+", help="of the cascades (default: their own)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    detectors: list[LbpFaces | HaarFaces | YuNetFaces] = [
        kind(neighbours=count) for kind in (LbpFaces, HaarFaces) for count in arguments.neighbours or ()
    ] or [LbpFaces(), HaarFaces()]
    if arguments.yunet:
        detectors.append(YuNetFaces(path=arguments.yunet))
    rows, missing = [], []
    for detector in detectors:
        try:
            detector.check()
        except ValueError as error:
            missing.append(f"{detector.name}: {error}")
        else:
            rows.append(measure(detector))
    if arguments.json:
        print(json.dumps({"rows": rows, "missing": missing}))
        return
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows] if rows else []:
        print("  ".join(f"{value!s:>{max(len(name), 14)}}" for name, value in row.items()))
    print("\n".join(missing))


if __name__ == "__main__":
    main()
