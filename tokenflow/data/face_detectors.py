"""Finding faces in pictures: one protocol, three detectors.

`lbp` is a cascade over local binary patterns that scikit-image carries, `haar` one over Haar wavelets that OpenCV 4
carries (OpenCV 5 has none), `yunet` a small network that OpenCV runs from a file (`face_detection_yunet_*.onnx` of the
OpenCV zoo, MIT). Cascades see upright faces from the front, YuNet also turned and half hidden ones.
"""

import hashlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

FaceDetectorName = Literal["lbp", "haar", "yunet"]
DEFAULT_DETECTOR: FaceDetectorName = "lbp"
MAX_SIDE = 480
_SCALE = 1.2
_LBP_NEIGHBOURS = 7
_HAAR_NEIGHBOURS = 5
_SMALLEST = 24
_YUNET_OVERLAP = 0.3


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face in a picture."""

    box: tuple[int, int, int, int]
    """x, y, width, height in pixels; inside the picture."""
    score: float
    """Higher is surer, in the detector's own unit; 1.0 where it has none."""


class FaceDetector(Protocol):
    """Finds faces; picklable, and the same faces for the same pixels in any process."""

    @property
    def name(self) -> str:
        """Method and settings: what is written into records. Detectors of the same name find the same."""

    def find(self, picture: np.ndarray) -> list[Face]:
        """The faces of an RGB picture, uint8 [H, W, 3], the largest first."""


@dataclass(frozen=True, kw_only=True)
class LbpFaces:
    """scikit-image's cascade over local binary patterns."""

    neighbours: int = _LBP_NEIGHBOURS
    """How many overlapping windows must agree on a face."""
    max_side: int = MAX_SIDE
    """Larger pictures are searched at this long side, in pixels: the smallest face found is 24 pixels there."""

    @property
    def name(self) -> str:
        """Method and settings."""
        return f"lbp-{self.max_side}-{self.neighbours}"

    @cached_property
    def _cascade(self) -> Any:
        data = _imported("skimage.data", package="scikit-image", detector="lbp")
        feature = _imported("skimage.feature", package="scikit-image", detector="lbp")
        return feature.Cascade(data.lbp_frontal_face_cascade_filename())

    def check(self) -> None:
        """Raises ValueError with the remedy when what it needs is missing."""
        assert self._cascade is not None

    def find(self, picture: np.ndarray) -> list[Face]:
        """The faces of an RGB picture, uint8 [H, W, 3], the largest first."""
        return _at_most(picture, self.max_side, self._find)

    def _find(self, picture: np.ndarray) -> list[tuple[list[float], float]]:
        if min(picture.shape[:2]) <= _SMALLEST:
            return []
        found = self._cascade.detect_multi_scale(
            picture,
            scale_factor=_SCALE,
            step_ratio=1,
            min_size=(_SMALLEST, _SMALLEST),
            max_size=picture.shape[:2],
            min_neighbor_number=self.neighbours,
        )
        return [([box["c"], box["r"], box["width"], box["height"]], 1.0) for box in found]


