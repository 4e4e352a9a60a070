"""Text tokenizers: those of checkpoints, and a Llama-style sentencepiece model trained on captions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
_FILES = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "config.json"]
_SPECIAL = 3
_BYTES = 256


def load_text_tokenizer(
    source: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> PreTrainedTokenizerBase:
    """The text tokenizer of a folder, or of a hub id (only tokenizer files are downloaded).

    Raises:
        ValueError: The source is neither, or it holds no complete tokenizer.
    """
    from transformers import AutoTokenizer

    path = Path(source)
    if path.is_file():
        raise ValueError(
            f"{path} is a file; expected its folder, with {CONFIG_FILE} beside {MODEL_FILE}: transformers makes an "
            "empty tokenizer of a lone sentencepiece file without a word."
        )
    folder = path if path.is_dir() else _download(str(source), revision=revision, token=token)
    names = {file.name for file in folder.iterdir()}
    if CONFIG_FILE not in names or not names & {MODEL_FILE, "tokenizer.json", "vocab.json"}:
        raise ValueError(
            f"{folder} holds no complete text tokenizer; expected {CONFIG_FILE} and one of {MODEL_FILE}, "
            "tokenizer.json, vocab.json. Copy them from the checkpoint's folder, or make one with train_sentencepiece."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _check_complete(tokenizer, folder)
    return tokenizer


def _check_complete(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    wanted = 1
    if (folder / MODEL_FILE).is_file():
        from sentencepiece import SentencePieceProcessor

        wanted = SentencePieceProcessor(model_file=str(folder / MODEL_FILE)).vocab_size()
    words = tokenizer("a red circle", add_special_tokens=False)["input_ids"]
    if len(tokenizer) < wanted or not words or set(words) == {tokenizer.unk_token_id}:
        raise ValueError(
            f"the text tokenizer of {folder} has {len(tokenizer)} tokens, expected at least {wanted}, and reads 'a red "
            f"circle' as {words}. Check `tokenizer_class` in {CONFIG_FILE} and that no file is cut short."
        )


def _download(source: str, *, revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, token=token, allow_patterns=_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"{source!r} is no folder here, and the hub did not give it ({type(error).__name__}). Give a folder with a "
            "tokenizer, or log in with `hf auth login` for a gated one."
        ) from error


def train_sentencepiece(captions: Iterable[str], folder: str | Path, *, vocabulary_size: int) -> Path:
    """Train a Llama-style tokenizer (BPE, bytes for the unknown) on captions. The same captions give the same files.

    Args:
        captions: Texts, in a fixed order.
        folder: Where to write; `load_text_tokenizer` reads it.
        vocabulary_size: Tokens at most, 3 special ones and 256 bytes included; captions with few words give fewer.

    Returns:
        The folder.

    Raises:
        ValueError: No captions, or a vocabulary too small for the bytes and the captions' characters.
    """
    import sentencepiece

    texts = [caption for caption in captions if caption.strip()]
    if not texts:
        raise ValueError("no captions; expected at least one with a word in it.")
    characters = len({character for text in texts for character in text} | {" "})
    # One piece of each character, and one merge at least.
    least = _SPECIAL + _BYTES + characters + 1
    if vocabulary_size < least:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}; expected at least {least}: {_SPECIAL} special tokens, {_BYTES} "
            f"bytes, {characters} characters of the captions and one more. Raise it."
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=max(4192, 4 * max(map(len, texts))),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(model.getvalue())
    description = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")
    return folder
