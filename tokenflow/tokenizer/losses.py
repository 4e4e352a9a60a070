"""The tokenizer's losses: equation 4 (reconstruction, perceptual, adversarial) and the semantic loss (paper 3.2).

All are fp32 scalars whatever the autocast. The quantiser's own losses come from `quantizer`.
"""

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

VGG16_FILE = "vgg16-397923af.pth"
VGG16_URL = f"https://download.pytorch.org/models/{VGG16_FILE}"

AdversarialKind = Literal["hinge", "vanilla", "non_saturating"]


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Which losses train the tokenizer, with what weights, and from which step on."""

    reconstruction_weight: float = 1.0
    """Weight of the pixel-wise squared error."""
    semantic_weight: float = 1.0
    """Weight of the semantic loss; unused without a semantic branch."""
    perceptual: Literal["lpips", "teacher", "none"] = "lpips"
    """LPIPS (VGG16), or squared distance of the frozen teacher's feature maps where VGG's weights cannot be had."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    perceptual_checkpoint: str | None = None
    """Path to torchvision's vgg16-397923af.pth; None: torch's cache or a download; "random" is for tests."""
    adversarial: AdversarialKind = "hinge"
    """Form of the adversarial loss."""
    adversarial_weight: float = 0.5
    """Weight of the generator's adversarial term once ramped up (paper Table 11: lambda_G = 0.5)."""
    adaptive_adversarial_weight: bool = False
    """Multiply that weight by a ratio of gradient norms (see `adaptive_weight`)."""
    discriminator: Literal["patchgan", "stylegan", "none"] = "patchgan"
    """Architecture of the discriminator; "none" trains without an adversarial loss."""
    discriminator_channels: int = 64
    """Width of the discriminator at full resolution."""
    discriminator_layers: int = 3
    """Stride-2 convolutions of PatchGAN."""
    discriminator_start: int = 0
    """First step that trains the discriminator."""
    adversarial_start: int = 20000
    """First step whose tokenizer sees the discriminator; not before `discriminator_start`, or it is untrained."""
    adversarial_ramp: int = 0
    """Steps over which the adversarial weight then rises linearly; 0 turns it on at once."""

    def __post_init__(self) -> None:
        """Check the values."""
        weights = ("reconstruction_weight", "semantic_weight", "perceptual_weight", "adversarial_weight")
        for name in weights:
            value = getattr(self, name)
            if value < 0 or not math.isfinite(value):
                raise ValueError(f"{name} is {value}; expected a finite number, not negative.")
        if self.discriminator_channels < 1 or self.discriminator_layers < 1:
            raise ValueError(
                f"discriminator_channels is {self.discriminator_channels} and discriminator_layers "
                f"{self.discriminator_layers}; expected both at least 1."
            )
        if self.discriminator_start < 0 or self.adversarial_ramp < 0:
            raise ValueError(
                f"discriminator_start is {self.discriminator_start} and adversarial_ramp {self.adversarial_ramp}; "
                "expected none negative."
            )
        if self.adversarial_start < self.discriminator_start:
            raise ValueError(
                f"adversarial_start is {self.adversarial_start}; expected at least discriminator_start "
                f"({self.discriminator_start}): an untrained discriminator ruins images. Raise adversarial_start."
            )


def reconstruction_loss(prediction: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Tensor:
    """Return the mean squared error of images in [-1, 1]: the first term of equation 4."""
    return F.mse_loss(prediction.float(), target.float())


def semantic_loss(prediction: Float[Tensor, "B N C"], target: Float[Tensor, "B N C"]) -> Tensor:
    """Return the mean of 1 - cosine over tokens: half the squared l2 distance of unit vectors, the paper's L_sem."""
    return (1 - F.cosine_similarity(prediction.float(), target.float(), dim=-1)).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, *, kind: AdversarialKind) -> Tensor:
    """Return what the discriminator minimises; logits are positive for real, any shape."""
    real, fake = logits_real.float(), logits_fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    if kind == "vanilla":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    if kind == "non_saturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    raise ValueError(f"adversarial is {kind!r}; expected 'hinge', 'vanilla' or 'non_saturating'.")


def generator_loss(logits_fake: Tensor, *, kind: AdversarialKind) -> Tensor:
    """Return what the tokenizer minimises against the discriminator: -D, or -log sigmoid(D) when non-saturating."""
    if kind in ("hinge", "vanilla"):
        return -logits_fake.float().mean()
    if kind == "non_saturating":
        return F.softplus(-logits_fake.float()).mean()
    raise ValueError(f"adversarial is {kind!r}; expected 'hinge', 'vanilla' or 'non_saturating'.")


def adversarial_weight(step: int, config: TokenizerLossConfig) -> float:
    """Return the weight of the generator's adversarial term at `step`: 0, then a linear ramp, then the full weight.

    While it is 0, leave the term out rather than multiply by it: 0 times a NaN is a NaN.
    """
    if config.discriminator == "none" or step < config.adversarial_start:
        return 0.0
    steps = step - config.adversarial_start + 1
    return config.adversarial_weight * min(1.0, steps / max(config.adversarial_ramp, 1))


