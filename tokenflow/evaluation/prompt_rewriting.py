"""Longer, more explicit prompts by a language model: any OpenAI-compatible endpoint, or a local one of transformers.

The paper's figure "with rewriting" uses GPT-4V. The original prompt stays beside the rewritten one in
`prompts.jsonl`, and scores always go by the original.
"""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tokenflow.evaluation.measure import write_atomic

logger = logging.getLogger(__name__)

INSTRUCTION = (
    "You write prompts for a text-to-image model. Rewrite the user's prompt as one sentence of at most 60 words that "
    "describes the same picture more vividly. Keep every object, its number, its colour and every spatial relation "
    "exactly; add no further objects. Answer with the rewritten prompt only."
)

Rewrite = Callable[[str], str]
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP answers after which the same question may still be answered."""


@dataclass(frozen=True, kw_only=True)
class RewritingConfig:
    """Who rewrites prompts, and how."""

    by: Literal["nobody", "endpoint", "local"] = "nobody"
    """`endpoint`: an OpenAI-compatible server; `local`: a causal language model of transformers."""
    url: str = "http://127.0.0.1:8000/v1"
    """The endpoint, up to and without `/chat/completions`."""
    model: str = ""
    """The endpoint's name of the model; for `local` a folder or hub id."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; may be unset."""
    instruction: str = INSTRUCTION
    """What the language model is told first."""
    max_tokens: int = 120
    """Longest answer."""
    timeout_seconds: float = 60.0
    """How long one answer may take."""
    attempts: int = 4
    """How often one prompt is asked, with growing pauses, before it is an error."""
    pause_seconds: float = 1.0
    """Pause after the first failure; doubles."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.by != "nobody" and not self.model:
            raise ValueError(f"rewriting by {self.by} needs a model; give --rewriting.model")
        if self.by == "endpoint" and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"rewriting.url is {self.url!r}; expected http://... or https://...")
        if self.attempts < 1 or self.max_tokens < 1 or not self.timeout_seconds > 0 or self.pause_seconds < 0:
            raise ValueError(
                f"rewriting: attempts {self.attempts}, max_tokens {self.max_tokens}, timeout_seconds "
                f"{self.timeout_seconds}, pause_seconds {self.pause_seconds}; expected the first three above 0"
            )


def build_rewriter(config: RewritingConfig, *, device: torch.device | str = "cpu") -> Rewrite | None:
    """The rewriter that the configuration names; OSError when a local model cannot be had."""
    if config.by == "nobody":
        return None
    return EndpointRewriter(config) if config.by == "endpoint" else LocalRewriter(config, device=device)


class EndpointRewriter:
    """Asks `POST {url}/chat/completions`."""

    def __init__(self, config: RewritingConfig) -> None:
        self.config = config

    def __call__(self, prompt: str) -> str:
        """The rewritten prompt. ConnectionError names the endpoint and its last answer when all attempts fail."""
        config = self.config
        for attempt in range(1, config.attempts + 1):
            try:
                return cleaned(self._ask(prompt), prompt=prompt)
            except _Temporary as error:
                if attempt == config.attempts:
                    raise ConnectionError(
                        f"{config.url} did not rewrite {prompt!r} in {attempt} attempts; the last answer: {error}. "
                        "Is the server up and the model's name right? Rewritten prompts so far are kept."
                    ) from error
                logger.warning("rewriting: attempt %d of %d failed (%s)", attempt, config.attempts, error)
                time.sleep(config.pause_seconds * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, prompt: str) -> str:
        config = self.config
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(config.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        body = {
            "model": config.model,
            "messages": messages(config, prompt),
            "max_tokens": config.max_tokens,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{config.url.rstrip('/')}/chat/completions", data=json.dumps(body).encode(), headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=config.timeout_seconds) as response:
                answer = json.loads(response.read())
            return str(answer["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace")
            if error.code in RETRIED:
                raise _Temporary(f"{error.code} {error.reason} {said}") from error
            raise ConnectionError(f"{config.url} refused: {error.code} {error.reason} {said}") from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise _Temporary(getattr(error, "reason", error) or type(error).__name__) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Temporary(f"no chat completion ({type(error).__name__}: {error})") from error


class LocalRewriter:
    """Greedy answers of a causal language model of transformers."""

    def __init__(self, config: RewritingConfig, *, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.config, self.device = config, torch.device(device)
        self.text_tokenizer = AutoTokenizer.from_pretrained(config.model)
        self.model = AutoModelForCausalLM.from_pretrained(config.model, dtype="auto").eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, prompt: str) -> str:
        """The rewritten prompt."""
        if self.text_tokenizer.chat_template:
            text = self.text_tokenizer.apply_chat_template(
                messages(self.config, prompt), tokenize=False, add_generation_prompt=True
            )
            inputs = self.text_tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = self.text_tokenizer(
                f"{self.config.instruction}\n\nPrompt: {prompt}\nRewritten prompt:", return_tensors="pt"
            )
        ids, mask = inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)
        eos = self.text_tokenizer.eos_token_id
        answer = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self.config.max_tokens, do_sample=False, pad_token_id=eos
        )
        return cleaned(self.text_tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True), prompt=prompt)


def messages(config: RewritingConfig, prompt: str) -> list[dict[str, str]]:
    """The conversation that asks for one rewriting."""
    return [{"role": "system", "content": config.instruction}, {"role": "user", "content": prompt}]


def cleaned(answer: str, *, prompt: str) -> str:
    """An answer as one line without quotes around it; the original prompt when nothing is left."""
    text = " ".join(answer.split()).strip("\"'“”` ")
    if not text:
        logger.warning("the language model answered nothing to %r; the prompt stays as it is", prompt)
    return text or prompt


def rewrite_all(
    prompts: Sequence[str], rewrite: Rewrite, path: Path, *, by: dict[str, Any], progress: Callable[[int], None]
) -> list[str]:
    """Rewritten prompts, each kept in a JSONL file beside its original as soon as it is there.

    What the file holds is not asked again, unless another model or instruction (`by`) wrote it.
    """
    known: dict[str, str] = {}
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        known = {row["prompt"]: row["rewritten"] for row in rows if row.get("by") == by}
    for prompt in prompts:
        if prompt not in known:
            known[prompt] = rewrite(prompt)
            lines = (json.dumps({"prompt": p, "rewritten": r, "by": by}, ensure_ascii=False) for p, r in known.items())
            write_atomic(path, "\n".join(lines) + "\n")
        progress(1)
    return [known[prompt] for prompt in prompts]


class _Temporary(Exception):
    """A failure after which asking again may help."""
