"""What stage 3 builds and draws, without running it."""

import dataclasses
import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenflow import TokenFlowTokenizer
from tokenflow.config import RECIPES, Launch, load_recipe
from tokenflow.data import SourceConfig, write_shapes
from tokenflow.generation.model import Generator
from tokenflow.language.hf import load_hf_language
from tokenflow.tasks.generation import GenerationParts, evaluation_batches
from tokenflow.tasks.generation_prompts import ClassPrompts, TextPrompts, build_text_tokenizer, first_sentence
from tokenflow.tasks.generation_recipe import GenerationRecipe, GeneratorChoice
from tokenflow.tasks.generation_weights import generator_config, initial_weights
from tokenflow.tasks.stored_codes import codes_fingerprint
from tokenflow.tokenizer.presets import preset

CAPTION = "A red circle. It is round."


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_shapes(folder / "train", num_samples=64, image_size=32, seed=0)
    torch.manual_seed(0)
    TokenFlowTokenizer(preset("tokenflow-nano")).eval().save_pretrained(folder / "tokenizer")
    return folder


def recipe_of(world, name="nano", **changes) -> GenerationRecipe:
    shipped = load_recipe(GenerationRecipe, RECIPES / "gen_pretrain" / f"{name}.yaml")
    data = dataclasses.replace(shipped.data, sources=(SourceConfig(path=str(world / "train")),), num_workers=0)
    changes = {"tokenizer": str(world / "tokenizer"), "data": data, "evaluation_sources": ()} | changes
    return dataclasses.replace(shipped, **changes)


def launch_of(folder, **changes) -> Launch:
    given = {"output": folder, "ds_config": None, "resume": "auto", "init_from": None, "dry_run": False}
    return Launch(**(given | changes))


def test_first_sentence_ends_at_its_end_and_not_inside_a_number():
    assert first_sentence(CAPTION) == "A red circle."
    assert first_sentence("It costs 3.50 dollars! Really?") == "It costs 3.50 dollars!"
    assert first_sentence("no end") == "no end"
    assert first_sentence("红色的圆。蓝色的方。") == "红色的圆。"
    assert first_sentence("") == ""


def test_what_training_drops_depends_on_the_sample_alone_and_is_as_frequent_as_asked():
    prompts = TextPrompts(None, caption_drop=0.1, first_sentence=0.2)
    drawn = [prompts.drawn(CAPTION, seed) for seed in range(4000)]
    assert drawn == [prompts.drawn(CAPTION, seed) for seed in range(4000)]
    assert drawn.count("") / 4000 == pytest.approx(0.1, abs=0.02)
    assert drawn.count("A red circle.") / 4000 == pytest.approx(0.9 * 0.2, abs=0.02)
    assert set(drawn) == {"", "A red circle.", CAPTION}


def test_a_class_is_that_of_the_record_or_the_place_of_the_folder(world):
    config = recipe_of(world, "imagenet-class", tokenizer="x").model.config()
    prompts = ClassPrompts(config, caption_drop=0.0, folders=["n01", "n02", "n05"])
    records = [{"cls": 7}, {"label": 8, "caption": "x"}, None, {"caption": "y"}]
    batch = {"keys": ["a", "b", "n05/c", "n01/d"], "records": records, "sample_seed": torch.arange(4)}
    assert prompts.training(batch).ids.tolist() == [[7], [8], [2], [0]]
    mask = torch.tensor([True, True, True, False])
    assert prompts.evaluation({**batch, "mask": mask}).ids.tolist() == [[7], [8], [2], [config.pad_token]]
    dropped = ClassPrompts(config, caption_drop=1.0, folders=[])
    assert dropped.training({**batch, "keys": list("abcd"), "records": [{"cls": 1}] * 4}).ids.unique().tolist() == [
        1000
    ]
    with pytest.raises(ValueError, match=r"sample 'e' says no class: expected a \.cls member"):
        prompts.training({"keys": ["e"], "sample_seed": torch.zeros(1, dtype=torch.int64)})


