"""`tokenflow recaption`: captions of shards written anew by a Qwen-VL, here or behind a server."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tokenflow.commands.reconstruct import choose_device
from tokenflow.data.manifest import REPORT_NAME
from tokenflow.data.recaption_backend import CaptionConfig, Captioner, CaptionerGone, CaptionerUnusable
from tokenflow.data.recaption_check import CaptionCheck
from tokenflow.data.recaption_openai import OpenAICaptioner, ServerConfig, served_model
from tokenflow.data.recaption_prompts import TEMPLATES, load_prompt
from tokenflow.data.recaptioning import RecaptionConfig, Recaptioning
from tokenflow.evaluation.progress import EvaluationProgress

LOCAL_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
CONTINUABLE = 75
"""Exit code of a run that was stopped, or whose server went away: the same command continues it."""
_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    server, caption, check = ServerConfig(), CaptionConfig(), CaptionCheck()
    parser.add_argument("path", metavar="PATH", help="shards: a folder, a .tar, or a pattern of them")
    parser.add_argument("--out", "--output", type=Path, required=True, metavar="DIR", help="folder for the new shards")
    parser.add_argument(
        "--backend", choices=("transformers", "openai"), default="transformers",
        help="in this process, or a server with OpenAI's interface (vLLM, SGLang); default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--model", help=f"folder or hub id (default: {LOCAL_MODEL}); openai: the server's only one")
    named = ", ".join(TEMPLATES)
    parser.add_argument("--prompt", default="detailed", help=f"{named}, or a file; {{caption}} is the old caption")
    parser.add_argument("--max_tokens", type=int, default=caption.max_tokens, help="of an answer")
    parser.add_argument("--temperature", type=float, default=caption.temperature, help="openai only")
    parser.add_argument("--max_pixels", type=int, default=caption.max_pixels, help="shown to the model")
    parser.add_argument("--max_characters", type=int, default=check.max_characters, help="longest caption")
    parser.add_argument("--batch_size", type=int, default=8, help="transformers: pictures at a time")
    parser.add_argument("--device", default="auto", help="transformers: auto (a GPU if there is one), cpu, cuda:1, ...")
    parser.add_argument("--base_url", default=server.base_url, help="openai: up to and with /v1")
    parser.add_argument("--key_env", metavar="NAME", help="openai: environment variable that holds the server's key")
    parser.add_argument("--concurrency", type=int, default=server.concurrency, help="openai: requests at a time")
    parser.add_argument("--requests_per_second", type=float, help="openai: begin no more than that (default: no limit)")
    parser.add_argument("--timeout", type=float, default=server.timeout, help="openai: seconds a request")
    parser.add_argument("--tries", type=int, default=server.tries, help="openai: of a request")
    parser.add_argument("--stop_after", type=int, default=16, help="stop when so many samples in a row get no answer")
    parser.add_argument("--part", type=int, default=0, help="which of --parts this process works on, from 0")
    parser.add_argument("--parts", type=int, default=1, help="processes that share the shards, as in a job array")
    parser.add_argument("--json", action="store_true", help="print this part's report as JSON, nothing else")
    parser.add_argument("--dry_run", action="store_true", help="say what would be asked, then stop")


def run(arguments: argparse.Namespace) -> int:
    """Caption the missing samples of this part; 0 when it is done, 75 when the same command can continue it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # a line a request would drown the progress
    logging.getLogger("httpx").setLevel(logging.WARNING)
    key = _key(arguments.key_env)
    config = _config(arguments, key)
    recaptioning = Recaptioning(
        arguments.path, arguments.out, config=config, part=arguments.part, parts=arguments.parts
    )
    done, _ = recaptioning.done()
    if arguments.dry_run:
        return _preview(recaptioning)
    total = sum(shard.samples for shard in recaptioning.mine)
    try:
        with _StopSignals() as signals:
            # a model takes minutes to load, and a finished part needs none
            captioner = _captioner(arguments, config, key, signals.check) if done < total else _Nobody()
            with EvaluationProgress(total, done=done, verbs=("captioning", "captioned")) as progress:
                report = recaptioning.run(captioner, stop_after=arguments.stop_after, progress=progress.update)
    except (CaptionerGone, _Stopped) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return CONTINUABLE
    print(json.dumps(report) if arguments.json else _describe(report, arguments))
    return 0


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    if not os.environ.get(name):
        raise ValueError(
            f"--key_env is {name}, which is not set or empty; expected an environment variable with the key"
        )
    return os.environ[name]


