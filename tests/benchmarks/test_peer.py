"""What the authors' code is given to be measured, and what is said when it cannot run."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.peer import Peer, run_peer, write_work
from tests.generation.tiny import tiny_config
from tokenflow.generation.authors import read_authors_folder
from tokenflow.generation.model import Generator
from tokenflow.generation.options import SamplingConfig
from tokenflow.tokenizer.quantizer import MultiScaleQuantizer, QuantizerConfig

SAMPLING = SamplingConfig.named("three-step", codebook_size=32)
PROMPTS = ([1, 2, 38], [3, 38])


@pytest.fixture
def models():
    generator = Generator(tiny_config(code_width=10)).eval()
    return {
        "generator": generator,
        "quantizer": MultiScaleQuantizer(
            QuantizerConfig(codebook_size=32, code_widths=(2, 8), scales=generator.config.scales)
        ),
    }


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "t2i" / "llava_t2i").mkdir(parents=True)
    return tmp_path


def test_the_peer_gets_the_same_weights_codebooks_and_sampling(models, tmp_path):
    write_work(tmp_path, **models, prompts=PROMPTS, sampling=SAMPLING, threads=1, repeats=2)
    config = models["generator"].config
    read = read_authors_folder(
        tmp_path, scales=config.scales, code_width=10, text_length=config.text_length, image_open=config.image_open
    )
    for name, value in models["generator"].state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
    tables = load_file(tmp_path / "codebooks" / "model.safetensors")
    for table, codebook in zip(("semantic", "pixel"), models["quantizer"].quantizer.codebooks, strict=True):
        assert torch.equal(tables[table], codebook)
    work = json.loads((tmp_path / "work.json").read_text())
    assert (work["text"], work["negative"]) == PROMPTS
    assert (work["top_k"], work["top_p"], work["guidance_scale"]) == ([32, 32, 1], [0.8, 0.8, 0.0], 7.5)
    assert work["ids"] == [39, 40, 71] and work["max_length"] == 3 + 14


def test_paths_that_cannot_be_it_are_named(checkout, tmp_path):
    with pytest.raises(ValueError, match="no t2i/llava_t2i"):
        Peer(checkout=tmp_path / "elsewhere", python=Path(sys.executable))
    with pytest.raises(ValueError, match=r"--peer_python is .*nothing"):
        Peer(checkout=checkout, python=tmp_path / "nothing")


def test_a_peer_that_does_not_run_is_an_error_with_its_last_words(models, checkout):
    (checkout / "t2i" / "llava_t2i" / "__init__.py").write_text("raise RuntimeError('not today')")
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1.*not today"):
        run_peer(
            Peer(checkout=checkout, python=Path(sys.executable)),
            **models,
            prompts=PROMPTS,
            sampling=SAMPLING,
            repeats=1,
        )
