"""Objects in pictures by an open detector from transformers: instance segmentation, detection, or detection by text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tokenflow.evaluation.geneval_score import Detection
from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.measure import NotMeasured

SEGMENTERS = ("mask2former", "maskformer", "oneformer")
BY_TEXT = ("owlv2", "owlvit")
SUGGESTED = "facebook/mask2former-swin-small-coco-instance"
"""The published model nearest to the official detector: same architecture and training set, other training run."""

ALIASES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's name -> GenEval's, where they differ."""
CLASSES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""COCO's classes under GenEval's names."""


class Detector:
    """A detector and its picture processor."""

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        name: str,
        classes: Sequence[str] = CLASSES,
        least: float = 0.05,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take a transformers model with its processor; `classes` are asked of a detector by text.

        Objects below the confidence `least` are left out.
        """
        self.model, self.processor, self.name = model.eval().to(device), processor, name
        self.classes, self.least, self.device = tuple(classes), least, torch.device(device)

    @property
    def kind(self) -> str:
        """transformers' model type."""
        return self.model.config.model_type

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> list[Detection]:
        """Objects of a picture uint8 [H, W, 3]."""
        image = Image.fromarray(picture)
        sizes = [picture.shape[:2]]
        if self.kind in BY_TEXT:
            texts = [[f"a photo of a {name}" for name in self.classes]]
            inputs = self.processor(text=texts, images=image, truncation=True, return_tensors="pt").to(self.device)
            found = self.processor.post_process_grounded_object_detection(
                self.model(**inputs), threshold=self.least, target_sizes=sizes
            )[0]
            return self._boxes(found, dict(enumerate(self.classes)))
        if self.kind in SEGMENTERS:
            return self._segment(image, sizes)
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        found = self.processor.post_process_object_detection(
            self.model(**inputs), threshold=self.least, target_sizes=sizes
        )[0]
        return self._boxes(found, self.model.config.id2label)

    def _segment(self, image: Image.Image, sizes: list[Any]) -> list[Detection]:
        tasks = {"task_inputs": ["instance"]} if self.kind == "oneformer" else {}
        inputs = self.processor(images=image, return_tensors="pt", **tasks).to(self.device)
        found = self.processor.post_process_instance_segmentation(
            self.model(**inputs), threshold=self.least, target_sizes=sizes, return_binary_maps=True
        )[0]
        masks = np.asarray(found["segmentation"].cpu()) > 0.5 if found["segments_info"] else ()
        names = self.model.config.id2label
        detections = []
        for segment, mask in zip(found["segments_info"], masks, strict=True):
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            detections.append(
                Detection(
                    label=_geneval_name(names[segment["label_id"]]),
                    confidence=float(segment["score"]),
                    box=tuple(map(float, box)),
                    mask=mask,
                )
            )
        return detections

    def _boxes(self, found: dict[str, Any], names: dict[int, str]) -> list[Detection]:
        columns = (found[key].tolist() for key in ("labels", "scores", "boxes"))
        return [
            Detection(label=_geneval_name(names[label]), confidence=confidence, box=tuple(box))
            for label, confidence, box in zip(*columns, strict=True)
        ]


def load_detector(source: str | None, *, device: torch.device | str = "cpu") -> Detector | NotMeasured:
    """A detector from a folder or hub id; NotMeasured with the reason where its weights cannot be had.

    Raises ValueError for a model that is no detector.
    """
    if source is None:
        return NotMeasured(f"no detector is named: give --detector.model, a folder or hub id such as {SUGGESTED}")
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForObjectDetection,
        AutoModelForUniversalSegmentation,
        AutoModelForZeroShotObjectDetection,
        AutoProcessor,
    )

    try:
        kind = AutoConfig.from_pretrained(source).model_type
        classes = dict.fromkeys(SEGMENTERS, (AutoModelForUniversalSegmentation, AutoImageProcessor))
        classes |= dict.fromkeys(BY_TEXT, (AutoModelForZeroShotObjectDetection, AutoProcessor))
        classes["oneformer"] = (AutoModelForUniversalSegmentation, AutoProcessor)
        model_class, processor_class = classes.get(kind, (AutoModelForObjectDetection, AutoImageProcessor))
        if kind not in classes and not _detects(kind, model_class):
            raise ValueError(f"{source!r} is a {kind} model; expected a detector such as {SUGGESTED}, DETR or OWLv2")
        model = model_class.from_pretrained(source, dtype=torch.float32)
        processor = processor_class.from_pretrained(source)
    except OSError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return NotMeasured(f"the detector {source!r} cannot be had ({first}): give --detector.model a folder with it")
    return Detector(model, processor, name=f"{source} ({kind})", device=device)


def _detects(kind: str, model_class: Any) -> bool:
    return kind in {config.model_type for config in model_class._model_mapping}


def _geneval_name(name: str) -> str:
    return ALIASES.get(name, name)
