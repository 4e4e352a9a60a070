"""A model's folder, loaded and tried: a tokenizer, a text-to-image or a multimodal model, with proofs of agreement."""

import json
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenflow import TextToImage, TokenFlowTokenizer
from tokenflow.data.shapes import SceneSampler, draw
from tokenflow.data.transforms import center_crop, to_array, to_tensor
from tokenflow.doctor.agreement import compare_with_teacher_forcing, round_trip_of_codes
from tokenflow.doctor.findings import GIB, Finding, findings, first_line
from tokenflow.doctor.overfit import available_memory, memory_needed, overfit
from tokenflow.doctor.seeing import image_to_text
from tokenflow.evaluation.blank_pictures import fault_of_pictures


@dataclass(frozen=True, kw_only=True)
class OverfitChoice:
    """One picture that a copy of the model must learn by heart."""

    picture: Image.Image
    prompt: str = "a picture"
    steps: int = 200
    """Most training steps; it ends when every code is predicted with certainty."""


def model(folder: str | Path, *, overfit_on: OverfitChoice | None = None) -> Iterator[Finding]:
    """What the folder holds decides what is tried."""
    described = described_in(folder)
    if "generator" in described:
        yield from text_to_image(folder, overfit_on=overfit_on)
        return
    if overfit_on is not None:
        raise ValueError(f"--overfit is for a text-to-image folder; {folder} is none")
    yield from image_to_text(folder) if "multimodal" in described else tokenizer(folder)


def described_in(folder: str | Path) -> Collection[str]:
    """The keys of `config.json`, which say what a folder is; none where there is no such file."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return ()
    return content if isinstance(content, dict) else ()


def tokenizer(folder: str | Path) -> Iterator[Finding]:
    """Whether a tokenizer loads here and what a round trip costs."""
    found = findings(f"tokenizer {folder}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = TokenFlowTokenizer.from_pretrained(folder).eval().to(device)
        size = model.config.image_size
        drawn = np.stack([draw(SceneSampler(0, "seen")[index], size) for index in range(2)])
        images = to_tensor(torch.from_numpy(drawn)).to(device)
        codes = model.encode(images)
        begin = time.perf_counter()
        pictures = model.reconstruct(images[:1])
        seconds = time.perf_counter() - begin
        fault = fault_of_pictures(torch.cat([pictures, model.reconstruct(images[1:])]))
    except (ValueError, OSError, RuntimeError) as error:
        yield found("load", "broken", first_line(error), "give the folder that a pipeline or import-checkpoint wrote")
        return
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield found(
        "load", "ok", f"{parameters / 1e6:.2f} M parameters, {size}x{size} pictures, {codes.shape[1]} codes each"
    )
    yield found(
        "round trip",
        "broken" if fault else "ok",
        f"{seconds:.2f} s a picture on {device}, {fault.what if fault else 'finite, two pictures come back different'}",
        f"likely: {fault.likely}" if fault else "",
    )


def text_to_image(folder: str | Path, *, overfit_on: OverfitChoice | None = None) -> Iterator[Finding]:
    """Whether a text-to-image model loads, samples what it predicts, and can learn a picture by heart; in fp32."""
    found = findings(f"text to image {folder}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        painter = TextToImage.from_pretrained(folder).to(device)
    except (ValueError, OSError) as error:
        yield found(
            "load",
            "broken",
            first_line(error),
            "give what save_pretrained or gen_pretrain wrote, with its own tokenizer",
        )
        return
    config = painter.generator.config
    parameters = sum(parameter.numel() for parameter in painter.generator.parameters())
    yield found(
        "load",
        "ok",
        f"{parameters / 1e6:.1f} M parameters in {str(painter.generator.head.weight.dtype).removeprefix('torch.')}, "
        f"{config.num_codes} codes of {config.codebook_size} on scales {', '.join(map(str, config.scales))}",
    )
    # Codes are compared, and bf16 rounds logits so far that many of them tie.
    painter.generator.float()
    if not all(bool(torch.isfinite(value).all()) for value in painter.generator.state_dict().values()):
        yield found("weights", "broken", "NaN or infinity among them", "export an earlier checkpoint")
        return
    yield from _agreement(painter, found)
    if overfit_on is None:
        yield found(
            "overfit one picture",
            "note",
            "not tried: it trains a copy of the model",
            "give --overfit PICTURE: the copy must learn that picture by heart and paint it again",
        )
    else:
        yield _overfit(painter, found, overfit_on, parameters=parameters)


def _agreement(painter: TextToImage, found) -> Iterator[Finding]:
    for guidance_scale in (0.0, 7.5):
        begin = time.perf_counter()
        result = compare_with_teacher_forcing(painter, guidance_scale=guidance_scale)
        seconds = time.perf_counter() - begin
        yield found(
            f"sampling, guidance {guidance_scale:g}",
            "broken" if result.different else "ok",
            f"cached greedy codes equal the teacher-forced argmax at {result.compared - result.different} of "
            f"{result.compared} codes; {result.tied} more have a gap of at most {result.epsilon:.0e} between the best "
            f"two logits ({seconds:.1f} s)",
            f"first difference at scale {result.first_scale}: training and sampling compute different things. "
            f"{_likely(result.first_scale, guidance_scale)}"
            if result.different
            else "",
        )
    shares = round_trip_of_codes(painter)
    scales = ", ".join(f"{scale}x{scale} {share:.0%}" for scale, share in shares.scales.items())
    yield found(
        "codes, painted and read again",
        "note",
        f"{shares.overall:.0%} come back ({scales}); less at fine scales is usual: no training asks for more",
    )


def _likely(scale: int, guidance_scale: float) -> str:
    if guidance_scale:
        return "If guidance 0 agrees: how conditional and unconditional logits are combined."
    if scale == 1:
        return "Likely: the last text token's position or embedding, or padding that is not hidden."
    return "Likely: accumulated features, scale or position embeddings, the mask between scales, or the cache."


def _overfit(painter: TextToImage, found, choice: OverfitChoice, *, parameters: int) -> Finding:
    need, have = memory_needed(parameters), available_memory(painter.device)
    if need > have:
        return found(
            "overfit one picture",
            "note",
            f"not tried: it takes about {need / GIB:.0f} GiB, {have / GIB:.0f} GiB are free on {painter.device}",
            "run it on a larger machine, or on a smaller model of the same recipe",
        )
    picture = to_array(center_crop(choice.picture, painter.tokenizer.config.image_size))
    image = to_tensor(torch.from_numpy(picture)[None]).to(painter.device)
    result = overfit(painter, image, prompt=choice.prompt, steps=choice.steps)
    detail = (
        f"{result.steps} steps, loss {result.first_loss:.2f} -> {result.last_loss:.3f}, {result.accuracy:.1%} of codes "
        f"predicted; sampled, {result.equal:.1%} of codes and {result.psnr:.1f} dB against its reconstruction"
    )
    if result.equal == 1:
        return found("overfit one picture", "ok", f"{detail}: it comes back ({result.seconds:.1f} s)")
    if result.accuracy < 1:
        cause = f"not learned in {result.steps} steps: give more with --overfit_steps; if the loss stays, gradients "
        return found("overfit one picture", "broken", detail, f"{cause}do not reach the weights")
    cause = "the loss is learned and the picture does not come back: training and sampling compute different things"
    return found("overfit one picture", "broken", detail, f"{cause}; see the sampling checks above")