@dataclass(frozen=True, kw_only=True)
class HaarFaces:
    """OpenCV 4's cascade over Haar wavelets (`haarcascade_frontalface_default`); the score counts agreeing windows."""

    neighbours: int = _HAAR_NEIGHBOURS
    """How many overlapping windows must agree on a face."""
    max_side: int = MAX_SIDE
    """Larger pictures are searched at this long side, in pixels: the smallest face found is 24 pixels there."""

    @property
    def name(self) -> str:
        """Method and settings."""
        return f"haar-{self.max_side}-{self.neighbours}"

    @cached_property
    def _cascade(self) -> Any:
        cv2 = _opencv("haar")
        path = os.path.join(cv2.data.haarcascades, "haarcascade_frontalface_default.xml")
        if not hasattr(cv2, "CascadeClassifier") or not os.path.isfile(path):
            raise ValueError(
                f"OpenCV {cv2.__version__} comes without Haar cascades; expected OpenCV 4: pip install "
                "'opencv-python-headless<5', or choose --detector lbp or yunet"
            )
        return cv2.CascadeClassifier(path)

    def check(self) -> None:
        """Raises ValueError with the remedy when what it needs is missing."""
        assert self._cascade is not None

    def find(self, picture: np.ndarray) -> list[Face]:
        """The faces of an RGB picture, uint8 [H, W, 3], the largest first."""
        return _at_most(picture, self.max_side, self._find)

    def _find(self, picture: np.ndarray) -> list[tuple[list[float], float]]:
        cascade, cv2 = self._cascade, _opencv("haar")
        grey = cv2.equalizeHist(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
        boxes, counts = cascade.detectMultiScale2(
            grey, scaleFactor=_SCALE, minNeighbors=self.neighbours, minSize=(_SMALLEST, _SMALLEST)
        )
        return [([float(side) for side in box], float(count)) for box, count in zip(boxes, counts, strict=True)]


@dataclass(frozen=True, kw_only=True)
class YuNetFaces:
    """OpenCV's `FaceDetectorYN` with a YuNet file; the score is the network's, 0 to 1."""

    path: str
    """The .onnx. OpenCV 4 takes `face_detection_yunet_2023mar.onnx`."""
    threshold: float = 0.7
    """Smallest score of a face."""
    max_side: int = MAX_SIDE
    """Larger pictures are searched at this long side, in pixels."""

    def __post_init__(self) -> None:
        if not os.path.isfile(self.path):
            raise ValueError(
                f"the detector's file {self.path!r} does not exist; expected a YuNet .onnx "
                "(face_detection_yunet_2023mar.onnx of the OpenCV zoo), or choose --detector lbp, which needs none"
            )

    @cached_property
    def name(self) -> str:
        """Method, hash of the file, settings."""
        digest = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:8]
        return f"yunet-{digest}-{self.max_side}-{self.threshold:g}"

    @cached_property
    def _network(self) -> Any:
        cv2 = _opencv("yunet")
        try:
            return cv2.FaceDetectorYN.create(self.path, "", (320, 320), self.threshold, _YUNET_OVERLAP, 5000)
        except cv2.error as error:
            raise ValueError(
                f"OpenCV {cv2.__version__} cannot read {self.path!r}: {' '.join(str(error).split())}. "
                "Expected a YuNet .onnx"
            ) from error

    def check(self) -> None:
        """Raises ValueError with the remedy when what it needs is missing."""
        assert self._network is not None

    def find(self, picture: np.ndarray) -> list[Face]:
        """The faces of an RGB picture, uint8 [H, W, 3], the largest first."""
        return _at_most(picture, self.max_side, self._find)

    def _find(self, picture: np.ndarray) -> list[tuple[list[float], float]]:
        network = self._network
        network.setInputSize((picture.shape[1], picture.shape[0]))
        # OpenCV's order of colours is BGR
        _, rows = network.detect(np.ascontiguousarray(picture[:, :, ::-1]))
        # per face: box, five points, score
        return [] if rows is None else [(row[:4].tolist(), float(row[14])) for row in rows]


def face_detector(name: FaceDetectorName | None = None, *, path: str | None = None) -> FaceDetector:
    """The detector of a name, ready for use; by default YuNet where its file is given, else `lbp`.

    `lbp` is the default because it finds more at the same number of false alarms: in `python -m benchmarks.faces`, with
    2 of 90 pictures without a face taken for one by both, it finds the face in 13 of 13 photographs and `haar` in 10;
    of 100 small faces 85 and 86. `haar` takes 42 ms a picture of 480 pixels, `lbp` 141.

    Args:
        name: Which; None chooses.
        path: The .onnx of YuNet.

    Raises:
        ValueError: An unknown name, a file that is missing or not wanted, or a package that is not installed.
    """
    name = name or ("yunet" if path is not None else DEFAULT_DETECTOR)
    if (name == "yunet") != (path is not None):
        raise ValueError(
            f"the detector {name} with the file {path!r}; expected a YuNet .onnx with yunet, and only there"
        )
    if name not in ("lbp", "haar", "yunet"):
        raise ValueError(f"detector is {name!r}; expected lbp, haar or yunet")
    detector = YuNetFaces(path=path) if path is not None else (LbpFaces() if name == "lbp" else HaarFaces())
    detector.check()
    return detector


def _at_most(
    picture: np.ndarray, side: int, find: Callable[[np.ndarray], list[tuple[list[float], float]]]
) -> list[Face]:
    """What `find` sees of a picture that is scaled down to a long side, in pixels of the picture itself."""
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    height, width = picture.shape[:2]
    scale = max(1.0, max(height, width) / side)
    if scale > 1:
        size = (max(1, round(width / scale)), max(1, round(height / scale)))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    faces = []
    for (x, y, w, h), score in find(picture):
        left, top = max(0, round(x * scale)), max(0, round(y * scale))
        right, bottom = min(width, round((x + w) * scale)), min(height, round((y + h) * scale))
        if right > left and bottom > top:
            faces.append(Face(box=(left, top, right - left, bottom - top), score=round(score, 3)))
    return _apart(sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box)))


def _apart(faces: list[Face]) -> list[Face]:
    """Faces without those whose centre lies in a larger one: cascades find a face at several sizes."""
    kept: list[Face] = []
    for face in faces:
        x, y = face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2
        if not any(a <= x <= a + w and b <= y <= b + h for a, b, w, h in (other.box for other in kept)):
            kept.append(face)
    return kept


def _opencv(detector: str) -> ModuleType:
    return _imported("cv2", package="opencv-python-headless", detector=detector)


def _imported(module: str, *, package: str, detector: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"the detector {detector} needs {package}, which cannot be imported ({error}); "
            "install the extra: pip install -e '.[faces]'"
        ) from error
