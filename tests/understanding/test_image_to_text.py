"""The public class: answers, scores, chats; saved and loaded, with the authors' folder too."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from tests.tokenizer.test_authors import small_config
from tests.understanding.words import llama_words, qwen_words
from tokenflow import ImageToText, TokenFlowTokenizer
from tokenflow.language.config import LanguageConfig
from tokenflow.tokenizer.presets import preset as tokenizer_preset
from tokenflow.tokenizer.presets import teacher_preset
from tokenflow.tokenizer.teachers import SmallClipConfig, Teacher, build_open_clip, build_teacher, save_teacher
from tokenflow.understanding.authors import read_authors_folder, write_authors_folder
from tokenflow.understanding.backbone import backbone_config
from tokenflow.understanding.batching import collate
from tokenflow.understanding.features import image_features
from tokenflow.understanding.model import MultimodalModel
from tokenflow.understanding.pretrained import load_tower, save_tower

QUESTIONS = ["what colour is the star?", "how many squares are there?", "Is there a white circle in it?"]


def make(words, template, tower=None, max_positions=512, **fields) -> ImageToText:
    """Random weights strong enough that pictures and questions change answers."""
    torch.manual_seed(0)
    tower = TokenFlowTokenizer(tokenizer_preset("tokenflow-nano")).eval() if tower is None else tower
    language = LanguageConfig(
        vocabulary_size=360,
        width=32,
        depth=2,
        heads=4,
        kv_heads=2,
        head_width=8,
        mlp_width=48,
        max_positions=max_positions,
        qkv_bias=template == "qwen_2_5",
    )
    config = backbone_config(language, tower.config, template=template, system="", **{"max_length": 400} | fields)
    model = MultimodalModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.0 if name.endswith(("embed_tokens.weight", "head.weight")) else 0.4)
    return ImageToText(model, tokenizer=tower, text_tokenizer=words)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {words: tmp_path_factory.mktemp("words") for words in (llama_words, qwen_words)}


@pytest.fixture(scope="module")
def model(folders):
    return make(llama_words(folders[llama_words]), "vicuna_v1")


@pytest.fixture(scope="module")
def qwen(folders):
    return make(qwen_words(folders[qwen_words]), "qwen_2_5")


@pytest.fixture(scope="module")
def grid(folders):
    return make(llama_words(folders[llama_words]), "vicuna_v1", rotary="grid")


def pictures(count=3):
    generator = torch.Generator().manual_seed(1)
    return list(torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1)


def naive_answer(model, images, question, *, limit):
    """Greedy, the whole row computed again for every token."""
    features = image_features(model.tokenizer, torch.stack(images)) if images else None
    tokens = model.reader((("user", model.with_images(question, len(images))),))
    answer = []
    for _ in range(limit):
        batch = collate([tokens], image_tokens=64, max_length=10**6)
        logits = model.model.head(model.model.hidden(batch, features)[0, -1])
        token = int(logits[: len(model.text_tokenizer)].argmax())
        if model.reader.ends(token):
            break
        answer.append(token)
        tokens = type(tokens)([*tokens.ids, token], [*tokens.labels, -100])
    return model.text_tokenizer.decode(answer).strip()


def test_a_small_model_answers_without_being_told_how_long(folders):
    small = make(llama_words(folders[llama_words]), "vicuna_v1", max_positions=256, max_length=256)
    assert len(small.answer([Image.new("RGB", (40, 40), "red")], QUESTIONS[:1])) == 1


@pytest.mark.parametrize("which", ["model", "qwen", "grid"])
@torch.no_grad()
def test_greedy_answers_with_the_cache_equal_those_without(request, which):
    model = request.getfixturevalue(which)
    first, second, third = pictures()
    images = [first, None, [second, third]]
    answers = model.answer(images, QUESTIONS, max_new_tokens=12)
    expected = [
        naive_answer(model, listed, question, limit=12)
        for listed, question in zip(([first], [], [second, third]), QUESTIONS, strict=True)
    ]
    assert answers == expected and len(set(answers)) == 3
    assert answers == model.answer(images, QUESTIONS, max_new_tokens=12, batch_size=2)


def test_a_picture_changes_the_answer(model):
    first, second, _ = pictures()
    assert len(set(model.answer([first, second, None], QUESTIONS[:1] * 3, max_new_tokens=12))) == 3


def test_files_and_pictures_in_memory_are_read_alike(model, tmp_path):
    picture = Image.effect_noise((48, 40), 80).convert("RGB")
    picture.save(tmp_path / "noise.png")
    images = [picture, tmp_path / "noise.png", str(tmp_path / "noise.png")]
    assert len(set(model.answer(images, QUESTIONS[:1] * 3, max_new_tokens=8))) == 1


def test_draws_depend_on_seed_and_question_not_on_the_batch(model):
    images = pictures()
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    together = model.answer(images, QUESTIONS, **options)
    alone = [model.answer([images[n]], [QUESTIONS[n]], first_question=n, **options)[0] for n in range(3)]
    assert together == alone
    assert together != model.answer(images, QUESTIONS, **options | {"seed": 4})


def test_a_narrow_top_p_is_greedy(model):
    images = pictures()
    greedy = model.answer(images, QUESTIONS, max_new_tokens=8)
    assert model.answer(images, QUESTIONS, max_new_tokens=8, temperature=0.7, top_p=1e-6) == greedy


def test_scores_are_log_probabilities_of_answer_and_end(model):
    image, question = pictures()[0], QUESTIONS[0]
    (score, greedy), (other, _) = model.score([image, image], [question] * 2, ["red", "a yellow star"])
    tokens = model.reader((("user", f"<image>{question}"), ("assistant", "red")))
    batch = collate([tokens], image_tokens=64, max_length=400)
    hidden = model.model.hidden(batch, image_features(model.tokenizer, image[None]))[0]
    log_probabilities = model.model.head(hidden).detach().log_softmax(-1)[batch.predict_at]
    assert score == pytest.approx(float(log_probabilities.gather(1, batch.targets[:, None]).sum()), abs=1e-3)
    assert not greedy and other != score


@pytest.mark.parametrize("which", ["model", "qwen", "grid"])
@torch.no_grad()
def test_every_turn_of_a_chat_equals_the_whole_conversation_computed_anew(request, which):
    model = request.getfixturevalue(which)
    first, second, _ = pictures()
    chat = model.chat(max_new_tokens=8, context=400)
    pieces = list(chat.ask(QUESTIONS[0], [first]))
    answer = naive_answer(model, [first], QUESTIONS[0], limit=8)
    assert "".join(pieces).strip() == answer == chat.history[1][1]
    before = chat._cache.length
    again = chat.say("And what else?", [second])
    assert chat._cache.length > before
    fresh = model.chat(max_new_tokens=8, context=400)
    fresh.history = chat.history[:2]
    fresh._features = model.features([first])
    assert fresh.say("And what else?", [second]) == again
    assert [role for role, _ in chat.history] == ["user", "assistant"] * 2


def test_an_answer_that_is_interrupted_is_what_was_read(model):
    chat = model.chat(max_new_tokens=20, context=400)
    stream = chat.ask(QUESTIONS[0], pictures(1))
    read = next(stream) + next(stream)
    stream.close()
    assert chat.history[1][1].startswith(read.strip()) and len(chat.history) == 2
    assert isinstance(chat.say("Sure?"), str) and len(chat.history) == 4


def test_a_full_chat_says_so(model):
    chat = model.chat(context=90)
    with pytest.raises(ValueError, match="Begin a new chat"):
        chat.say(QUESTIONS[0] * 4, pictures(1))
    assert chat.history == ()


@pytest.mark.parametrize(
    ("images", "questions", "options", "message"),
    [
        ([None], ["a", "b"], {}, "1 images for 2 questions"),
        ([None], [" "], {}, "expected a text"),
        ([None], ["<image> what?"], {}, "has 1 <image> and 0 images"),
        ([torch.zeros(3, 8, 8)], ["a"], {}, r"expected floating point \(3, 32, 32\)"),
        (["https://example.org/a.png"], ["a"], {}, "nothing is fetched"),
        ([None], ["a" * 900], {}, "prompt 0 has"),
        ([None], ["a"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([None], ["a"], {"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_bad_requests_say_what_was_expected(model, images, questions, options, message):
    with pytest.raises(ValueError, match=message):
        model.answer(images, questions, **options)


def test_a_file_that_is_no_picture_is_named(model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"words")
    with pytest.raises(ValueError, match=r"a.jpg: the picture cannot be decoded"):
        model.answer([tmp_path / "a.jpg"], ["a"])


def test_saved_and_loaded_it_answers_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = ImageToText.from_pretrained(tmp_path / "model")
    images = pictures()
    answers = model.answer(images, QUESTIONS, max_new_tokens=8)
    assert again.model.config == model.model.config
    assert again.answer(images, QUESTIONS, max_new_tokens=8) == answers
    with pytest.raises(ValueError, match="was not loaded by name"):
        model.save_pretrained(tmp_path / "other", image_tokenizer="reference")
    again.save_pretrained(tmp_path / "other", image_tokenizer="reference")
    description = json.loads((tmp_path / "other" / "config.json").read_text())
    assert description["image_tokenizer"] == str(tmp_path / "model" / "image_tokenizer")
    assert ImageToText.from_pretrained(tmp_path / "other").answer(images, QUESTIONS, max_new_tokens=8) == answers


def test_a_folder_of_teacher_pretrain_serves_as_a_tower_and_is_kept_without_its_place(tmp_path):
    small = build_open_clip(SmallClipConfig(vocabulary_size=100))
    tower = load_tower(save_teacher(small, tmp_path / "trained"), features="teacher")
    known = build_teacher(teacher_preset("nano", pretrained=str(tmp_path / "trained")))
    images = torch.stack(pictures())
    assert torch.equal(tower(images), known(images))
    kept = load_tower(save_tower(tower, tmp_path / "kept"), features="teacher")
    assert torch.equal(kept(images), known(images))
    assert kept.config == dataclasses.replace(known.config, pretrained=None)


def test_a_model_of_continuous_features_keeps_its_teacher(folders, tmp_path):
    torch.manual_seed(3)
    teacher = Teacher(teacher_preset("nano"))
    model = make(llama_words(folders[llama_words]), "vicuna_v1", teacher, features="teacher")
    model.save_pretrained(tmp_path)
    again = ImageToText.from_pretrained(tmp_path)
    assert isinstance(again.tokenizer, Teacher)
    images = pictures()
    assert again.answer(images, QUESTIONS, max_new_tokens=8) == model.answer(images, QUESTIONS, max_new_tokens=8)
    with pytest.raises(ValueError, match="has no key 'teacher'"):
        ImageToText.from_pretrained(tmp_path, tokenizer=tmp_path)


@pytest.mark.parametrize("features", ["all_scales", "residuals", "semantic"])
def test_every_strategy_of_table_8_answers(folders, features):
    model = make(llama_words(folders[llama_words]), "vicuna_v1", features=features)
    assert len(model.answer(pictures(), QUESTIONS, max_new_tokens=4)) == 3


def test_another_tokenizer_names_both(model):
    config = dataclasses.replace(tokenizer_preset("tokenflow-nano"), scales=(1, 2, 8))
    ImageToText(model.model, tokenizer=TokenFlowTokenizer(config), text_tokenizer=model.text_tokenizer)
    with pytest.raises(ValueError, match=r"expects image_size 32 .* the image tokenizer as given has 64"):
        other = TokenFlowTokenizer(tokenizer_preset("tokenflow-nano-64"))
        ImageToText(model.model, tokenizer=other, text_tokenizer=model.text_tokenizer)


def test_wrong_folders_say_what_is_missing(tmp_path):
    with pytest.raises(OSError, match="neither a folder nor a hub repository"):
        ImageToText.from_pretrained(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="from_authors"):
        ImageToText.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="multimodal folder of the authors'"):
        read_authors_folder(tmp_path / "none")


@pytest.mark.parametrize("which", ["model", "qwen"])
def test_the_authors_folder_is_written_and_read(request, which, tmp_path):
    given = request.getfixturevalue(which)
    tower = TokenFlowTokenizer(small_config("tokenflow-b")).eval()
    model = make(given.text_tokenizer, given.model.config.template, tower)
    write_authors_folder(model.model, tmp_path, tokenizer=model.tokenizer)
    model.text_tokenizer.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["model_type"] == {"model": "llava_llama", "qwen": "llava_qwen"}[which]
    again = ImageToText.from_authors(tmp_path, tokenizer_config=model.tokenizer.config, system="")
    assert again.model.config == model.model.config
    images = [Image.effect_noise((90, 60), 80), None, None]
    assert again.answer(images, QUESTIONS, max_new_tokens=8) == model.answer(images, QUESTIONS, max_new_tokens=8)


def test_an_authors_folder_without_a_tokenizer_needs_one_and_missing_keys_are_named(model, tmp_path):
    from safetensors.torch import load_file, save_file

    write_authors_folder(model.model, tmp_path)
    model.text_tokenizer.save_pretrained(tmp_path)
    options = {"tokenizer_config": model.tokenizer.config}
    with pytest.raises(ValueError, match="holds no image tokenizer"):
        ImageToText.from_authors(tmp_path, **options)
    assert ImageToText.from_authors(tmp_path, tokenizer=model.tokenizer, **options).answer([None], ["a"]) != [""]
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.mm_projector.2.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 keys missing \['model.mm_projector.2.bias'\]"):
        read_authors_folder(tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aspect": "crop"}, "aspect 'crop'"),
        ({"coordinates": 2}, "coordinates 2 "),
        ({"merge": 2}, "merge 2,"),
        ({"neighbourhood": 3}, "neighbourhood 3,"),
        ({"whiten": True}, "whiten True,"),
        ({"rotary": "grid"}, "rotary 'grid';"),
    ],
)
def test_what_the_authors_layout_cannot_hold_is_refused(model, tmp_path, change, message):
    config = dataclasses.replace(model.model.config, **change)
    with pytest.raises(ValueError, match=message):
        write_authors_folder(MultimodalModel(config), tmp_path)
