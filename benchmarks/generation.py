"""Time of an image with the key/value cache, against the same model without it, in one run.

    python -m benchmarks.generation [--json] [--models llama-100m nano] [--threads 2] [--device cpu] [--authors_way]
    python -m benchmarks.generation --peer CHECKOUT --peer_python PYTHON [--json] [--threads 2]

Random weights, one image, a full text field for prompt and negative prompt, guidance 7.5, three steps a scale (one at
the first); the image decoder is left out. Columns:

    ms_per_image          the whole of sampling, text included; best of the repeats
    tokens_per_s          codes of the finished image by that time
    packing_ms            laying out the matrices for the CPU, once a model, not in ms_per_image
    uncached_ms           every step computes text and image at full length
    prefix_ms             every step computes text and image up to its scale
    speedup_vs_uncached   uncached_ms / ms_per_image; speedup_vs_prefix likewise
    bound_share           time to read the weights once a step at the measured bandwidth, over ms_per_image
    authors_way_ms        with --authors_way: as prefix_ms, with a dense mask and logits of the whole vocabulary at all
                          positions, which is what the authors' code computes; a lower bound of its time
    peer_ms               with --peer: the authors' own code, whole images with the same weights, prompts and sampling,
                          on as many threads; speedup_vs_peer is peer_ms / ms_per_image
    peer_same_codes       share of the codes of a greedy image (one step a scale) on which theirs and ours agree

Without the cache one step a scale is run and timed, and counted for each step at that scale (they cost the same).

`--peer` is a copy of github.com/ByteVisionLab/TokenFlow, `--peer_python` the Python of an environment of its own with
what their code needs; ours is never mixed with it. `--models` is then llama-186m unless named; the authors' layout
holds models with a head over the whole vocabulary (not llama-100m, nano). benchmarks/peer_generation.py says how their
code is called. To make the environment, with the torch that is installed here:

    git clone https://github.com/ByteVisionLab/TokenFlow CHECKOUT
    python -m venv ENV && ENV/bin/pip install torch torchvision transformers==4.43.4 "numpy<2" timm==1.0.9 \\
        einops==0.6.1 ftfy regex requests sentencepiece && ENV/bin/pip install "setuptools<70"
    python -m benchmarks.generation --peer CHECKOUT --peer_python ENV/bin/python
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peer import Peer, run_peer
from tokenflow.generation.choosing import ImageStreams
from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.generation.options import SamplingConfig
from tokenflow.generation.packing import for_sampling
from tokenflow.generation.predictors import CachedPredictor, UncachedPredictor
from tokenflow.generation.presets import PRESETS, preset
from tokenflow.generation.sampling import Predictor, sample_codes
from tokenflow.generation.text_field import TextTokens, pad_rows
from tokenflow.tokenizer.quantizer import MultiScaleQuantizer, QuantizerConfig

_COLUMNS = ("model", "ms_per_image", "tokens_per_s", "packing_ms", "uncached_ms", "prefix_ms")
_COLUMNS += ("speedup_vs_uncached", "speedup_vs_prefix", "bound_share", "authors_way_ms", "speedup_vs_authors_way")
_COLUMNS += ("peer_ms", "speedup_vs_peer", "peer_same_codes")


class AuthorsWay(UncachedPredictor):
    """Logits of the whole vocabulary at every position, every step, as well as the hidden states."""

    def _hidden(self, inputs: Tensor, *, count: int) -> Tensor:
        repeated = inputs.repeat(self._repeats, 1, 1)
        hidden = self._generator.hidden(self._text.ids, repeated, text_lengths=self._text.lengths)
        F.linear(hidden, self._generator.head.weight).float()
        return hidden[:, -count:]


def _prompt(config: GeneratorConfig, seed: int) -> TextTokens:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, config.pad_token, (config.text_length,), generator=generator).tolist()
    return pad_rows([words + list(config.image_open)], pad_token=config.pad_token)


def _synchronise(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Workload:
    """One model with its texts and the codes' quantiser."""

    def __init__(self, config: GeneratorConfig, *, device: str) -> None:
        torch.manual_seed(0)
        self.device, self.config = device, config
        self.generator = Generator(config).eval().to(device)
        widths = (config.code_width - 8, 8)
        self.quantizer = MultiScaleQuantizer(
            QuantizerConfig(codebook_size=config.codebook_size, code_widths=widths, scales=config.scales)
        ).to(device)
        self.text, self.negative = _prompt(config, 1), _prompt(config, 2)
        self.sampling = SamplingConfig.named("three-step", codebook_size=config.codebook_size)

    def sample(self, predictor: Predictor, generator: Generator, sampling: SamplingConfig, **options: object) -> Tensor:
        """Codes of one image."""
        return sample_codes(
            predictor,
            generator=generator,
            quantizer=self.quantizer,
            config=sampling,
            streams=ImageStreams(seed=0, indices=[0]),
            batch=1,
            **options,
        )

    @torch.no_grad()
    def cached_ms(self, generator: Generator) -> float:
        """Milliseconds of one image."""
        start = _synchronise(self.device)
        self.sample(CachedPredictor(generator, self.text, self.negative), generator, self.sampling)
        return 1e3 * (_synchronise(self.device) - start)

    @torch.no_grad()
    def uncached_ms(self, make: Callable[..., Predictor], generator: Generator, **options: object) -> float:
        """Milliseconds of one image from one step a scale, each counted as often as it is taken."""
        steps = len(self.sampling.top_k)
        one = dataclasses.replace(self.sampling, top_k=self.sampling.top_k[:1], top_p=self.sampling.top_p[:1])
        times = [_synchronise(self.device)]
        predictor = make(generator, self.text, self.negative, **options)
        self.sample(predictor, generator, one, progress=lambda _: times.append(_synchronise(self.device)))
        spans = [after - before for before, after in itertools.pairwise(times)]
        return 1e3 * (spans[0] + steps * sum(spans[1:]))

    def against_peer(self, peer: Peer, generator: Generator, *, repeats: int) -> dict[str, float]:
        """Milliseconds of the authors' code for the same image, and the share of equal codes of a greedy one."""
        greedy = SamplingConfig.named("greedy", codebook_size=self.config.codebook_size)
        codes = self.sample(CachedPredictor(generator, self.text, self.negative), generator, greedy)[0]
        result = run_peer(
            peer,
            generator=self.generator,
            quantizer=self.quantizer,
            prompts=(self.text.ids[0].tolist(), self.negative.ids[0].tolist()),
            sampling=self.sampling,
            repeats=repeats,
        )
        same = (codes == torch.tensor(result.greedy)).double().mean().item()
        return {"peer_ms": result.ms, "peer_same_codes": same}

    def weight_bytes(self) -> int:
        """Bytes of matrices that every step reads: layers, and the codes' rows of the head."""
        layers = sum(p.nbytes for p in self.generator.language.layers.parameters())
        return layers + self.config.codebook_size * self.config.language.width * self.generator.head.weight.itemsize


