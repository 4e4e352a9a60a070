"""Captions from a tiny random Qwen2.5-VL through transformers."""

import pytest
import torch

from tests.data.caption_server import picture, request, write_shards
from tests.understanding.words import CORPUS
from tokenflow.data.recaption_backend import CaptionConfig, CaptionerUnusable, open_picture
from tokenflow.data.recaption_local import LocalCaptioner

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def tiny_processor():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=list(SPECIAL))
    tokenizer.train_from_iterator(CORPUS, trainer)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[name for name in SPECIAL if name not in ("<|im_end|>", "<|endoftext|>")],
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with random weights, saved as Qwen's are."""
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen")
    processor = tiny_processor()
    ids = {name: processor.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # large enough that every picture gets an answer of its own
            parameter.normal_(std=0.3) if parameter.ndim > 1 else None
    model.generation_config = GenerationConfig(eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load(folder, **options):
    config = CaptionConfig(max_tokens=options.pop("max_tokens", 6))
    return LocalCaptioner.from_pretrained(str(folder), device="cpu", config=config, **options)


def requests(count):
    """Pictures of several sizes and questions of several lengths."""
    sizes, prompts = [(30, 30), (90, 40), (40, 120)], ["what?", "is there a red circle?"]
    return [
        request(number, image=picture(number, size=sizes[number % 3]), prompt=prompts[number % 2])
        for number in range(count)
    ]


def naive(captioner, one):
    """The answer to one request, without batches and padding."""
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": open_picture(one.image, max_pixels=1 << 20)},
                {"type": "text", "text": one.prompt},
            ],
        }
    ]
    inputs = captioner.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    sequence = captioner.model.generate(**inputs, max_new_tokens=captioner.config.max_tokens, do_sample=False)
    return captioner.processor.tokenizer.decode(sequence[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_answer_as_single_pictures_do(folder, batch_size):
    captioner = load(folder, batch_size=batch_size)
    asked = requests(6)
    answers = list(captioner.answers(asked))
    assert [(answer.position, answer.key) for answer in answers] == [(one.position, one.key) for one in asked]
    assert [answer.text for answer in answers] == [naive(captioner, one) for one in asked]
    assert len({answer.text for answer in answers}) > 1


def test_an_answer_is_cut_unless_it_ends_by_itself(folder):
    captioner = load(folder)
    end = captioner.model.generation_config.eos_token_id
    assert captioner._ended(torch.tensor([[5, 6, 7], [5, end, 0]])) == [False, True]
    captioner.model.generation_config.eos_token_id = [end, 7]
    assert captioner._ended(torch.tensor([[5, 6, 7], [5, 6, 8]])) == [True, False]


def test_a_batch_can_be_stopped_between_two_tokens(folder):
    class Stopped(Exception):
        pass

    def pulse():
        pulses.append(len(pulses))
        if len(pulses) == 3:
            raise Stopped

    pulses = []
    with pytest.raises(Stopped):
        list(load(folder, pulse=pulse, max_tokens=6).answers(requests(2)))
    assert len(pulses) == 3


def test_broken_pictures_cost_only_themselves(folder):
    captioner = load(folder, batch_size=2)
    asked = [*requests(2), request(2, image=b"broken"), request(3, image=b"")]
    answers = {answer.position: answer for answer in captioner.answers(asked)}
    assert [answers[number].failure for number in range(4)] == ["", "", "bad_picture", "bad_picture"]


def test_a_batch_that_does_not_fit_is_halved(folder):
    captioner = load(folder, batch_size=4)
    expected = [answer.text for answer in captioner.answers(requests(4))]
    generate, sizes = captioner.model.generate, []

    def small_memory(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1 or too_small:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return generate(**inputs)

    captioner.model.generate, too_small = small_memory, False
    assert [answer.text for answer in captioner.answers(requests(4))] == expected
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    too_small = True
    assert [answer.failure for answer in captioner.answers(requests(1))] == ["failed"]


def test_a_model_that_cannot_caption_is_refused(folder, tmp_path):
    with pytest.raises(CaptionerUnusable, match=r"expected the folder or hub id of a Qwen2\.5-VL"):
        load(tmp_path)
    with pytest.raises(ValueError, match="temperature"):
        LocalCaptioner.from_pretrained(str(folder), device="cpu", config=CaptionConfig(temperature=1.0))


def test_the_command_captions_shards_here(folder, tmp_path, capsys):
    from tests.data.test_recaption_command import recaption

    source = write_shards(tmp_path / "in", [2, 1])
    options = ["--model", str(folder), "--device", "cpu", "--batch_size", "2", "--max_tokens", "4"]
    assert recaption(str(source), "--out", str(tmp_path / "out"), *options) == 0
    # a random model does not know when to stop
    printed = capsys.readouterr().out
    assert "of 3 samples" in printed
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
