"""What a captioning model is asked: named templates, or a file; `{caption}` stands for the caption that is there."""

import re
from dataclasses import dataclass
from pathlib import Path

_PLACE = "{caption}"
_NO_CAPTION = "(none)"
_LONGEST_CAPTION = 1000
_SPECIAL = re.compile(r"<\|[^<>|]*\|>")

TEMPLATES: dict[str, str] = {
    "detailed": (
        "Describe this image in one paragraph of 60 to 120 words, as a prompt from which it could be painted. Name the "
        "main subjects, their number, colours, materials and positions to each other, what they do, the background, "
        "the light, the style or medium, and any text that can be read. State only what is visible. Begin with the "
        "subject, not with 'The image'."
    ),
    "short": (
        "Write one sentence of at most 25 words that says what is in this image: main subjects, their number and "
        "colours, what they do, and where. Answer with the sentence alone."
    ),
    "refine": (
        "This image was found with the caption: {caption}\n"
        "Write a better caption of 40 to 100 words. Keep names of people, places, works and species from the old "
        "caption where the image does not contradict them, drop advertising, file names and links, and add what is "
        "visible: subjects, number, colours, positions, background, light, style. Answer with the caption alone."
    ),
    "layout": (
        "Describe this image for someone who must place every object: in 60 to 120 words, name each object with "
        "number, colour and size, where it lies in the frame (left, right, top, bottom, centre, foreground, "
        "background), and how it lies to the others (left of, above, behind, on). State only what is visible. Answer "
        "with the text alone."
    ),
    "chinese": (
        "请用一段60到150字的中文描述这张图片，使人能据此画出它：主体及其数量、颜色、材质、相互位置和动作，背景、光线、"
        "风格，以及可辨认的文字。只写看得见的内容，直接从主体开始。"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A template under the name by which samples remember it."""

    name: str
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"prompt {self.name!r} is empty; expected what to ask the model, with or without {_PLACE}")

    def about(self, caption: str) -> str:
        """The question about a picture with this caption, which may be empty."""
        # tokens such as <|image_pad|> in a caption from the web would count as pictures
        quoted = _SPECIAL.sub(" ", caption).strip()[:_LONGEST_CAPTION]
        # no str.format: a template may hold braces of its own, such as JSON
        return self.text.replace(_PLACE, quoted or _NO_CAPTION)


def load_prompt(name: str) -> Prompt:
    """The template of that name, or of the file of that path. Raises ValueError for neither, or for an empty file."""
    if name in TEMPLATES:
        return Prompt(name=name, text=TEMPLATES[name])
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"prompt {name!r} is no template and no file; expected {', '.join(TEMPLATES)}, or a text file")
    return Prompt(name=path.stem, text=path.read_text(encoding="utf-8").strip())
