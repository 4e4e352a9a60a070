"""Captions from a Qwen-VL (Qwen2.5-VL, Qwen3-VL, or kin) in this process, by transformers, in batches."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from PIL import Image

from tokenflow.data.recaption_backend import (
    CaptionAnswer,
    CaptionConfig,
    CaptionerUnusable,
    CaptionRequest,
    open_picture,
)
from tokenflow.data.samples import BadSample

Shown = tuple[CaptionRequest, Image.Image]


class LocalCaptioner:
    """Captions by a model on one device, the most likely token each time.

    Args:
        model: From AutoModelForImageTextToText.
        processor: From AutoProcessor, with a chat template.
        config: How it is asked.
        batch_size: Pictures at a time; halved for a batch that does not fit.
        pulse: Called at every token; what it raises ends the answers.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        config: CaptionConfig,
        batch_size: int = 8,
        pulse: Callable[[], None] = lambda: None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        if config.temperature:
            raise ValueError(
                f"temperature is {config.temperature}; expected 0: this backend takes the most likely token, so "
                "that captions do not depend on their batch. Use a server for sampling"
            )
        if getattr(processor, "chat_template", None) is None:
            raise CaptionerUnusable("the processor has no chat template; expected an instruction-tuned Qwen-VL")
        self.model = model.eval()
        self.processor = processor
        # generation goes on at the right end
        self.processor.tokenizer.padding_side = "left"
        self.config = config
        self.batch_size = batch_size
        self._pulse = pulse

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        device: torch.device | str,
        config: CaptionConfig,
        batch_size: int = 8,
        pulse: Callable[[], None] = lambda: None,
    ) -> "LocalCaptioner":
        """Load a folder or a hub id; bfloat16 on a GPU, float32 elsewhere. Raises CaptionerUnusable."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = torch.device(device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            raise CaptionerUnusable(
                f"{name!r} cannot be loaded ({error}); expected the folder or hub id of a Qwen2.5-VL or Qwen3-VL"
            ) from error
        return cls(model.to(device), processor, config=config, batch_size=batch_size, pulse=pulse)

    def answers(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionAnswer]:
        """One answer a request, in their order but for pictures that cannot be shown."""
        rest = iter(requests)
        while batch := list(islice(rest, self.batch_size)):
            shown: list[Shown] = []
            for request in batch:
                try:
                    shown.append((request, open_picture(request.image, max_pixels=self.config.max_pixels)))
                except BadSample as error:
                    yield _answer(request, failure="bad_picture", detail=str(error))
            yield from self._caption(shown)

    def _caption(self, shown: list[Shown]) -> list[CaptionAnswer]:
        if not shown:
            return []
        try:
            return self._generate(shown)
        except torch.cuda.OutOfMemoryError as error:
            detail = str(error).partition("\n")[0]
        # outside of the except block, whose traceback holds the tensors of the batch
        torch.cuda.empty_cache()
        if len(shown) == 1:
            return [_answer(shown[0][0], failure="failed", detail=detail)]
        half = len(shown) // 2
        return self._caption(shown[:half]) + self._caption(shown[half:])

    @torch.inference_mode()
    def _generate(self, shown: list[Shown]) -> list[CaptionAnswer]:
        from transformers import StoppingCriteriaList

        inputs = self.processor(
            text=[self._chat(request.prompt) for request, _ in shown],
            images=[image for _, image in shown],
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        sequences = self.model.generate(
            **inputs,
            max_new_tokens=self.config.max_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([self._go_on]),
        )
        answered = sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answered, skip_special_tokens=True)
        ended = self._ended(answered)
        return [
            _answer(request, text=text, cut=not whole)
            for (request, _), text, whole in zip(shown, texts, ended, strict=True)
        ]

    def _go_on(self, sequences: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion of transformers that stops no sequence; sequences [B, T]."""
        self._pulse()
        return torch.zeros(len(sequences), dtype=torch.bool, device=sequences.device)

    def _chat(self, prompt: str) -> str:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        return self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def _ended(self, answered: torch.Tensor) -> list[bool]:
        """Whether each answer [B, T] has an end of its own."""
        ends = self.model.generation_config.eos_token_id
        ends = torch.as_tensor([] if ends is None else ends, device=answered.device).reshape(-1)
        return torch.isin(answered, ends).any(dim=1).tolist()


def _answer(request: CaptionRequest, **content: Any) -> CaptionAnswer:
    return CaptionAnswer(position=request.position, key=request.key, **content)
