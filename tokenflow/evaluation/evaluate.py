"""Evaluate a tokenizer on pictures: one pass, all measures, and the protocol that makes the numbers reproducible.

Pictures go through the codes (`decode(encode(x))`), as a user's would; all arithmetic of the measures is on uint8.
Every rank runs the same number of batches; a padded last batch carries `mask`, and padding counts nowhere: batches of
`tokenflow.data.evaluation.EvaluationBatches` are what is expected.
"""

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokenflow.evaluation.codebook import CodeHistogram
from tokenflow.evaluation.frechet import FrechetDistance, teacher_features
from tokenflow.evaluation.grid import Picture, reconstruction_grid
from tokenflow.evaluation.measure import NOT_MEASURED, AllReduce, Mean, NotMeasured, png_bytes, write_atomic, write_json
from tokenflow.evaluation.reconstruction import ReconstructionMetrics, Rounding, reconstruct_uint8

Verifier = Callable[[list[Picture], list[Any]], float]
"""(uint8 pictures [H, W, 3], one record each) -> fraction that is right."""


class Tokenizer(Protocol):
    """What is evaluated: images float [B, 3, S, S] in [-1, 1] to codes int64 [B, L] and back."""

    config: Any

    def encode(self, images: Tensor) -> Tensor:
        """Images to codes."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to images."""


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """The choices that published numbers usually leave out. All of it is written into the result."""

    reference: str = "the pictures given"
    """What the reference set is: name, split, how many, in which order."""

    crop: str = "none: pictures arrive at the tokenizer's size"
    """How pictures were brought to the tokenizer's size."""

    rounding: Rounding = "round"
    """How reconstructions become uint8 (see `tokenflow.evaluation.reconstruction.Rounding`)."""

    reference_rounding: Rounding = "round"
    """How originals become uint8; `round` gives the loaded picture back, the authors' script uses `floor`."""


