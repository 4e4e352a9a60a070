"""ImageReward (arXiv 2304.05977): how much people would like a picture for its prompt, by the package of that name."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.measure import NotMeasured

Reward = Callable[[str, Picture], float]
"""(prompt, picture uint8 [H, W, 3]) -> the reward, higher is better."""

MODEL = "ImageReward-v1.0"


def load_image_reward(weights: str | None = None, *, device: torch.device | str = "cpu") -> Reward | NotMeasured:
    """The reward model, from a file or the package's own cache; NotMeasured says how to get what is missing."""
    try:
        import ImageReward
    except ImportError as error:
        return NotMeasured(
            f"ImageReward cannot be imported ({error}): pip install image-reward, in an environment whose transformers "
            "it supports"
        )
    if weights is not None and not Path(weights).is_file():
        return NotMeasured(f"ImageReward's weights {weights} are not there: give --image_reward.weights a file")
    try:
        model = ImageReward.load(weights or MODEL, device=str(device))
    except OSError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return NotMeasured(f"ImageReward's weights cannot be had ({first}): give --image_reward.weights a file")

    def reward(prompt: str, picture: Picture) -> float:
        with torch.inference_mode():
            return float(model.score(prompt, Image.fromarray(picture)))

    return reward
