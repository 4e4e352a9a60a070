"""The public class: prompts to pictures, saved and loaded, with the authors' folder too."""

import dataclasses
import json
import logging

import pytest
import torch

from tokenflow import TextToImage, TokenFlowTokenizer
from tokenflow.generation.authors import read_authors_folder, write_authors_folder
from tokenflow.generation.backbone import backbone_config, backbone_weights
from tokenflow.generation.config import GeneratorConfig
from tokenflow.generation.model import Generator
from tokenflow.generation.presets import nano
from tokenflow.generation.text_field import TextField
from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece
from tokenflow.tokenizer.presets import preset as tokenizer_preset

CAPTIONS = [
    f"a {color} {shape} left of a {other} {second}"
    for color in ("red", "green", "blue")
    for other in ("yellow", "white", "black")
    for shape in ("circle", "square")
    for second in ("triangle", "star")
]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    return train_sentencepiece(CAPTIONS, tmp_path_factory.mktemp("text"), vocabulary_size=300)


def small(config: GeneratorConfig, **fields) -> GeneratorConfig:
    language = dataclasses.replace(config.language, width=32, depth=1, heads=2, kv_heads=2, head_width=16, mlp_width=48)
    return dataclasses.replace(config, language=language, **fields)


@pytest.fixture(scope="module")
def model(text_folder):
    torch.manual_seed(0)
    text = load_text_tokenizer(text_folder)
    generator = Generator(small(nano(text_vocabulary=len(text))))
    tokenizer = TokenFlowTokenizer(tokenizer_preset("tokenflow-nano")).eval()
    return TextToImage(generator, tokenizer=tokenizer, text_tokenizer=text)


def test_prompts_become_pictures(model):
    seen = []
    images = model.generate(CAPTIONS[:3], progress=seen.append)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32 and images.abs().max() <= 1
    assert [(s.scale, s.step) for s in seen] == [(0, 0)] + [(i, j) for i in (1, 2, 3) for j in range(3)]


def test_a_seed_gives_the_same_codes_whatever_the_batch(model):
    codes = model.generate_codes(CAPTIONS[:4], seed=7, steps="single-step")
    for index, caption in enumerate(CAPTIONS[:4]):
        alone = model.generate_codes([caption], seed=7, first_image=index, steps="single-step")
        assert torch.equal(alone[0], codes[index])


def test_packed_and_plain_weights_give_the_same_codes_and_new_weights_are_seen(model):
    before = model.generate_codes(CAPTIONS[:2], steps="greedy", weights="packed")
    assert torch.equal(before, model.generate_codes(CAPTIONS[:2], steps="greedy", weights="plain"))
    with torch.no_grad():
        model.generator.head.weight.neg_()
    after = model.generate_codes(CAPTIONS[:2], steps="greedy", weights="packed")
    with torch.no_grad():
        model.generator.head.weight.neg_()
    assert not torch.equal(before, after)


def test_previews_are_the_first_scales(model):
    whole = model.generate_codes(CAPTIONS[:1], seed=1)
    preview = model.generate_codes(CAPTIONS[:1], seed=1, stop_after_scale=2)
    assert torch.equal(preview, whole[:, :5])
    assert model.generate(CAPTIONS[:1], stop_after_scale=2).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([" "], {}, "prompt 0 is ' '"),
        ([], {}, "at least one"),
        (["a"], {"stop_after_scale": 5}, "expected 1 to 4"),
        (["a"], {"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        (["a"], {"top_k": (5,)}, "pass both"),
        (["a"], {"top_k": (2000,), "top_p": (1.0,)}, "has 1024 codes"),
        (["a"], {"guidance": (1.0, 2.0)}, "one for each of 4 scales"),
    ],
)
def test_bad_requests_say_what_was_expected(model, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompts, **options)


def test_an_over_long_prompt_is_cut_with_a_warning_that_shows_what(model, caplog):
    with caplog.at_level(logging.WARNING):
        model.generate_codes(["a red circle left of a blue star " * 8], steps="greedy", guidance_scale=0.0)
    assert "text field 24; cut off: " in caplog.text and "star" in caplog.text


def test_copies_of_an_over_long_prompt_are_warned_of_once_and_another_prompt_again(model, caplog):
    field = TextField(model.text_tokenizer, model.generator.config)
    circle, star = ("a red circle left of a blue star " * 8, "a blue star left of a red circle " * 8)
    with caplog.at_level(logging.WARNING):
        field([circle] * 3, warn=True)
        field([circle, star], warn=True)
        field(["a red circle"], warn=True)
    assert len(caplog.messages) == 2
    assert field.encode(circle, warn=True) == field.encode(circle)


def test_text_is_encoded_the_same_for_training_and_sampling(model):
    field = TextField(model.text_tokenizer, model.generator.config)
    padded, tight = field(CAPTIONS[:2], pad_to="field"), field(CAPTIONS[:2])
    assert padded.ids.shape[1] == 24 and padded.lengths == tight.lengths
    assert all(torch.equal(padded.row(i), tight.row(i)) for i in range(2))
    assert int(padded.ids[0, 0]) == model.generator.config.pad_token
    assert field.encode("") == [model.text_tokenizer.bos_token_id]