def test_a_trained_text_tokenizer_is_kept_by_what_learned_with_it_and_made_anew_otherwise(world, tmp_path):
    recipe = recipe_of(world)
    first = build_text_tokenizer(recipe, launch_of(tmp_path / "a"))
    folder = tmp_path / "a" / "text_tokenizer"
    content = (folder / "tokenizer.model").read_bytes()
    other = dataclasses.replace(recipe, text_vocabulary=300)
    assert len(build_text_tokenizer(other, launch_of(tmp_path / "a"))) < len(first)  # nothing was learned yet
    build_text_tokenizer(recipe, launch_of(tmp_path / "a"))
    assert (folder / "tokenizer.model").read_bytes() == content
    (tmp_path / "a" / "checkpoints" / "step_2").mkdir(parents=True)
    for launch in (
        launch_of(tmp_path / "a"),
        launch_of(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoints" / "step_2")),
        launch_of(tmp_path / "c", init_from=str(tmp_path / "a" / "model")),
    ):
        assert len(build_text_tokenizer(other, launch)) == len(first)
        assert (launch.output / "text_tokenizer" / "tokenizer.model").read_bytes() == content


def test_captions_that_will_be_cut_are_announced(world, tmp_path, caplog):
    build_text_tokenizer(recipe_of(world, text_vocabulary=512), launch_of(tmp_path / "a"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    build_text_tokenizer(recipe_of(world, text_vocabulary=300), launch_of(tmp_path / "b"))
    assert "of the captions are longer than text_length 24" in caplog.text


def test_a_new_decoder_leaves_the_fingerprint_and_a_new_encoder_or_codebook_does_not(world):
    tokenizer = TokenFlowTokenizer.from_pretrained(world / "tokenizer")
    before = codes_fingerprint(tokenizer)
    with torch.no_grad():
        next(tokenizer.pixel_decoder.parameters()).add_(1)
    assert codes_fingerprint(tokenizer) == before
    for part in (tokenizer.encoders, tokenizer.quantizer):
        with torch.no_grad():
            next(part.parameters()).add_(1e-3)
        changed = codes_fingerprint(tokenizer)
        assert changed != before
        before = changed


@pytest.mark.parametrize("head_rows", ["vocabulary", "codes"])
def test_a_language_model_gives_its_weights_and_what_it_lacks_is_new(world, tmp_path, head_rows):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=70, **sizes))
    llama.save_pretrained(tmp_path)
    checkpoint = load_hf_language(tmp_path)
    full = {"head_rows": head_rows, "loss_over": "codes"}
    recipe = recipe_of(world, model=GeneratorChoice(preset="nano", overrides=full))
    config = generator_config(recipe, text_tokenizer=_Words(64), checkpoint=checkpoint.config)
    generator = Generator(config)
    weights = initial_weights(config, checkpoint, new_rows="mean", seed=0)
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in generator.state_dict().items()
    }
    theirs = llama.state_dict()
    name = "layers.1.self_attn.k_proj.weight"
    assert torch.equal(weights[f"language.{name}"], theirs[f"model.{name}"])
    table, head = weights["language.embed_tokens.weight"], weights["head.weight"]
    known, known_head = theirs["model.embed_tokens.weight"][:64], theirs["lm_head.weight"][:64]
    assert table.shape == (65, 32) and torch.equal(table[:64], known)
    torch.testing.assert_close(table[64], known.mean(0))
    torch.testing.assert_close(head[-1], known_head.mean(0))
    assert head_rows == "codes" or torch.equal(head[:64], known_head)
    assert weights["language.layers.0.self_attn.query_norm.weight"].eq(1).all()
    assert torch.equal(weights["projector.0.weight"], weights["projector.0.weight"])
    assert not weights["projector.0.bias"].any()
    drawn = {name: weights[name].std().item() for name in ("projector.0.weight", "image_positions.weight")}
    fresh = {name: generator.state_dict()[name].std().item() for name in drawn}
    assert drawn == pytest.approx(fresh, rel=0.2)


class _Words:
    """A text tokenizer of so many tokens."""

    eos_token_id = None

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def test_evaluations_crop_centrally_and_flip_nothing(world):
    data = dataclasses.replace(recipe_of(world).data, crop="random", flip_probability=0.5)
    batches = [next(iter(evaluation_batches(recipe_of(world, data=data)))) for _ in range(2)]
    assert torch.equal(batches[0]["images"], batches[1]["images"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"model": SimpleNamespace(overrides={"codebook_size": 64})}, r"codebook_size 64 and the image .* has 1024"),
        (
            {"model": SimpleNamespace(overrides={"scales": (1, 2, 4)}), "scale_weights": ()},
            r"scales \(1, 2, 4\) and the image .* 8\)",
        ),
        ({"model": SimpleNamespace(overrides={"code_width": 8})}, "code_width 8 and the image tokenizer .* has 24"),
        ({"language": "nowhere"}, "'nowhere' is no folder here"),
        ({"text_tokenizer": "nowhere"}, "'nowhere' is no folder here"),
        ({"text_vocabulary": 20}, "vocabulary_size is 20; expected at least"),
        ({"data": SimpleNamespace(image_size=64)}, "data.image_size is 64, but the tokenizer .* reads 32"),
    ],
)
def test_what_does_not_go_together_is_refused_and_both_sides_are_named(world, tmp_path, changes, message):
    recipe = recipe_of(world)
    for name in ("model", "data"):
        if name in changes:
            changes = {**changes, name: dataclasses.replace(getattr(recipe, name), **vars(changes[name]))}
    with pytest.raises((ValueError, OSError), match=message):
        GenerationParts(dataclasses.replace(recipe, **changes), launch_of(tmp_path))


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 1.0, 0.0, 1.0), (1.0, 1.0, 1.0, float("inf"))])
def test_weights_that_do_not_fit_the_scales_are_refused(world, weights):
    with pytest.raises(ValueError, match=r"scale_weights are .* expected a number above 0 for each of 4 scales"):
        recipe_of(world, scale_weights=weights)
