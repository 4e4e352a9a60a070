"""The colour of a detected object, one of GenEval's ten: by CLIP, as GenEval does, or by the nearest fixed shade."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tokenflow.evaluation.geneval_score import COLOURS, Detection
from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.measure import NotMeasured

ColourRule = Literal["clip", "palette"]

BACKGROUND = 0x99
"""Grey that stands where an object's mask is not."""

PALETTE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((205, 35, 35), (255, 0, 0), (140, 20, 25)),
    "orange": ((240, 135, 30), (255, 165, 0)),
    "yellow": ((240, 215, 50), (255, 255, 0)),
    "green": ((50, 140, 60), (0, 200, 0), (25, 80, 35), (150, 200, 90)),
    "blue": ((45, 90, 195), (0, 0, 255), (25, 35, 110), (110, 180, 235)),
    "purple": ((125, 60, 160), (128, 0, 128), (175, 120, 210)),
    "pink": ((240, 150, 185), (255, 105, 180)),
    "brown": ((115, 72, 42), (80, 50, 30), (160, 110, 70)),
    "black": ((25, 25, 25), (0, 0, 0)),
    "white": ((240, 240, 240), (255, 255, 255), (215, 215, 215)),
}
"""Some shades of each colour, sRGB."""


class PictureColours(Protocol):
    """Names colours of objects in a picture uint8 [H, W, 3]; all objects are of one class."""

    name: str

    def __call__(self, picture: Picture, objects: Sequence[Detection]) -> list[str]:
        """One of COLOURS for each object."""


class PaletteColours:
    """The shade nearest to the median of the object's pixels in CIELAB; no weights, and not GenEval's rule."""

    name = "palette: nearest of some fixed shades in CIELAB to the median pixel (not GenEval's CLIP)"

    def __call__(self, picture: Picture, objects: Sequence[Detection]) -> list[str]:
        """See `PictureColours`."""
        names = [name for name, shades in PALETTE.items() for _ in shades]
        anchors = to_lab(np.array([shade for shades in PALETTE.values() for shade in shades]))
        medians = [np.median(_pixels(picture, item), axis=0) for item in objects]
        return [names[int(np.linalg.norm(anchors - to_lab(median), axis=-1).argmin())] for median in medians]


class ClipColours:
    """Zero-shot CLIP on the object's box with everything outside its mask grey (GenEval's rule)."""

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Image.Image], torch.Tensor],
        text_tokenizer: Callable[[list[str]], torch.Tensor],
        *,
        name: str,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take an open_clip model with its transform and text tokenizer."""
        self.model, self.preprocess, self.text_tokenizer = model.eval().to(device), preprocess, text_tokenizer
        self.name, self.device = f"CLIP zero-shot, {name}", torch.device(device)
        self._classifiers: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, picture: Picture, objects: Sequence[Detection]) -> list[str]:
        """See `PictureColours`."""
        if not objects:
            return []
        crops = torch.stack([self.preprocess(_crop(picture, item)) for item in objects]).to(self.device)
        features = F.normalize(self.model.encode_image(crops).float(), dim=-1)
        best = (features @ self._classifier(objects[0].label).T).argmax(dim=-1).tolist()
        return [COLOURS[index] for index in best]

    def _classifier(self, label: str) -> torch.Tensor:
        """Text features [colours, width] of a class: the mean over three wordings."""
        if label not in self._classifiers:
            rows = []
            for colour in COLOURS:
                texts = [f"a photo of a {colour} {label}", f"a photo of a {colour}-colored {label}"]
                tokens = self.text_tokenizer([*texts, f"a photo of a {colour} object"]).to(self.device)
                mean = F.normalize(self.model.encode_text(tokens).float(), dim=-1).mean(dim=0)
                rows.append(F.normalize(mean, dim=0))
            self._classifiers[label] = torch.stack(rows)
        return self._classifiers[label]


def load_colours(
    rule: ColourRule,
    *,
    clip_model: str = "ViT-L-14",
    clip_weights: str | None = None,
    device: torch.device | str = "cpu",
) -> PictureColours | NotMeasured:
    """The rule by name; `clip_weights` is a file, or None for OpenAI's through open_clip's cache or hub."""
    if rule == "palette":
        return PaletteColours()
    import open_clip

    if clip_weights is not None and not Path(clip_weights).is_file():
        return NotMeasured(f"CLIP's weights {clip_weights} are not there: give --detector.clip_weights a file")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(clip_model, pretrained=clip_weights or "openai")
    except (OSError, RuntimeError) as error:
        # open_clip wraps a failed download; any other RuntimeError is no matter of weights.
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, OSError):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return NotMeasured(
            f"CLIP {clip_model} cannot be had ({first}): give --detector.clip_weights a file, or --detector.colours "
            "palette for a simpler rule"
        )
    name = f"open_clip {clip_model}, {clip_weights or 'openai'}"
    return ClipColours(model, preprocess, open_clip.get_tokenizer(clip_model), name=name, device=device)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] of 0 to 255 as CIELAB under D65."""
    share = np.asarray(colours, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    relative = linear @ matrix.T / (matrix.sum(axis=1))
    root = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _pixels(picture: Picture, item: Detection) -> np.ndarray:
    """Pixels [n, 3] of the object: its mask, else the inner half of its box."""
    if item.mask is not None and item.mask.any():
        return picture[item.mask]
    left, top, right, bottom = item.box
    quarter_x, quarter_y = (right - left) / 4, (bottom - top) / 4
    columns = _range(left + quarter_x, right - quarter_x, picture.shape[1])
    rows = _range(top + quarter_y, bottom - quarter_y, picture.shape[0])
    return picture[rows, columns].reshape(-1, 3)


def _crop(picture: Picture, item: Detection) -> Image.Image:
    shown = picture if item.mask is None else np.where(item.mask[..., None], picture, np.uint8(BACKGROUND))
    left, top, right, bottom = item.box
    return Image.fromarray(shown[_range(top, bottom, shown.shape[0]), _range(left, right, shown.shape[1])])


def _range(begin: float, end: float, size: int) -> slice:
    """At least one whole pixel of a range inside a picture."""
    start = min(max(int(np.floor(begin)), 0), size - 1)
    return slice(start, max(start + 1, min(int(np.ceil(end)), size)))