def test_another_decoder_is_welcome_and_other_codes_are_told(model, tmp_path, caplog):
    model.save_pretrained(tmp_path / "model")
    other = TokenFlowTokenizer.from_pretrained(tmp_path / "model" / "image_tokenizer")
    for weight in other.pixel_decoder.parameters():
        weight.data += 1
    TextToImage.from_pretrained(tmp_path / "model", tokenizer=other)
    assert caplog.messages == []
    other.quantizer.quantizer.codebook_1.data += 1
    TextToImage.from_pretrained(tmp_path / "model", tokenizer=other)
    (message,) = caplog.messages
    assert "has other codebooks than" in message and "image_tokenizer, with which the model was trained" in message


def test_saved_and_loaded_it_paints_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = TextToImage.from_pretrained(tmp_path / "model")
    assert torch.equal(again.generate(CAPTIONS[:2], seed=3), model.generate(CAPTIONS[:2], seed=3))
    assert not [path for path in (tmp_path / "model").rglob("*") if "partial" in path.name]
    with pytest.raises(ValueError, match="was not loaded by name"):
        model.save_pretrained(tmp_path / "other", image_tokenizer="reference")
    again.save_pretrained(tmp_path / "other", image_tokenizer="reference")
    description = json.loads((tmp_path / "other" / "config.json").read_text())
    assert description["image_tokenizer"] == str(tmp_path / "model" / "image_tokenizer")
    assert TextToImage.from_pretrained(tmp_path / "other").generate(CAPTIONS[:1]).shape == (1, 3, 32, 32)


def test_large_weights_are_split_and_read_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    state = TextToImage.from_pretrained(tmp_path).generator.state_dict()
    for name, value in model.generator.state_dict().items():
        assert torch.equal(state[name], value)
    model.save_pretrained(tmp_path)
    parts = ["README.md", "config.json", "image_tokenizer", "model.safetensors", "text_tokenizer"]
    assert sorted(path.name for path in tmp_path.iterdir()) == parts


def test_a_save_that_was_killed_between_the_parts_is_refused(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(model, "text_tokenizer", None)
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config.json is missing \(a save that was interrupted"):
        TextToImage.from_pretrained(tmp_path)


def test_a_mismatched_tokenizer_names_both(model):
    config = dataclasses.replace(tokenizer_preset("tokenflow-nano"), codebook_size=128)
    with pytest.raises(ValueError, match=r"expects codebook_size 1024 and the image tokenizer as given has 128"):
        TextToImage(model.generator, tokenizer=TokenFlowTokenizer(config), text_tokenizer=model.text_tokenizer)


def test_wrong_folders_say_what_is_missing(tmp_path):
    with pytest.raises(OSError, match="neither a folder nor a hub repository"):
        TextToImage.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        TextToImage.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="from_authors"):
        TextToImage.from_pretrained(tmp_path)


def authors_generator(text_vocabulary: int) -> Generator:
    config = small(nano(text_vocabulary=text_vocabulary), head_rows="vocabulary", loss_over="vocabulary")
    language = dataclasses.replace(config.language, vocabulary_size=config.vocabulary_size)
    return Generator(dataclasses.replace(config, language=language))


def test_the_authors_folder_is_written_and_read(model, text_folder, tmp_path):
    generator = authors_generator(len(model.text_tokenizer))
    write_authors_folder(generator, tmp_path)
    fields = {"scales": (1, 2, 4, 8), "code_width": 24, "text_length": 24}
    again = read_authors_folder(tmp_path, **fields)
    assert again.config.language.norm_order == "post" and again.config.language.qk_norm
    for name in ("pad_token", "image_token_start", "codebook_size", "head_rows", "loss_over"):
        assert getattr(again.config, name) == getattr(generator.config, name)
    for name, value in generator.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    model.text_tokenizer.save_pretrained(tmp_path)
    painter = TextToImage.from_authors(tmp_path, tokenizer=model.tokenizer, **fields)
    assert painter.generate(CAPTIONS[:1]).shape == (1, 3, 32, 32)


def test_the_authors_scalars_are_ignored_and_missing_keys_named(model, tmp_path):
    generator = authors_generator(len(model.text_tokenizer))
    write_authors_folder(generator, tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    fields = {"scales": (1, 2, 4, 8), "code_width": 24, "text_length": 24}
    save_file({**weights, "image_token_start": torch.tensor(5)}, tmp_path / "model.safetensors")
    read_authors_folder(tmp_path, **fields)
    del weights["model.pos_1LC"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 keys missing \['model.pos_1LC'\]"):
        read_authors_folder(tmp_path, **fields)


def test_a_generator_starts_from_a_llama_checkpoint(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes))
    llama.save_pretrained(tmp_path)
    from tokenflow.language.hf import load_hf_language

    found = load_hf_language(tmp_path)
    config = backbone_config(found.config, scales=(1, 2), codebook_size=16, code_width=4, text_length=8)
    generator = Generator(config)
    missing, unexpected = generator.load_state_dict(dict(backbone_weights(config, found)), strict=False)
    assert not unexpected and "projector.0.weight" in missing
    table, head = llama.model.embed_tokens.weight, llama.lm_head.weight
    assert generator.language.embed_tokens.weight.shape == (67, 32) and config.image_token_start == 51
    assert torch.equal(generator.language.embed_tokens.weight[:50], table)
    torch.testing.assert_close(generator.head.weight[60], head.mean(0))
    assert torch.equal(
        generator.language.layers[1].self_attn.q_proj.weight, llama.model.layers[1].self_attn.q_proj.weight
    )
    with pytest.raises(ValueError, match="has width 32 and the generator 128"):
        backbone_weights(nano(), found)
