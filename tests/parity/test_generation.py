"""The generator computes what the authors' text-to-image model computes: inputs, logits, loss, and sampled codes.

Their code masks nothing with a cache: every fixture came from whole recomputation, row after row.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.parity.fixtures import SLICES, Golden, fill, goldens, shared_json, weight
from tests.parity.test_tokenizers import build as build_tokenizer
from tokenflow.generation.choosing import ImageStreams
from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.generation.options import SamplingConfig
from tokenflow.generation.predictors import CachedPredictor, UncachedPredictor
from tokenflow.generation.sampling import sample_codes
from tokenflow.generation.scale_features import GrowingFeatures
from tokenflow.generation.state_dict import from_authors, to_authors
from tokenflow.generation.text_field import TextTokens, pad_rows
from tokenflow.language.config import LanguageConfig
from tokenflow.tokenizer.presets import SCALES_256
from tokenflow.tokenizer.quantizer import MultiScaleQuantizer, QuantizerConfig

PAD, IMAGE_START, CLOSE = 1000, 1001, (533, 249, 299, 2)
TIE = 1e-4
"""Gap between the best two logits under which either may win."""
CONFIG = GeneratorConfig(
    language=LanguageConfig(
        vocabulary_size=33769,
        width=64,
        depth=2,
        heads=4,
        kv_heads=4,
        head_width=16,
        mlp_width=128,
        max_positions=2048,
        norm_order="post",
        qk_norm=True,
    ),
    scales=SCALES_256,
    codebook_size=32768,
    code_width=40,
    pad_token=PAD,
    image_token_start=IMAGE_START,
    image_open=(529, 249, 299),
    image_close=CLOSE,
)


def build(*, offset: int, text_positions: str = "field") -> Generator:
    """The tiny generator with the rule's weights, brought in under the authors' keys."""
    with torch.device("meta"):
        model = Generator(dataclasses.replace(CONFIG, text_positions=text_positions))
    names = model.state_dict()
    model.load_state_dict(dict(from_authors(names, fill(to_authors(names), offset=offset))), assign=True)
    return model.eval()


def tower(*, offset: int) -> MultiScaleQuantizer:
    """The quantiser of the image tokenizer that the fixtures were made with."""
    quantizer = MultiScaleQuantizer(QuantizerConfig(codebook_size=32768, scales=SCALES_256))
    for number, (key, width) in enumerate((("vqkd", 32), ("vqgan", 8))):
        made = weight(f"quantize.embedding_{key}.weight", (32768, width), offset=offset)
        quantizer.quantizer.codebooks[number].data = made
    return quantizer


def prefixes(golden: Golden) -> tuple[TextTokens, TextTokens, str]:
    """Conditional and unconditional texts of a fixture, and how their positions count."""
    rows = [row[: int(n)] for row, n in zip(golden.array("prefix_cond"), golden.array("prefix_len"), strict=True)]
    uncond = golden.array("prefix_uncond")
    positions = "row" if "ragged" in golden.name else "field"

    def real(row: Tensor) -> list[int]:
        return row[row != PAD].tolist()

    return (
        pad_rows([real(row) for row in rows], pad_token=PAD),
        pad_rows([real(uncond)], pad_token=PAD),
        positions,
    )


def test_keys_and_shapes_are_those_of_the_authors():
    with torch.device("meta"):
        state = Generator(CONFIG).state_dict()
    shapes = {key: list(value.shape) for key, value in to_authors(state).items()}
    assert shapes["model.layers.1.self_attn.qknorm.query_norm.weight"] == [16] and len(shapes) == 31
    if (manifest := shared_json("keys_t2i_tiny.json")) is not None:
        assert shapes == {key: shape for key, (shape, _) in manifest.items()}


@pytest.mark.parametrize("golden", goldens("t2i_tower_features"))
@torch.inference_mode()
def test_features_of_each_scale(golden):
    quantizer = tower(offset=golden.offset)
    codes = golden.array("codes").long()
    golden.close("features", quantizer.scale_inputs(codes), atol=1e-3)
    # The third emitted scale, whose rows are 20 to 55, with its own codes fed back in, as refinement does.
    growing = GrowingFeatures(quantizer, batch=1)
    parts = codes.split([scale**2 for scale in SCALES_256], dim=1)
    rows = []
    for scale, part in enumerate(parts):
        rows.append(growing.refined_rows(part) if scale == 3 else growing.rows())
        growing.advance(part)
    first, last = golden.array("rows").tolist()
    expected = golden.array("features_pred2_rows")
    torch.testing.assert_close(torch.cat(rows[1:], dim=1)[:, first:last], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("golden", goldens("t2i_forward"))
@torch.inference_mode()
def test_forward(golden):
    quantizer = tower(offset=golden.offset)
    losses = []
    for row, positions in enumerate(("field", "row")):
        model = build(offset=golden.offset, text_positions=positions)
        start = int(golden.array("image_start")[row])
        ids = golden.array("input_ids")[row, :start]
        text = pad_rows([ids[ids != PAD].tolist()], pad_token=PAD)
        codes = golden.array("codes")[row : row + 1].long()
        features = quantizer.scale_inputs(codes)
        close_embeddings(golden, model, row, text, features)
        hidden = model.hidden(text.ids, features, text_lengths=text.lengths, closing=len(CLOSE))
        logits = model.head.weight @ hidden[0, text.ids.shape[1] - 1 :].T
        close_logits(golden, row, logits.T)
        losses.append(model(text.ids, codes, features).loss)
    torch.testing.assert_close(torch.stack(losses).mean().double(), golden.array("loss_vision"), atol=2e-5, rtol=0)


def close_embeddings(golden: Golden, model: Generator, row: int, text: TextTokens, features: Tensor) -> None:
    """The rows of inputs that are neither the placeholder nor behind it."""
    length = text.ids.shape[1]
    known = torch.cat(
        [model.embed_text(text.ids)[:, :-1], model.start_embedding(text.ids[:, -1]), model.embed_features(features)], 1
    )[0]
    for offset, expected in zip(
        golden.array("inputs_embeds_row_offsets").tolist(), golden.array("inputs_embeds_rows")[row], strict=True
    ):
        if offset < features.shape[1]:
            torch.testing.assert_close(known[length + offset], expected, atol=2e-6, rtol=0)


def close_logits(golden: Golden, row: int, logits: Tensor) -> None:
    """Rows are the image's positions and those of the closing text."""
    codes, count = slice(IMAGE_START, IMAGE_START + 64), CONFIG.num_codes
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(logits[count - 8 : count, codes], golden.array("logits_last8_img64")[row], **close)
    first = logits[list(CONFIG.scale_starts[:-1]), codes]
    torch.testing.assert_close(first, golden.array("logits_first_of_scale_img64")[row], **close)
    torch.testing.assert_close(logits[count:, :64], golden.array("logits_tail")[row, : len(CLOSE)], **close)
    clear = golden.array("argmax_gap")[row] > TIE
    best = logits[:count, IMAGE_START:].argmax(1)
    assert torch.equal(best[clear], golden.array("argmax_img")[row].long()[clear])
    full = logits[:count].argmax(1)
    assert (full != golden.array("argmax_full")[row]).sum() <= 1


