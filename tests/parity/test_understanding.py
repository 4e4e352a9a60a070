"""The multimodal model computes what the authors' does: pictures, prompts, inputs, logits, loss, under their keys."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity.fixtures import Golden, fill, goldens, images, prompts, shared_json, weight
from tokenflow.language.config import LanguageConfig
from tokenflow.language.lazy_tensors import LazyTensors
from tokenflow.tokenizer.presets import SCALES_384
from tokenflow.tokenizer.quantizer import MultiScaleQuantizer, QuantizerConfig
from tokenflow.understanding.batching import MultimodalBatch, collate
from tokenflow.understanding.config import UnderstandingConfig
from tokenflow.understanding.conversation_tokens import Tokens
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.preprocess import read_picture
from tokenflow.understanding.state_dict import from_authors, to_authors
from tokenflow.understanding.templates import render

FAMILIES = {
    "llama": {"kv_heads": 4, "norm_epsilon": 1e-5},
    "qwen2": {"kv_heads": 2, "norm_epsilon": 1e-6, "rope_theta": 1e6, "qkv_bias": True},
}
PARAMETERS = [
    pytest.param(family, p.values[0], id=f"{family}-{p.id}") for family in FAMILIES for p in goldens(f"i2t_{family}")
]
TIE = 1e-4


def build(family: str, *, offset: int = 0) -> MultimodalModel:
    """The tiny model with the rule's weights, brought in under the authors' keys."""
    language = LanguageConfig(
        vocabulary_size=1000, width=64, depth=2, heads=4, head_width=16, mlp_width=128, **FAMILIES[family]
    )
    config = UnderstandingConfig(language=language, image_size=384, image_tokens=729, feature_width=40)
    with torch.device("meta"):
        model = MultimodalModel(config)
    names = model.state_dict()
    filled = fill(to_authors(names, projector=config.projector), offset=offset)
    state = LazyTensors({key: (lambda k=key: filled[k]) for key in filled})
    model.load_state_dict(dict(from_authors(names, state, projector=config.projector)), assign=True)
    return model.eval()


def picture_features(golden: Golden) -> torch.Tensor:
    """`final_quantize` of both pictures; slices keep their codes, whose sum it is."""
    encoded = golden.sibling("tok_siglip_384_encode")
    if golden.whole:
        return encoded.array("final_quantize").flatten(2).transpose(1, 2)
    quantizer = MultiScaleQuantizer(QuantizerConfig(codebook_size=32768, scales=SCALES_384))
    for number, (key, width) in enumerate((("vqkd", 32), ("vqgan", 8))):
        made = weight(f"quantize.embedding_{key}.weight", (32768, width), offset=golden.offset)
        quantizer.quantizer.codebooks[number].data = made
    return quantizer.decode_indices(encoded.array("indices").long()).flatten(2).transpose(1, 2).detach()


def batch_of(golden: Golden) -> MultimodalBatch:
    rows = []
    for ids, labels, mask in zip(*(golden.array(k) for k in ("input_ids", "labels", "attention_mask")), strict=True):
        rows.append(Tokens(ids[mask].tolist(), labels[mask].tolist()))
    return collate(rows, image_tokens=729, max_length=2048)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_shapes_are_those_of_the_authors(family):
    shapes = {
        key: list(value.shape) for key, value in to_authors(build(family).state_dict(), projector="mlp2x_gelu").items()
    }
    assert shapes["model.mm_projector.2.weight"] == [64, 64] and "lm_head.weight" in shapes
    if (manifest := shared_json(f"keys_i2t_{family}_tiny_lm.json")) is not None:
        assert shapes == {key: shape for key, (shape, _) in manifest.items()}


@pytest.mark.parametrize(("family", "golden"), PARAMETERS)
@torch.inference_mode()
def test_inputs_logits_and_loss(family, golden):
    model, batch, features = build(family, offset=golden.offset), batch_of(golden), picture_features(golden)
    assert batch.ids.shape == (2, 764)
    embeddings = model.embed(batch.ids, batch.image_rows, features)
    expected = golden.array("embeds_rows")
    torch.testing.assert_close(embeddings[:, golden.array("embeds_row_idx")], expected, atol=1e-5, rtol=0)
    hidden = model.hidden(batch, features)
    for row, samples in enumerate(batch.layout.rows):
        logits = model.head(hidden[row, : samples[0].end])
        torch.testing.assert_close(logits[-8:, :128], golden.array("logits_last")[row], atol=2e-5, rtol=0)
        best, second = logits.topk(2)[0].unbind(-1)
        clear = best - second > TIE
        assert clear.float().mean() > 0.95
        assert torch.equal(logits.argmax(-1)[clear], golden.array("argmax")[row, : len(logits)].long()[clear])
    loss = model(batch, features).loss.double()
    torch.testing.assert_close(loss, golden.array("loss"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("golden", goldens("preprocess"))
def test_pictures_become_square_as_siglips_processor_makes_them(golden):
    seed = int(golden.array("image_seed"))
    for number in range(3):
        height, width = golden.array(f"hw_{number}").tolist()
        pixels = images(1, 832, seed + number)[0, :height, :width].numpy()
        if golden.whole and number < 2:
            assert np.array_equal(pixels, golden.array(f"image_{number}").numpy())
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        padded = read_picture(picture, size=384, aspect="pad")
        golden.close(f"siglip_pad_{number}", padded[:, ::8, ::8], atol=1e-6)
        assert abs(padded.double().mean() - golden.array(f"siglip_pad_{number}_mean")) < 1e-6
        assert abs(padded.double().std(correction=0) - golden.array(f"siglip_pad_{number}_std")) < 1e-5
        stretched = read_picture(picture, size=384, aspect="stretch")
        golden.close(f"siglip_nopad_{number}", stretched[:, ::16, ::16], atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "qwen_2_5"])
def test_written_conversations_are_theirs_to_the_character(name):
    asked = (("user", "<image>\nWhat is shown?"),)
    answered = (*asked, ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes."))
    expected = prompts()[name]
    assert render(name, asked) == expected["prompt_one_turn_open"]
    # Their plain template cannot write answers; training joins image and caption by hand.
    if name != "plain":
        assert render(name, answered) == expected["prompt_two_turns_closed"]
