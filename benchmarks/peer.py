"""The authors' text-to-image code as something to measure against: what it is given, and how it is run.

Theirs needs a transformers of its time, so it runs in a process and a Python environment of its own, by
benchmarks/peer_generation.py; both sides meet in a folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tokenflow.generation.authors import write_authors_folder
from tokenflow.generation.model import Generator
from tokenflow.generation.options import SamplingConfig
from tokenflow.nn.folder import save_folder
from tokenflow.tokenizer.quantizer import MultiScaleQuantizer

RUNNER = Path(__file__).with_name("peer_generation.py")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Where the authors' code lies and what runs it."""

    checkout: Path
    """A copy of their repository."""
    python: Path
    """Python of an environment with what they need."""

    def __post_init__(self) -> None:
        """Check the paths."""
        if not (self.checkout / "t2i" / "llava_t2i").is_dir():
            raise ValueError(
                f"--peer is {self.checkout}, which has no t2i/llava_t2i; expected a copy of "
                "github.com/ByteVisionLab/TokenFlow."
            )
        if not self.python.is_file():
            raise ValueError(
                f"--peer_python is {self.python}, which is no file; expected the Python of an environment with "
                "transformers 4.43.4 (see python -m benchmarks.generation --help)."
            )


@dataclass(frozen=True, kw_only=True)
class PeerResult:
    """What their code gave."""

    ms: float
    """Milliseconds of one image, best of the repeats."""
    greedy: tuple[int, ...]
    """Codes of the image with greedy single-step sampling."""


def write_work(
    folder: Path,
    *,
    generator: Generator,
    quantizer: MultiScaleQuantizer,
    prompts: tuple[Sequence[int], Sequence[int]],
    sampling: SamplingConfig,
    threads: int | None,
    repeats: int,
) -> None:
    """Weights, codebooks and options of one image, `prompts` being the ids of prompt and negative prompt."""
    config = generator.config
    write_authors_folder(generator, folder)
    semantic, pixel = (table.detach() for table in quantizer.quantizer.codebooks)
    save_folder(
        folder / "codebooks", state={"semantic": semantic, "pixel": pixel}, description={}, card="# Codebooks\n"
    )
    work = {
        "text": list(prompts[0]),
        "negative": list(prompts[1]),
        "scales": list(config.scales),
        "ids": [config.pad_token, config.image_token_start, config.image_token_start + config.codebook_size - 1],
        "max_length": max(len(prompt) for prompt in prompts) + config.num_codes,
        "guidance_scale": sampling.guidance_scale,
        "top_k": list(sampling.top_k),
        "top_p": list(sampling.top_p),
        "threads": threads,
        "repeats": repeats,
    }
    (folder / "work.json").write_text(json.dumps(work))


def run_peer(
    peer: Peer,
    *,
    generator: Generator,
    quantizer: MultiScaleQuantizer,
    prompts: tuple[Sequence[int], Sequence[int]],
    sampling: SamplingConfig,
    repeats: int,
) -> PeerResult:
    """Time of their code with the weights and the options of ours, on as many threads as torch has here.

    Raises:
        RuntimeError: Their process failed; the message ends with what it last said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_work(
            folder,
            generator=generator,
            quantizer=quantizer,
            prompts=prompts,
            sampling=sampling,
            threads=torch.get_num_threads(),
            repeats=repeats,
        )
        path = {"PYTHONPATH": str(peer.checkout.resolve() / "t2i")}
        # In the folder: importing their code leaves nothing elsewhere.
        done = subprocess.run(
            [peer.python.absolute(), RUNNER, folder], cwd=folder, env=os.environ | path, capture_output=True, text=True
        )
        answer = folder / "result.json"
        if done.returncode or not answer.is_file():
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise RuntimeError(f"the authors' code ended with status {done.returncode}; it last said:\n{said}")
        result = json.loads(answer.read_text())
    return PeerResult(ms=result["ms"], greedy=tuple(result["greedy"]))