GENERATED = ("padded_top1", "padded_top2", "padded_top3", "ragged_top2")


def sample(golden: Golden, *, cached: bool, forced=None, progress=None) -> Tensor:
    text, negative, positions = prefixes(golden)
    model = build(offset=golden.offset, text_positions=positions)
    steps = int(golden.name[-1])
    predictor = (CachedPredictor if cached else UncachedPredictor)(model, text, negative)
    return sample_codes(
        predictor,
        generator=model,
        quantizer=tower(offset=golden.offset),
        config=SamplingConfig(guidance_scale=7.5, top_k=(1,) * steps, top_p=(0.0,) * steps),
        streams=ImageStreams(seed=0, indices=range(2)),
        batch=2,
        progress=progress,
        forced=forced,
    )


@pytest.mark.parametrize("golden", [golden for name in GENERATED for golden in goldens(f"t2i_generate_{name}")[-1:]])
def test_each_sampling_call_with_their_codes_before_it(golden):
    lengths = golden.array("call_lengths").tolist()
    calls = list(golden.array("all_call_codes").long().split(lengths, dim=1))
    gaps = list(golden.array("all_call_gap").split(lengths, dim=1))
    position = iter(range(len(calls)))
    seen = []

    def compare(state):
        number = next(position)
        seen.append(number)
        best, second = state.logits.topk(2, dim=-1)[0].unbind(-1)
        torch.testing.assert_close(best - second, gaps[number], atol=2e-4, rtol=0)
        wrong = state.codes[:, -lengths[number] :] != calls[number]
        assert not (wrong & (gaps[number] > 1e-3)).any(), f"call {number}, scale {state.scale}, step {state.step}"

    sample(golden, cached=True, progress=compare, forced=lambda scale, step: calls[seen[-1]])
    assert len(seen) == len(calls)


@pytest.mark.parametrize("golden", [golden for name in GENERATED for golden in goldens(f"t2i_generate_{name}")[-1:]])
def test_free_run_gives_their_codes(golden):
    codes = sample(golden, cached=True)
    expected = golden.array("codes").long()
    clear = (golden.array("all_call_gap") > TIE).all(1)  # a tie decided the other way changes all that follows
    assert clear.any()
    assert torch.equal(codes[clear], expected[clear])


@pytest.mark.parametrize("golden", goldens("t2i_generate_padded_top1")[-1:])
def test_free_run_without_a_cache_gives_their_codes(golden):
    assert torch.equal(sample(golden, cached=False), golden.array("codes").long())


@pytest.mark.slow
@pytest.mark.parametrize("golden", goldens("t2i_generate_padded_top2")[-1:])
@torch.inference_mode()
def test_the_picture_of_sampled_codes(golden):
    tokenizer = build_tokenizer("clipb_224_enh_interp", offset=golden.offset)
    picture = tokenizer.decode(golden.array("codes")[:1].long())
    pixels = (127.5 * picture + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # the authors' rounding
    if not golden.whole:
        pixels = pixels[SLICES[golden.name]["image_u8"]]
    difference = (pixels.int() - golden.array("image_u8").int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.02
