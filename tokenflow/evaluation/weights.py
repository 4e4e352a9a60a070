"""The two networks that classic image measures need: LPIPS' VGG-16 and FID's Inception-v3.

Nothing is fetched here: an evaluation never starts a download of its own. Weights are taken from a given path, else
from torch hub's cache, else the measure is `NotMeasured` and says what to do. Files are read with
`weights_only=True` (or as safetensors), never unpickled.
"""

import io
import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from tokenflow.evaluation.measure import NotMeasured
from tokenflow.tokenizer.losses import VGG16_FILE, VGG16_URL, LearnedPerceptualLoss

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


def find_weights(file_name: str, path: str | Path | None = None) -> Path | None:
    """`path` if given (an error if it is not a file), else the file in torch hub's cache, else None."""
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"weights {str(path)!r} not found, expected a file; check the path or leave it out")
        return Path(path)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    return cached if cached.is_file() else None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file; a file that needs unpickling is refused."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, expected a plain state dict; such a file is never unpickled: "
            "save its state dict alone, best as safetensors"
        ) from error
    return state.get("state_dict", state)


def load_lpips(path: str | Path | None = None, device: str | torch.device = "cpu") -> Callable | NotMeasured:
    """LPIPS with VGG-16 as a distance of two images [B, 3, H, W] in [-1, 1], giving [B]: the training loss' network.

    `path`: torchvision's VGG-16; the linear heads come with the `lpips` package.
    """
    found = find_weights(VGG16_FILE, path)
    if found is None:
        return NotMeasured(
            f"LPIPS needs torchvision's VGG-16: put {VGG16_FILE} ({VGG16_URL}) into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'} or pass its path"
        )
    return LearnedPerceptualLoss(str(found)).to(device).distance


def load_inception(path: str | Path | None = None, device: str | torch.device = "cpu") -> Callable | NotMeasured:
    """Inception-v3 (2015, TensorFlow's resize and weights, by torch-fidelity): uint8 [B, 3, H, W] -> [B, 2048]."""
    if find_spec("torch_fidelity") is None:
        return NotMeasured("rFID needs the torch-fidelity package: pip install torch-fidelity")
    found = find_weights(INCEPTION_FILE, path)
    if found is None:
        return NotMeasured(
            f"rFID needs Inception-v3: put {INCEPTION_FILE} ({INCEPTION_SOURCE}) into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'} or pass its path"
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The library would unpickle the file freely, so it is read safely here and handed over as clean bytes.
    clean = io.BytesIO()
    torch.save(read_tensors(found), clean)
    clean.seek(0)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=clean)
    network = network.to(device)
    return lambda images: network(images)[0]