@dataclass
class EvaluationResult:
    """Metrics (numbers, or "not measured"), how they were taken, and what to look at."""

    metrics: dict[str, float | str]
    protocol: dict[str, Any]
    originals: Picture
    """The first pictures, uint8 [n, H, W, 3]."""
    reconstructions: Picture
    histogram: Tensor
    """Code counts int64 [scales, codebook_size]."""
    scales: tuple[int, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    """More to be written into `result.json`, under keys of its own."""
    grid: Picture = field(init=False)

    def __post_init__(self) -> None:
        # A rank may have had nothing but padding: it shows a white pixel.
        none = not len(self.originals)
        self.grid = (
            np.full((1, 1, 3), 255, np.uint8) if none else reconstruction_grid(self.originals, self.reconstructions)
        )

    def content(self) -> dict[str, Any]:
        """What `result.json` holds: metrics, protocol, code counts a scale, notes."""
        return {
            "metrics": self.metrics,
            "protocol": self.protocol,
            "codes_used": {f"scale_{s}": int((c > 0).sum()) for s, c in zip(self.scales, self.histogram, strict=True)},
            **self.notes,
        }

    def save(self, folder: str | Path) -> None:
        """Write `grid.png` and, last, `result.json`, each atomically."""
        write_atomic(Path(folder) / "grid.png", png_bytes(self.grid))
        write_json(Path(folder) / "result.json", self.content())


class TokenizerEvaluation:
    """Streaming evaluation: `update` a batch at a time, `compute` at the end; `state_dict` to continue another day."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        teacher: Callable[[Tensor], Tensor] | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | NotMeasured | None = None,
        inception: Callable[[Tensor], Tensor] | NotMeasured | None = None,
        verifier: Verifier | None = None,
        protocol: EvaluationProtocol | None = None,
        device: str | torch.device = "cpu",
        pictures: int = 16,
    ) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol or EvaluationProtocol()
        self.device = torch.device(device)
        self.verifier = verifier
        self.pictures = pictures
        self.not_measured = {
            name: measure.reason if isinstance(measure, NotMeasured) else "not asked for"
            for name, measure in (("lpips", perceptual), ("rfid", inception), ("frechet_teacher", teacher))
            if not callable(measure)
        }
        self.images = torch.zeros(1, dtype=torch.int64)
        self.reconstruction = ReconstructionMetrics(perceptual)
        self.codes = CodeHistogram(tokenizer.config.codebook_size, tokenizer.config.scales)
        self.teacher = FrechetDistance(teacher_features(teacher)) if callable(teacher) else None
        self.inception = FrechetDistance(inception) if callable(inception) else None
        self.verified = {"verifier": Mean(), "verifier_original": Mean()}
        self.shown: tuple[list[Picture], list[Picture]] = ([], [])

    @torch.no_grad()
    def update(self, batch: Mapping[str, Any]) -> None:
        """Add `batch["images"]` float [B, 3, S, S] in [-1, 1]; `mask` bool [B] is False for padding.

        The verifier gets `batch["records"]`, else `captions`, else `keys`: one entry an image.
        """
        images = batch["images"].to(self.device)
        valid = batch.get("mask")
        valid = torch.ones(len(images), dtype=torch.bool) if valid is None else valid.cpu().to(torch.bool)
        codes = self.tokenizer.encode(images)
        reconstruction = reconstruct_uint8(self.tokenizer.decode(codes), self.protocol.rounding)
        original = reconstruct_uint8(images, self.protocol.reference_rounding)
        self.images += valid.sum()
        self.codes.update(codes, valid)
        self.reconstruction.update(original, reconstruction, valid)
        if self.teacher is not None:
            self.teacher.update(original.float() / 127.5 - 1, reconstruction.float() / 127.5 - 1, valid)
        if self.inception is not None:
            self.inception.update(original, reconstruction, valid)
        keep = valid.nonzero().flatten().tolist()
        pairs = [[to_picture(picture[index]) for index in keep] for picture in (original, reconstruction)]
        for shown, new in zip(self.shown, pairs, strict=True):
            shown.extend(new[: self.pictures - len(shown)])
        if self.verifier is not None and keep:
            self._verify(batch, keep, originals=pairs[0], reconstructions=pairs[1])

    def _verify(
        self, batch: Mapping[str, Any], keep: list[int], *, originals: list[Picture], reconstructions: list[Picture]
    ) -> None:
        records = next((batch[name] for name in ("records", "captions", "keys") if name in batch), None)
        if records is None:
            raise ValueError(
                "the batch has none of records, captions, keys, expected one for the verifier; "
                "set records=True in its DataConfig"
            )
        records = [records[index] for index in keep]
        for name, pictures in (("verifier", reconstructions), ("verifier_original", originals)):
            right = round(self.verifier(pictures, records) * len(pictures))
            self.verified[name].update(torch.arange(len(pictures)) < right)

    def compute(self, all_reduce: AllReduce | None = None) -> EvaluationResult:
        """All measures over all ranks (every rank calls); pictures are this rank's own first ones."""
        metrics = self.reconstruction.compute(all_reduce)
        warnings: dict[str, str] = {}
        for name, measure in (("frechet_teacher", self.teacher), ("rfid", self.inception)):
            metrics[name] = NOT_MEASURED
            if measure is not None:
                metrics[name], warning = measure.compute(all_reduce)
                warnings |= {name: warning} if warning else {}
        metrics |= self.codes.compute(all_reduce)
        if self.verifier is not None:
            metrics |= {name: mean.compute(all_reduce) for name, mean in self.verified.items()}
        total = int(self.images if all_reduce is None else all_reduce(self.images.clone()))
        size = self.tokenizer.config.image_size
        empty = np.zeros((0, size, size, 3), np.uint8)
        originals, reconstructions = (np.stack(pictures) if pictures else empty for pictures in self.shown)
        return EvaluationResult(
            metrics=metrics,
            protocol=describe_protocol(
                self.protocol,
                images=total,
                image_size=size,
                missing=self.not_measured,
                warnings=warnings,
            ),
            originals=originals,
            reconstructions=reconstructions,
            histogram=self.codes.histogram(all_reduce),
            scales=self.codes.scales,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything accumulated so far, tensors and plain values only."""
        state: dict[str, Any] = {
            "images": self.images.clone(),
            "reconstruction": self.reconstruction.state_dict(),
            "codes": self.codes.state_dict(),
            "verified": {name: mean.state.clone() for name, mean in self.verified.items()},
            "shown": [torch.from_numpy(np.stack(pictures)) if pictures else None for pictures in self.shown],
        }
        for name, measure in (("teacher", self.teacher), ("inception", self.inception)):
            state[name] = measure.state_dict() if measure is not None else None
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of an evaluation with the same settings."""
        for name, measure in (("teacher", self.teacher), ("inception", self.inception)):
            if (state[name] is None) != (measure is None):
                raise ValueError(f"the saved evaluation and this one differ in {name}; continue with the same settings")
            if measure is not None:
                measure.load_state_dict(state[name])
        self.images = state["images"].clone()
        self.reconstruction.load_state_dict(state["reconstruction"])
        self.codes.load_state_dict(state["codes"])
        for name, mean in self.verified.items():
            mean.state = state["verified"][name].clone()
        self.shown = tuple([] if pictures is None else list(pictures.numpy()) for pictures in state["shown"])


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    batches: Iterable[Mapping[str, Any]],
    *,
    teacher: Callable[[Tensor], Tensor] | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | NotMeasured | None = None,
    inception: Callable[[Tensor], Tensor] | NotMeasured | None = None,
    device: str | torch.device = "cpu",
    all_reduce: AllReduce | None = None,
    verifier: Verifier | None = None,
    protocol: EvaluationProtocol | None = None,
    pictures: int = 16,
) -> EvaluationResult:
    """Evaluate `tokenizer` on `batches` (dicts with `images` float [B, 3, S, S] in [-1, 1], optional `mask` bool [B]).

    The tokenizer is put into eval mode and back. Metrics: psnr, ssim, ssim_authors, lpips, high_frequency_error,
    frechet_teacher, rfid, usage, perplexity (and `/scale_S` of both), and verifier, verifier_original when a verifier
    is given. What has no weights is the string "not measured", with the reason in `protocol["not_measured"]`.
    """
    was_training = getattr(tokenizer, "training", False)
    if was_training:
        tokenizer.eval()
    evaluation = TokenizerEvaluation(
        tokenizer,
        teacher=teacher,
        perceptual=perceptual,
        inception=inception,
        verifier=verifier,
        protocol=protocol,
        device=device,
        pictures=pictures,
    )
    try:
        for batch in batches:
            evaluation.update(batch)
        return evaluation.compute(all_reduce)
    finally:
        if was_training:
            tokenizer.train()


def describe_protocol(
    protocol: EvaluationProtocol,
    *,
    images: int,
    image_size: int,
    missing: Mapping[str, str],
    warnings: Mapping[str, str],
) -> dict[str, Any]:
    """The record that goes beside the numbers: what was compared, how, and with which versions."""
    return {
        "reference": protocol.reference,
        "images": images,
        "image_size": image_size,
        "crop": protocol.crop,
        "rounding": protocol.rounding,
        "reference_rounding": protocol.reference_rounding,
        "precision": "float32 throughout, convolutions on a GPU in TF32" if _tf32() else "float32 throughout",
        "psnr": "uint8, peak 255, mean over images (not of the pooled error), at most 100 dB an image",
        "ssim": "uint8, data_range 255, 7x7 uniform window, mean over channels: scikit-image's default",
        "ssim_authors": "as ssim with data_range 2 on pictures in [0, 1], as the authors' script does; flatters",
        "high_frequency_error": "rms of the difference minus its 5x5 binomial blur, grey levels of 255",
        "usage": "share of codes that occur on these pictures at least once",
        "perplexity": "exp of the entropy of the codes' frequencies on these pictures",
        "verifier": "share of reconstructions from which every object reads back rightly",
        "verifier_original": "the same on the originals: what the verifier itself can reach",
        "frechet_teacher": "Frechet distance of the teacher's mean tokens; not an FID",
        "rfid": "FID of reconstructions against these originals, Inception-v3 of 2015 through torch-fidelity",
        "not_measured": dict(missing),
        "warnings": dict(warnings),
        "versions": {name: _version(name) for name in ("tokenflow", "torch", "lpips", "torch-fidelity", "numpy")}
        | {"python": platform.python_version()},
    }


def to_picture(image: Tensor) -> Picture:
    """A uint8 image [3, H, W] as a numpy picture [H, W, 3]."""
    return image.permute(1, 2, 0).contiguous().cpu().numpy()


def _tf32() -> bool:
    return torch.cuda.is_available() and torch.backends.cudnn.allow_tf32


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