def bandwidth(device: str) -> float:
    """Bytes a second of reading 512 MB."""
    values = torch.ones(2**27, device=device)
    values.sum()
    start = _synchronise(device)
    for _ in range(3):
        values.sum()
    return 3 * values.nbytes / (_synchronise(device) - start)


def measure(
    name: str, *, device: str, repeats: int, authors_way: bool, bytes_per_second: float, peer: Peer | None = None
) -> dict[str, object]:
    """One row of the table."""
    work = Workload(preset(name), device=device)
    start = _synchronise(device)
    generator = for_sampling(work.generator, "auto")
    packing_ms = 1e3 * (_synchronise(device) - start)
    cached = min(work.cached_ms(generator) for _ in range(repeats + 1))
    row: dict[str, object] = {"model": name, "ms_per_image": cached}
    row["parameters"] = sum(p.numel() for p in work.generator.parameters())
    row["tokens_per_s"] = 1e3 * work.config.num_codes / cached
    row["packing_ms"] = packing_ms
    if peer is not None:
        row |= work.against_peer(peer, generator, repeats=repeats)
        row["speedup_vs_peer"] = row["peer_ms"] / cached
    # The same matrices, packed or not, so that the cache alone makes the difference.
    for column, extent in (("uncached", "full"), ("prefix", "prefix")):
        row[f"{column}_ms"] = work.uncached_ms(UncachedPredictor, generator, extent=extent)
        row[f"speedup_vs_{column}"] = row[f"{column}_ms"] / cached
    steps = 1 + len(work.sampling.top_k) * (len(work.config.scales) - 1)
    row["bound_share"] = 1e3 * steps * work.weight_bytes() / bytes_per_second / cached
    if authors_way:
        dense = dataclasses.replace(work.config.language, attention="dense")
        work.generator.language.config = dense
        row["authors_way_ms"] = work.uncached_ms(AuthorsWay, work.generator)
        row["speedup_vs_authors_way"] = row["authors_way_ms"] / cached
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON row a model, nothing else")
    parser.add_argument("--models", nargs="+", choices=list(PRESETS), help="default: llama-100m nano")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice when absent")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--authors_way", action="store_true", help="also time what the authors' code computes")
    parser.add_argument("--peer", type=Path, metavar="CHECKOUT", help="the authors' code, to be timed too")
    parser.add_argument("--peer_python", type=Path, default=Path(sys.executable), help="Python that runs it")
    arguments = parser.parse_args()
    if arguments.peer is not None and arguments.device != "cpu":
        parser.error(f"--device is {arguments.device}; --peer measures both sides on the CPU. Leave --device out.")
    peer = None if arguments.peer is None else Peer(checkout=arguments.peer, python=arguments.peer_python)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    bytes_per_second = bandwidth(arguments.device)
    for name in arguments.models or (["llama-100m", "nano"] if peer is None else ["llama-186m"]):
        row = measure(
            name,
            device=arguments.device,
            repeats=arguments.repeats,
            authors_way=arguments.authors_way,
            bytes_per_second=bytes_per_second,
            peer=peer,
        )
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print("  ".join(f"{column} {row[column]}" for column in _COLUMNS if column in row), flush=True)


if __name__ == "__main__":
    main()
