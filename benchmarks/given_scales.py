"""At which scale painting goes wrong: pictures whose first scales are right are finished by the model.

    python -m benchmarks.given_scales --model runs/demo/generation/model [--json]

Scenes of the built-in world are encoded. A row a number of scales: their right codes are given, the model paints the
others from the prompt, and the exact verifier says for which share of the prompts the picture shows what was asked for,
overall and by kind. `side` and `no_side` are what the codes of the next scale of two objects cost in nats where the
prompt says which is where, and where it does not: a model that has learned what the sides mean pays less for them.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import print_rows
from tokenflow.data.captions import PROMPT_KINDS, Prompt, claims_in_reading_order
from tokenflow.data.shapes import Scene, SceneSampler, draw
from tokenflow.data.transforms import to_tensor
from tokenflow.data.verifier import check
from tokenflow.doctor.agreement import read_text
from tokenflow.evaluation.reconstruction import reconstruct_uint8
from tokenflow.generation.choosing import ImageStreams
from tokenflow.generation.options import SamplingConfig
from tokenflow.generation.predictors import CachedPredictor
from tokenflow.generation.sampling import SamplingProgress, sample_codes
from tokenflow.generation.text_to_image import TextToImage


def claims(count: int, *, seed: int) -> list[tuple[Scene, Prompt]]:
    """`count` scenes of seen pairs of each of GenEval's kinds, each with something that can be said of it."""
    found: dict[str, list[tuple[Scene, Prompt]]] = {kind: [] for kind in PROMPT_KINDS}
    sampler, index = SceneSampler(seed, "seen"), 0
    while any(len(part) < count for part in found.values()):
        scene = sampler[index]
        index += 1
        for kind, part in found.items():
            said = [claim for claim in claims_in_reading_order(scene) if claim.kind == kind]
            if said and len(part) < count:
                part.append((scene, said[scene.phrasing % len(said)]))
    return [item for part in found.values() for item in part]


def encoded(model: TextToImage, scenes: Sequence[Scene]) -> Tensor:
    """Right codes [N, L] of scenes."""
    size = model.tokenizer.config.image_size
    images = to_tensor(torch.from_numpy(np.stack([draw(scene, size) for scene in scenes])))
    return model.tokenizer.encode(images.to(model.device))


@torch.inference_mode()
def finished(
    model: TextToImage, prompts: Sequence[str], codes: Tensor, *, given: int, config: SamplingConfig
) -> Tensor:
    """Codes [N, L] whose first `given` scales are those of `codes` and whose others the model samples."""
    starts, painted = model.generator.config.scale_starts, codes

    def keep(progress: SamplingProgress) -> None:
        nonlocal painted
        painted = progress.codes

    def go_on_with(scale: int, step: int) -> Tensor:
        return (codes if scale < given else painted)[:, starts[scale] : starts[scale + 1]]

    return sample_codes(
        CachedPredictor(model.generator, read_text(model, prompts), read_text(model, [None]), compile="none"),
        generator=model.generator,
        quantizer=model.tokenizer.quantizer,
        config=config,
        streams=ImageStreams(seed=0, indices=range(len(prompts))),
        batch=len(prompts),
        progress=keep,
        forced=go_on_with,
    )


@torch.inference_mode()
def costs(model: TextToImage, pairs: Sequence[Scene], codes: Tensor, *, kind: str) -> list[float]:
    """Nats that the codes of each scale of `pairs` cost, captions being of this kind."""
    said = [next(claim.text for claim in claims_in_reading_order(scene) if claim.kind == kind) for scene in pairs]
    text = read_text(model, said).to(model.device)
    output = model.generator(text.ids, codes, model.tokenizer.scale_inputs(codes), text_lengths=text.lengths)
    return [
        loss * scale**2 for loss, scale in zip(output.scale_losses.tolist(), model.tokenizer.config.scales, strict=True)
    ]


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row a number of scales that are given."""
    model = TextToImage.from_pretrained(arguments.model)
    asked = claims(arguments.prompts, seed=arguments.seed)
    codes, prompts = encoded(model, [scene for scene, _ in asked]), [claim.text for _, claim in asked]
    config = SamplingConfig.named(
        "three-step", codebook_size=model.generator.config.codebook_size, guidance_scale=arguments.guidance_scale
    )
    pairs = [scene for scene, claim in asked if claim.kind == "position"]
    of_pairs = encoded(model, pairs)
    side, no_side = (costs(model, pairs, of_pairs, kind=kind) for kind in ("position", "color_attribution"))
    for given in range(len(side)):
        painted = model.tokenizer.decode(finished(model, prompts, codes, given=given, config=config))
        right = defaultdict(list)
        for (_, claim), picture in zip(
            asked, reconstruct_uint8(painted).permute(0, 2, 3, 1).cpu().numpy(), strict=True
        ):
            right[claim.kind].append(check(claim, picture))
        shares = {kind: sum(marks) / len(marks) for kind, marks in right.items()}
        row = {"all": sum(shares.values()) / len(shares), **shares, "side": side[given], "no_side": no_side[given]}
        yield {"given": given, **{name: round(value, 3) for name, value in row.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON row a number of scales, nothing else")
    parser.add_argument("--model", required=True, help="folder of a text-to-image model of the built-in world")
    parser.add_argument("--prompts", type=int, default=50, help="of each kind (default %(default)s)")
    parser.add_argument("--seed", type=int, default=2, help="of the scenes (default %(default)s)")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="(default %(default)s)")
    print_rows(measure(arguments := parser.parse_args()), as_json=arguments.json)


if __name__ == "__main__":
    main()
