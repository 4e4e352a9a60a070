"""`python -m lmms_eval --model tokenflow`: a plug-in, which lmms-eval finds by the entry point `lmms_eval.models`.

    python -m lmms_eval --model tokenflow --model_args pretrained=FOLDER --batch_size 16 \\
        --tasks seedbench,pope,vqav2_val,gqa,textvqa_val,ai2d,realworldqa,mmmu_val,mmbench_en_dev,mme,mmvet

Nothing here is imported unless lmms-eval asks for it. Under `accelerate launch` every process answers its share.
"""

from __future__ import annotations

from typing import Literal

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from tokenflow.evaluation.lmms_requests import AnswerOptions, answer_options, batches, question_text
from tokenflow.understanding.image_to_text import ImageToText


def load_model(pretrained: str, *, layout: str, dtype: str | None) -> ImageToText:
    """A model of one of the two layouts; ValueError for a layout or dtype that there is not."""
    if layout not in ("tokenflow", "authors"):
        raise ValueError(f"layout is {layout!r}; expected tokenflow or authors")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
    read = ImageToText.from_authors if layout == "authors" else ImageToText.from_pretrained
    model = read(pretrained)
    return model if dtype is None else model.to(getattr(torch, dtype))


class TokenFlowModel(lmms):
    """A multimodal model of a folder, as lmms-eval sees it.

    Args:
        pretrained: Folder or hub id of an `ImageToText`.
        layout: "authors" for the authors' own folder.
        dtype: "bfloat16", "float16" or "float32"; by default that of the weights.
        batch_size: Questions at once; lmms-eval's `--batch_size`.
        device: lmms-eval's `--device`; by default the process's own GPU, or the CPU.
        max_batch_size: Of lmms-eval; not used.
        max_new_tokens: Longest answer where a task does not say.
        seed: Of tasks that sample.

    Raises:
        ValueError: A value makes no sense, or the folder holds something else.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        layout: Literal["tokenflow", "authors"] = "tokenflow",
        dtype: str | None = None,
        batch_size: int | str | None = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not str(batch_size or 1).isdigit() or int(batch_size or 1) < 1:
            raise ValueError(
                f"batch_size is {batch_size!r}; expected a number of at least 1, it is not found by trying"
            )
        self.batch_size = int(batch_size or 1)
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self._place_process(device)
        self.model = load_model(pretrained, layout=layout, dtype=dtype).to(self.device)

    def _place_process(self, device: str | None) -> None:
        """Rank, world size and device; accelerate says them where it launched several processes."""
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        alone = self._world_size == 1 and device
        self.device = torch.device(device) if alone else self.accelerator.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request, in order."""
        asked = [self._asked(request) for request in requests]
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=self._rank != 0, desc="Answers") as progress:
            for options, places in batches(asked, batch_size=self.batch_size):
                given = self._answer([asked[place] for place in places], options, first_question=progress.n)
                for place, answer in zip(places, given, strict=True):
                    answers[place] = answer
                    self.cache_hook.add_partial("generate_until", requests[place].args[:2], answer)
                progress.update(len(places))
        return answers

    def _asked(self, request: Instance) -> tuple[AnswerOptions, str, Instance]:
        context, task_options, *_ = request.args
        return answer_options(task_options, max_new_tokens=self.max_new_tokens), question_text(context), request

    def _answer(
        self, asked: list[tuple[AnswerOptions, str, Instance]], options: AnswerOptions, *, first_question: int
    ) -> list[str]:
        return self.model.answer(
            [self._pictures(request) for _, _, request in asked],
            [question for _, question, _ in asked],
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=self.seed,
            batch_size=self.batch_size,
            first_question=first_question,
        )

    def _pictures(self, request: Instance) -> list[Image.Image]:
        """The pictures of a request, opened when its batch is answered and not before."""
        _, _, visuals_of, document, task, split = request.args
        visuals = visuals_of(self.task_dict[task][split][document]) or []
        found = [item for item in visuals if isinstance(item, Image.Image)]
        if len(found) != len(visuals):
            kinds = ", ".join(sorted({type(item).__name__ for item in visuals}))
            raise ValueError(f"task {task!r} shows {kinds}; expected pictures: TokenFlow sees neither video nor sound")
        return [item.convert("RGB") for item in found]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not built; none of the paper's benchmarks asks for it."""
        raise NotImplementedError("tasks of several rounds are not built; choose tasks with output_type generate_until")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """For each request the log-probability of its answer, and whether the model would give it.

        None of the paper's benchmarks asks for it.
        """
        found: list[tuple[float, bool]] = []
        for start in tqdm(range(0, len(requests), self.batch_size), disable=self._rank != 0, desc="Likelihoods"):
            batch = requests[start : start + self.batch_size]
            found += self.model.score(
                [self._pictures(request) for request in batch],
                [question_text(request.args[0]) for request in batch],
                [self._target(request) for request in batch],
                batch_size=self.batch_size,
            )
        return found

    def _target(self, request: Instance) -> str:
        _, target, _, document, task, split = request.args
        return target if isinstance(target, str) else str(target(self.task_dict[task][split][document]))
