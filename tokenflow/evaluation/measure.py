"""What every evaluation shares: exact means, the word for a value that could not be had, and results on disk.

A cross-rank reduction arrives as a function `all_reduce(tensor) -> tensor` that returns the sum over all ranks, so that
nothing here needs torch.distributed. With `all_reduce=None` the process is alone.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenflow.data.files import write_whole

AllReduce = Callable[[Tensor], Tensor]

NOT_MEASURED = "not measured"

_FRACTION_BITS = 32


@dataclass(frozen=True)
class NotMeasured:
    """Stands for a measure whose weights are not at hand; `reason` says what is missing and how to supply it."""

    reason: str


class Mean:
    """A mean over images that does not depend on how the images were split into batches or ranks.

    Values are added in fixed point (32 fractional bits, int64), and integer sums commute exactly. The range is
    2**31 / images: fifty thousand PSNRs of 100 dB use a four-hundredth of it.
    """

    def __init__(self) -> None:
        self.state = torch.zeros(2, dtype=torch.int64)

    def update(self, values: Tensor) -> None:
        """Add one finite value an image, `values` [b]."""
        values = values.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"got a non-finite value among {values.tolist()}, expected finite numbers; "
                "look for NaN in the weights or in the images"
            )
        self.state[0] += torch.round(values * 2.0**_FRACTION_BITS).to(torch.int64).sum()
        self.state[1] += values.numel()

    def compute(self, all_reduce: AllReduce | None = None) -> float:
        """The mean over everything that was added, on all ranks."""
        total, count = reduced(self.state, all_reduce).tolist()
        if count == 0:
            raise ValueError("got no images, expected at least one; check the evaluation data and its limit")
        return total / 2.0**_FRACTION_BITS / count


def reduced(state: Tensor, all_reduce: AllReduce | None) -> Tensor:
    """`state` summed over the ranks, as a new tensor: what was accumulated here stays what it was."""
    return state.clone() if all_reduce is None else all_reduce(state.clone())


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a file that is either whole or absent, also if the process dies meanwhile; makes parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Write strict JSON atomically; a number that JSON lacks (NaN, infinity) becomes its name."""
    return write_atomic(path, json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def png_bytes(image: Any) -> bytes:
    """A uint8 picture [H, W, 3] (numpy) as the bytes of a PNG file."""
    from PIL import Image

    if str(image.dtype) != "uint8" or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"picture is {image.dtype} {tuple(image.shape)}, expected uint8 [height, width, 3]")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
