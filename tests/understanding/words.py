"""Small text tokenizers of the two families, for tests."""

from pathlib import Path

from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece

CORPUS = [
    "USER: what colour is the star? ASSISTANT: red",
    "USER: how many squares are there? ASSISTANT: two",
    "a red circle left of a blue square",
    "a green triangle above a yellow star. Is there a white circle? yes, no",
    "A red circle. Two blue squares. And what else? What is in the picture?",
]


def llama_words(folder: Path):
    """Sentencepiece, as Llama's and Vicuna's."""
    return load_text_tokenizer(train_sentencepiece(CORPUS, folder, vocabulary_size=340))


def qwen_words(folder: Path):
    """Byte-level pairs with Qwen's three special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), behavior="isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [f"{text}.\n" for text in CORPUS]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=special)
    tokenizer.train_from_iterator(corpus, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    ).save_pretrained(folder)
    return load_text_tokenizer(folder)
