"""What lmms-eval asks for, in our words: which questions go together in a batch, and how an answer is to be chosen."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenflow.data.conversations import IMAGE_MARK

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
_KNOWN = {"max_new_tokens", "temperature", "top_p", "do_sample", "num_beams"}
_IGNORED = {"until", "image_aspect_ratio"}
"""Task files stop at lm-eval's blank line unless told otherwise; like LLaVA's plug-in we let the model end its answer.
Images are prepared as the model was trained."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How an answer is chosen; requests with equal options share batches."""

    max_new_tokens: int
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Share of probability that is drawn from."""


def answer_options(task_options: Mapping[str, Any], *, max_new_tokens: int) -> AnswerOptions:
    """A task's `generation_kwargs` as options.

    Args:
        task_options: As the task's file gives them; what is None is not said.
        max_new_tokens: Where the task does not say.

    Raises:
        ValueError: The task asks for beam search.
    """
    said = {name: value for name, value in task_options.items() if value is not None}
    if said.get("num_beams", 1) != 1:
        raise ValueError(f"the task asks for num_beams {said['num_beams']}; expected 1: beam search is not built")
    for name in sorted(set(said) - _KNOWN - _IGNORED):
        logger.warning("the task's option %s %r has no meaning here and is left out", name, said[name])
    temperature = float(said.get("temperature", 0.0)) if said.get("do_sample", True) else 0.0
    return AnswerOptions(
        max_new_tokens=int(said.get("max_new_tokens", max_new_tokens)),
        temperature=temperature,
        top_p=float(said.get("top_p", 1.0)),
    )


def question_text(context: str) -> str:
    """A task's prompt without marks of pictures: templates put the pictures first, wherever the marks stood."""
    return context.replace(IMAGE_MARK, "").strip()


def batches(
    requests: Sequence[tuple[AnswerOptions, str, Item]], *, batch_size: int
) -> Iterator[tuple[AnswerOptions, list[int]]]:
    """(options, places in `requests`) of batches: of equal options, the longest prompts first.

    What needs most memory comes first, so that a batch size that is too large fails at once.
    """
    groups: dict[AnswerOptions, list[int]] = {}
    for place, (options, _, _) in enumerate(requests):
        groups.setdefault(options, []).append(place)
    for options, places in groups.items():
        places.sort(key=lambda place: -len(requests[place][1]))
        for start in range(0, len(places), batch_size):
            yield options, places[start : start + batch_size]
