"""Faces of single samples: what their records say already, or what a detector finds in their pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenflow.data.face_detectors import FaceDetector
from tokenflow.data.inspection import reason_of
from tokenflow.data.samples import BadSample, Source
from tokenflow.data.sources import parse_record
from tokenflow.data.transforms import decode_image


@dataclass(frozen=True, kw_only=True)
class FacesOf:
    """What is known of one sample's faces."""

    faces: dict[str, Any] | None = None
    """As in its record: count, boxes, scores, detector; None where it cannot be looked at."""
    stands: bool = False
    """Whether its record says so already."""
    reason: str = ""
    """Why it cannot be looked at, by a code; empty where it can."""
    detail: str = ""
    """The same in words."""

    @property
    def count(self) -> int:
        """Faces that are known of."""
        return self.faces["count"] if self.faces is not None else 0


@dataclass(frozen=True, kw_only=True)
class FaceSearch:
    """Looks at samples of a source by their index; can be sent to worker processes."""

    source: Source
    detector: FaceDetector

    def __call__(self, indices: Iterable[int]) -> list[FacesOf]:
        """Look at these samples, in order; never raises for what is wrong with one of them."""
        return [self._look(index) for index in indices]

    def _look(self, index: int) -> FacesOf:
        try:
            raw = self.source.read(index)
            stored = (parse_record(raw) or {}).get("faces")
            # encoded shards have no pictures any more: whatever found these faces, it saw some
            if _is_whole(stored) and (raw.image is None or stored.get("detector") == self.detector.name):
                return FacesOf(faces=stored, stands=True)
            if raw.image is None:
                return FacesOf(reason="without_picture", detail="it has no picture, and its record knows no faces")
            found = self.detector.find(np.asarray(decode_image(raw.image)))
        except BadSample as error:
            return FacesOf(reason=reason_of(str(error)), detail=str(error))
        except Exception as error:
            # whatever one sample of a billion holds, the others are looked at, and this one is named
            return FacesOf(reason="failed", detail=f"{type(error).__name__}: {error}")
        faces = {
            "count": len(found),
            "boxes": [list(face.box) for face in found],
            "scores": [face.score for face in found],
            "detector": self.detector.name,
        }
        return FacesOf(faces=faces)


def _is_whole(faces: Any) -> bool:
    return isinstance(faces, dict) and type(faces.get("count")) is int and isinstance(faces.get("boxes"), list)
