"""How a conversation is written, and which of its tokens are learned: the assistant's words and their end."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from tokenflow.understanding.config import TemplateName

IMAGE = "<image>"
"""Where an image stands in a user's message."""
Conversation = tuple[tuple[str, str], ...]
"""Turns of (role, text) in order: "user", "assistant", "user", ...; one that ends with the user waits for an answer."""
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


class Segment(NamedTuple):
    """A piece of a written conversation, as long as can be."""

    text: str
    """Its characters; `<image>` is an image where it is not supervised."""
    supervised: bool
    """Whether the model learns to say it."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """The fixed words around messages; `{}` is where a message goes."""

    default_system: str
    """The system message where none is given."""
    system: str
    """Around the system message."""
    user: str
    """Around a user's message."""
    assistant: str
    """Before an answer; what a model is given to go on from."""
    answer: str
    """Around an answer."""
    end: str
    """Ends an answer and is learned with it."""
    after: str
    """Behind the end, and not learned."""
    keeps_questions: bool = True
    """Whether an answered user's message is more than its images."""


TEMPLATES: dict[TemplateName, Template] = {
    # Captions (LLaVA's alignment): an image and its text; what was asked for is left out.
    "plain": Template(
        default_system="",
        system="{}",
        user="{}\n",
        assistant="",
        answer="{}",
        end="\n",
        after="",
        keeps_questions=False,
    ),
    "vicuna_v1": Template(
        default_system=_VICUNA_SYSTEM,
        system="{} ",
        user="USER: {} ",
        assistant="ASSISTANT:",
        answer=" {}",
        end="</s>",
        after="",
    ),
    "qwen_2_5": Template(
        default_system="You are a helpful assistant.",
        system="<|im_start|>system\n{}<|im_end|>\n",
        user="<|im_start|>user\n{}<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        answer="{}",
        end="<|im_end|>",
        after="\n",
    ),
}


def render(name: TemplateName, conversation: Conversation, *, system: str | None = None) -> str:
    """A conversation as one text.

    Args:
        name: Template.
        conversation: Its turns; `<image>` stands for an image, and moves to the start of its message.
        system: The system message; None: the template's own; empty: none.

    Raises:
        ValueError: Turns that do not alternate, beginning with the user, or an empty answer.
    """
    return "".join(segment.text for segment in segments(name, conversation, system=system))


def segments(name: TemplateName, conversation: Conversation, *, system: str | None = None) -> list[Segment]:
    """A conversation in pieces, as `render` joins them."""
    if name not in TEMPLATES:
        raise ValueError(f"template is {name!r}; expected one of {', '.join(TEMPLATES)}.")
    template = TEMPLATES[name]
    _check(conversation)
    system = template.default_system if system is None else system
    if IMAGE in system:
        raise ValueError(f"the system message holds {IMAGE}; images belong to messages of the user.")
    pieces = [(template.system.format(system) if system else "", False)]
    for number, (role, text) in enumerate(conversation):
        if role == "user":
            answered = number + 1 < len(conversation)
            whole = template.keeps_questions or not answered
            pieces.append((template.user.format(_images_first(text)) if whole else IMAGE * text.count(IMAGE), False))
            pieces.append((template.assistant, False))
        else:
            pieces.append((template.answer.format(text.strip()) + template.end, True))
            pieces.append((template.after, False))
    joined = []
    for supervised, group in itertools.groupby((piece for piece in pieces if piece[0]), key=itemgetter(1)):
        joined.append(Segment("".join(text for text, _ in group), supervised))
    return joined


def _images_first(text: str) -> str:
    """`<image>` moved to the start, each on a line of its own, as in LLaVA."""
    count = text.count(IMAGE)
    return (f"{IMAGE}\n" * count + text.replace(IMAGE, "").strip()).strip()


def _check(conversation: Conversation) -> None:
    for number, (role, text) in enumerate(conversation):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            raise ValueError(
                f"turn {number} is of {role!r}; expected {wanted!r}: user and assistant alternate, the user begins."
            )
        if role == "assistant" and not text.strip():
            raise ValueError(f"turn {number}, the assistant's, is empty. Leave it out, or the whole conversation.")
    if not conversation:
        raise ValueError("the conversation has no turns; expected at least a user's.")