def adaptive_weight(pull: Tensor, push: Tensor) -> Tensor:
    """Return |pull| / |push|, 0-d: gradients of reconstruction and of adversarial loss at the reconstructed image.

    VQGAN takes them at the decoder's last weight. Under ZeRO that weight is a shard or absent, the image never is; the
    two ratios differ by how the last layer's input projects the two gradients. Clamped to 1e4.
    """
    return (pull.float().norm() / (push.float().norm() + 1e-4)).clamp(0.0, 1e4)


class LearnedPerceptualLoss(nn.Module):
    """LPIPS (Zhang et al. 2018) from the `lpips` package; frozen, and in eval mode whatever `train` says."""

    def __init__(self, checkpoint: str | None = None) -> None:
        """Build VGG16 and the linear heads, which the package brings with it.

        `checkpoint` is a path to torchvision's VGG16 weights; None takes them from torch's cache or downloads them;
        "random" leaves them random, for tests. Raises FileNotFoundError or OSError naming the file and the option.
        """
        super().__init__()
        import lpips  # here, because importing it takes torchvision with it

        state = None if checkpoint == "random" else _vgg16_state(checkpoint)
        self.network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        if state is not None:
            self.network.net.load_state_dict(_renamed(state, self.network.net))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "LearnedPerceptualLoss":
        """Stay in eval mode: the heads hold a dropout layer that `.train()` of a parent would turn on."""
        return super().train(False)

    def distance(self, images: Float[Tensor, "B 3 H W"], others: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Return one distance a pair of images [B, 3, H, W] in [-1, 1], at least 16 pixels a side."""
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images.float(), others.float()).flatten()

    def forward(self, prediction: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Tensor:
        """Return the mean distance of images in [-1, 1]."""
        return self.distance(prediction, target).mean()


_VGG16_REMEDY = (
    f"Fetch {VGG16_URL} and pass its path as perceptual_checkpoint, or choose perceptual: teacher (the frozen "
    "teacher's features) or none."
)


def _vgg16_state(checkpoint: str | None) -> dict[str, Tensor]:
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f"perceptual_checkpoint {checkpoint!r} is not a file; expected {VGG16_FILE}. {_VGG16_REMEDY}"
            )
        try:
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{checkpoint} holds more than tensors; such a file is never unpickled. {_VGG16_REMEDY}"
            ) from error
    try:
        return torch.hub.load_state_dict_from_url(VGG16_URL, map_location="cpu", weights_only=True, progress=False)
    except OSError as error:  # urllib's errors are OSErrors
        raise OSError(f"LPIPS needs {VGG16_FILE}, which could not be downloaded ({error}). {_VGG16_REMEDY}") from error


def _renamed(state: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """From torchvision's keys to those of the trunk, whose slices keep torchvision's numbers."""
    keys = {key: f"features.{key.split('.', 1)[1]}" for key in trunk.state_dict()}
    if missing := [theirs for theirs in keys.values() if theirs not in state]:
        raise ValueError(f"VGG16 weights lack {missing}; expected torchvision's {VGG16_FILE}. {_VGG16_REMEDY}")
    return {key: state[theirs] for key, theirs in keys.items()}


class FeatureDistance(nn.Module):
    """Perceptual loss in the feature maps of another frozen network, for runs without LPIPS' weights."""

    def __init__(self, feature_maps: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Take a function from images to maps, [B, C, H, W] or tokens [B, N, C] (a teacher's `feature_maps`).

        Gradients must reach the images through it. The network behind it is not registered here.
        """
        super().__init__()
        self._feature_maps = (feature_maps,)  # in a tuple: a bare module would become part of this one

    def forward(self, prediction: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Tensor:
        """Return the squared distance of unit feature vectors, averaged over positions, images and maps (0..4)."""
        (feature_maps,) = self._feature_maps
        with torch.no_grad():
            wanted = feature_maps(target)
        terms = []
        for a, b in zip(feature_maps(prediction), wanted, strict=True):
            channel = 1 if a.ndim == 4 else -1
            difference = F.normalize(a.float(), dim=channel, eps=1e-6) - F.normalize(b.float(), dim=channel, eps=1e-6)
            terms.append(difference.square().sum(channel).mean())
        return torch.stack(terms).mean()


def build_perceptual_loss(
    config: TokenizerLossConfig, *, feature_maps: Callable[[Tensor], Sequence[Tensor]] | None = None
) -> nn.Module | None:
    """Make the perceptual loss that `config` names: a module (prediction, target) -> scalar, or None for "none".

    `feature_maps` is needed for "teacher". Keep the module outside the engine: it is frozen.
    """
    if config.perceptual == "lpips":
        return LearnedPerceptualLoss(config.perceptual_checkpoint)
    if config.perceptual == "teacher":
        if feature_maps is None:
            raise ValueError(
                "perceptual is 'teacher' but there is no teacher; expected its feature_maps. Configure one."
            )
        return FeatureDistance(feature_maps)
    return None
