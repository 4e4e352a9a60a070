"""One picture by heart: a copy of the generator is trained on it alone and must then paint it."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenflow.doctor.agreement import read_text
from tokenflow.evaluation.reconstruction import psnr, reconstruct_uint8
from tokenflow.generation.text_to_image import TextToImage

LEARNED = 0.02
"""Loss at which training ends, once every code is predicted."""
WIDE = 512
"""Width from which a smaller learning rate is taken."""


@dataclass(frozen=True, kw_only=True)
class Overfit:
    """What came of it."""

    steps: int
    first_loss: float
    last_loss: float
    accuracy: float
    """Share of codes predicted right under teacher forcing at the end."""
    equal: float
    """Share of sampled codes that are the picture's."""
    psnr: float
    """Of the sampled picture against the tokenizer's reconstruction, dB."""
    seconds: float


def overfit(model: TextToImage, image: Tensor, *, prompt: str | int, steps: int) -> Overfit:
    """Train a copy on `image` float [1, 3, S, S] in [-1, 1] under one prompt, then sample greedily without guidance.

    The model itself stays as it is. fp32.

    Raises:
        ValueError: `steps` is below 1, or the prompt is empty.
    """
    if steps < 1 or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError(f"steps is {steps} and prompt {prompt!r}; expected at least one step and a text")
    if model.text_tokenizer is None:
        prompt = 0
    begin = time.perf_counter()
    with torch.no_grad():
        codes = model.tokenizer.encode(image)
        features = model.tokenizer.scale_inputs(codes)
        wanted = model.tokenizer.decode(codes)
    learner = copy.deepcopy(model.generator).float().train()
    text = read_text(model, [prompt]).to(model.device)
    rate = 1e-3 if learner.config.language.width < WIDE else 2e-4
    optimizer = torch.optim.AdamW(learner.parameters(), lr=rate, weight_decay=0.0)
    losses: list[float] = []
    for _ in range(steps):
        output = learner(text.ids, codes, features, text_lengths=text.lengths)
        losses.append(float(output.loss.detach()))
        if losses[-1] <= LEARNED and float(output.accuracy) == 1:
            break
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        accuracy = float(learner(text.ids, codes, features, text_lengths=text.lengths).accuracy)
    painter = TextToImage(learner, tokenizer=model.tokenizer, text_tokenizer=model.text_tokenizer)
    painted = painter.generate_codes([prompt], steps="greedy", guidance_scale=0.0)
    pictures = [reconstruct_uint8(part) for part in (wanted, model.tokenizer.decode(painted))]
    return Overfit(
        steps=len(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        accuracy=accuracy,
        equal=float((painted == codes).float().mean()),
        psnr=float(psnr(*pictures)),
        seconds=time.perf_counter() - begin,
    )


def memory_needed(parameters: int) -> int:
    """Bytes: a copy in fp32, its gradient, two moments, and as much again for what lies between."""
    return 5 * 4 * parameters


def available_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
