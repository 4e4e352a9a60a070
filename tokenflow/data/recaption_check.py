"""Whether a model's answer is a caption: not empty, not a refusal, not a loop, not too long, in any script."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)
_SPACE = re.compile(r"\s+")
_QUOTES = {'"': '"', "“": "”", "「": "」", "'": "'"}
# words, but every character of scripts that put no spaces between words
_TOKEN = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W぀-ヿ㐀-䶿一-鿿豈-﫿]+")
_SENTENCE = re.compile(r"(?<=[.!?。！？;；])\s*")
_ONE_CHARACTER = re.compile(r"(\S)\1{29,}")
_UNABLE = (
    r"(?:can ?not|can't|could not|couldn't|won't|will not|am unable to|'m unable to|am not able to|'m not able to)"
)
_DEED = (
    r"(?:help|assist|see|view|open|access|load|process|analy[sz]e|describe|identify|recognize|provide|generate|create|"
    r"comply|fulfil+|answer|discuss|caption|engage|continue|do that|determine who)"
)
_REFUSALS = (
    # of the whole answer
    re.compile(
        r"^(?:oh,? |well,? |unfortunately,? )?(?:i(?:'m| am) (?:very |so |really )?sorry|sorry,|i apologi[sz]e)", re.I
    ),
    re.compile(r"^(?:很|非常|十分)?(?:抱歉|对不起|對不起|不好意思)"),
)
_REFUSING_SENTENCES = (
    re.compile(rf"^(?:(?:but|however|unfortunately),? )?i {_UNABLE} (?:\w+ly )?{_DEED}", re.I),
    re.compile(rf"^(?:(?:but|however|unfortunately),? )?i'm (?:unable|not able) to (?:\w+ly )?{_DEED}", re.I),
    re.compile(r"^as an? (?:ai|artificial intelligence|(?:large )?language model|vision[- ]language model)\b", re.I),
    re.compile(r"^please (?:upload|provide|attach|share) (?:an? |the |your )?(?:image|picture|photo)\b", re.I),
    re.compile(r"^(?:there is |i see )?no (?:image|picture|photo)"
               r"(?: (?:was |is |has been )?(?:provided|attached|uploaded)|[.!]|$)", re.I),
    re.compile(r"^(?:但|但是|不过|然而)?[,，]?我?(?:无法|不能|無法|没有办法)(?:直接)?"
               r"(?:查看|看到|识别|辨认|描述|提供|协助|回答|生成|处理|满足|帮助|为您|为你|識別|處理|協助)"),
    re.compile(r"^作为(?:一个|一名|一款)?(?:AI|人工智能|语言模型|大型语言模型|大语言模型|助手)", re.I),
    re.compile(r"^请(?:您)?(?:上传|提供|发送)(?:一张|一幅|您的|相关的)?(?:图片|图像|照片)"),
)  # fmt: skip
_LOOP_TOKENS = 12
_LONGEST_UNIT = 64
_GRAM = 6
_FEWEST_GRAMS = 24


@dataclass(frozen=True, kw_only=True)
class CaptionCheck:
    """What answers must be."""

    max_characters: int = 2000
    """Longer ones are rejected."""
    max_repeated: float = 0.4
    """Largest share of an answer's runs of six words that stood in it before; above it, the answer is a loop."""

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ValueError(f"max_characters is {self.max_characters}; expected at least 1")
        if not 0 < self.max_repeated <= 1:
            raise ValueError(f"max_repeated is {self.max_repeated}; expected a share above 0, at most 1")

    def rejection(self, caption: str, *, cut: bool = False) -> tuple[str, str]:
        """(code, what exactly is wrong) of a cleaned answer; empty where nothing is.

        Args:
            caption: What `clean_answer` gave.
            cut: The model stopped at its limit of tokens, not at an end of its own.

        Returns:
            A code of empty, refused, looping, too_long, and a detail for people.
        """
        tokens = _TOKEN.findall(caption.lower())
        if not tokens:
            return "empty", f"no words in {caption[:40]!r}"
        if refusal := _refusal(caption):
            return "refused", refusal
        if loop := self._loop(caption, tokens):
            return "looping", loop
        if cut:
            return "too_long", "the model was stopped at its limit of tokens"
        if len(caption) > self.max_characters:
            return "too_long", f"{len(caption)} characters, more than {self.max_characters}"
        return "", ""

    def _loop(self, caption: str, tokens: Sequence[str]) -> str:
        """What is repeated; empty where nothing is."""
        if run := _ONE_CHARACTER.search(caption):
            return f"{run[1]!r} again and again"
        for unit in range(1, min(len(tokens) // 2, _LONGEST_UNIT) + 1):
            run_length = 0
            for place in range(unit, len(tokens)):
                run_length = run_length + 1 if tokens[place] == tokens[place - unit] else 0
                # three times the same, and long enough to be no figure of speech
                if run_length >= max(2 * unit, _LOOP_TOKENS - unit):
                    repeated = " ".join(tokens[place - unit + 1 : place + 1])
                    return f"{repeated[:80]!r} again and again"
        grams = [tuple(tokens[place : place + _GRAM]) for place in range(len(tokens) - _GRAM + 1)]
        if len(grams) < _FEWEST_GRAMS:
            return ""
        share = 1 - len(set(grams)) / len(grams)
        return f"{share:.0%} of it was there before" if share > self.max_repeated else ""


def clean_answer(answer: str) -> str:
    """The caption in an answer: without thoughts, line breaks and quotation marks around it."""
    caption = _SPACE.sub(" ", _THOUGHT.sub("", answer, count=1)).strip()
    if len(caption) > 1 and _QUOTES.get(caption[0]) == caption[-1] and caption[-1] not in caption[1:-1]:
        caption = caption[1:-1].strip()
    # lone surrogates, which JSON can carry, cannot be written as UTF-8
    return caption.encode("utf-8", errors="replace").decode()


def _refusal(caption: str) -> str:
    """The sentence that refuses; empty where none does. Quotations of one inside a caption are none."""
    plain = caption.replace("’", "'").strip()
    for pattern in _REFUSALS:
        if pattern.search(plain):
            return plain[:120]
    for sentence in _SENTENCE.split(plain):
        if any(pattern.search(sentence) for pattern in _REFUSING_SENTENCES):
            return sentence[:120]
    return ""
