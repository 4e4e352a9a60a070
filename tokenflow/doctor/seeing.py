"""A multimodal model's folder, loaded and tried: whether it answers what it predicts."""

from collections.abc import Iterator
from pathlib import Path

import torch

from tokenflow import ImageToText
from tokenflow.doctor.agreement import EPSILON
from tokenflow.doctor.findings import Finding, findings, first_line
from tokenflow.understanding.answering import Decoding, next_tokens
from tokenflow.understanding.batching import collate
from tokenflow.understanding.conversation_tokens import Tokens

QUESTIONS = ("what colour is the star?", "how many?")
"""The first about a picture, the second about none: of different length, so that padding is tried too."""
ANSWER = 16
"""Tokens of an answer; its end does not stop it."""


def image_to_text(folder: str | Path) -> Iterator[Finding]:
    """Whether a multimodal model loads, and answers with the cache what it predicts without one; in fp32."""
    found = findings(f"image to text {folder}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = ImageToText.from_pretrained(folder).to(device)
    except (ValueError, OSError) as error:
        yield found("load", "broken", first_line(error), "give what save_pretrained, mllm_align or mllm_sft wrote")
        return
    config = model.model.config
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    yield found(
        "load",
        "ok",
        f"{parameters / 1e6:.1f} M parameters, a picture is {config.image_tokens} positions ({config.features}), "
        f"template {config.template}",
    )
    # Tokens are compared, and bf16 rounds logits so far that many of them tie.
    model.model.float()
    if not all(bool(torch.isfinite(value).all()) for value in model.model.state_dict().values()):
        yield found("weights", "broken", "NaN or infinity among them", "export an earlier checkpoint")
        return
    clear, different = compare_with_teacher_forcing(model)
    yield found(
        "answers",
        "broken" if different else "ok",
        f"cached greedy tokens equal the teacher-forced argmax at {clear - different} of {clear} tokens; "
        f"{len(QUESTIONS) * ANSWER - clear} more have a gap of at most {EPSILON:.0e} between the best two logits",
        "training and answering compute different things. Likely: positions, padding or the cache" if different else "",
    )


@torch.no_grad()
def compare_with_teacher_forcing(model: ImageToText) -> tuple[int, int]:
    """Tokens of greedy answers whose best two logits are apart, and how many of these one pass predicts otherwise."""
    config, vocabulary = model.model.config, len(model.text_tokenizer)
    pixels = torch.rand(3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = torch.cat(model.features([pixels]))
    places = (1, 0)
    prompts = [
        model.reader((("user", model.with_images(question, count)),))
        for question, count in zip(QUESTIONS, places, strict=True)
    ]
    limit = config.language.max_positions
    batch = collate(prompts, image_tokens=config.image_tokens, max_length=limit).to(model.device)
    steps = next_tokens(
        model.model,
        batch,
        features,
        vocabulary=vocabulary,
        decoding=Decoding(max_new_tokens=ANSWER),
        numbers=range(len(prompts)),
    )
    answers = torch.stack([tokens for _, tokens in zip(range(ANSWER), steps, strict=False)], dim=1)
    clear = different = 0
    for prompt, answer, count in zip(prompts, answers, places, strict=True):
        whole = Tokens([*prompt.ids, *answer.tolist()], [*prompt.labels, *[-100] * ANSWER])
        row = collate([whole], image_tokens=config.image_tokens, max_length=limit).to(model.device)
        hidden = model.model.hidden(row, features if count else None)[0, -ANSWER - 1 : -1]
        logits = model.model.head(hidden)[:, :vocabulary].float()
        best = logits.topk(2, dim=-1).values
        apart = best[:, 0] - best[:, 1] > EPSILON
        clear += int(apart.sum())
        different += int((apart & (logits.argmax(-1) != answer)).sum())
    return clear, different