def _config(arguments: argparse.Namespace, key: str | None) -> RecaptionConfig:
    model = arguments.model
    if model is None:
        model = LOCAL_MODEL if arguments.backend == "transformers" else _served(arguments, key)
    if arguments.temperature and arguments.backend == "transformers":
        raise ValueError(f"--temperature is {arguments.temperature}; expected 0 with transformers, or --backend openai")
    return RecaptionConfig(
        model=model,
        prompt=load_prompt(arguments.prompt),
        caption=CaptionConfig(
            max_tokens=arguments.max_tokens, temperature=arguments.temperature, max_pixels=arguments.max_pixels
        ),
        check=CaptionCheck(max_characters=arguments.max_characters),
    )


def _served(arguments: argparse.Namespace, key: str | None) -> str:
    try:
        return served_model(_server(arguments), key=key)
    except CaptionerUnusable as error:
        if not arguments.dry_run:
            raise
        print(f"note: {error}", file=sys.stderr)
        return "the server's model"


def _server(arguments: argparse.Namespace) -> ServerConfig:
    return ServerConfig(
        base_url=arguments.base_url,
        concurrency=arguments.concurrency,
        requests_per_second=arguments.requests_per_second,
        timeout=arguments.timeout,
        tries=arguments.tries,
    )


def _captioner(
    arguments: argparse.Namespace, config: RecaptionConfig, key: str | None, pulse: Callable[[], None]
) -> Captioner:
    if arguments.backend == "openai":
        return OpenAICaptioner(config.model, config=config.caption, server=_server(arguments), key=key, pulse=pulse)
    # transformers' image classes take seconds to import
    from tokenflow.data.recaption_local import LocalCaptioner

    device = choose_device(arguments.device)
    return LocalCaptioner.from_pretrained(
        config.model, device=device, config=config.caption, batch_size=arguments.batch_size, pulse=pulse
    )


class _Nobody:
    """In place of a captioner where nothing is left to ask."""

    def answers(self, requests: Any) -> Iterator[Any]:
        assert next(iter(requests), None) is None
        return iter(())


class _Stopped(Exception):
    """Slurm, or somebody else, asked this process to end."""


class _StopSignals:
    """Notes SIGTERM and SIGUSR1 (Slurm's warning), for an end as good as any: what was answered is noted."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Slurm and the script around this process both send the signal: the later one must not kill it at its end
        after = self._before if self._received is None else dict.fromkeys(self.SIGNALS, signal.SIG_IGN)
        for number, handler in after.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises _Stopped once a signal has come."""
        if self._received is not None:
            raise _Stopped(f"by {signal.Signals(self._received).name}; the same command continues")

    def _note(self, number: int, frame: FrameType | None) -> None:
        # raised from here, an exception could leave a lock taken that the threads of the captioner wait for
        self._received = number


def _preview(recaptioning: Recaptioning) -> int:
    total = sum(shard.samples for shard in recaptioning.mine)
    done, shards = recaptioning.done()
    model, prompt = recaptioning.config.model, recaptioning.config.prompt
    print(f"{total:,} samples in {len(recaptioning.mine)} shards; {done:,} samples and {shards} shards are done with")
    print(f"{model} would be asked, with the prompt {prompt.name}:")
    for request in islice(recaptioning.requests(), _SHOWN):
        print(f"  {request.key} ({len(request.image):,} bytes): {request.prompt}")
    return 0


def _describe(report: dict[str, Any], arguments: argparse.Namespace) -> str:
    lines = [f"{report['recaptioned']:,} of {report['read']:,} samples have a new caption: {arguments.out}"]
    for group, meaning in (("kept", "kept the old caption"), ("dropped", "dropped"), ("changed", "changed")):
        lines += [f"  {f'{meaning}: {reason}':<40} {count:>10,}" for reason, count in report[group].items()]
    if not report["complete"]:
        lines.append(f"part {arguments.part} of {arguments.parts} is done; the shards of others are still missing")
    elif report["kept"] or report["dropped"]:
        lines.append(f"sample by sample: {arguments.out / REPORT_NAME}")
    return "\n".join(lines)
