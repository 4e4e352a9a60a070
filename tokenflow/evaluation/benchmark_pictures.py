"""Pictures for GenEval's and DPG-Bench's own evaluators: their prompt files in, exactly their folders out.

GenEval (github.com/djghosh13/geneval): a JSONL file, one prompt a line with `tag`, `include`, perhaps `exclude`; out
come `00000/metadata.jsonl` (that line), `00000/samples/00000.png` ..., `00000/grid.png`. DPG-Bench
(github.com/TencentQQGYLab/ELLA): a folder with one text file a prompt; out comes one PNG of the same name, four
pictures as 2x2 without a gap, and nothing else, for its evaluator reads every file of the folder.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tokenflow.evaluation.grid import Picture
from tokenflow.evaluation.measure import png_bytes, write_atomic
from tokenflow.evaluation.painting import Painter, Sampling, paint, read_picture, sheet

DPG_PICTURES = 4
"""DPG-Bench's recommended number, as 2 x 2."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkPrompt:
    """One prompt of a benchmark."""

    index: int
    """Position in the benchmark; decides the random numbers of its pictures."""
    name: str
    """Its folder (GenEval) or file without suffix (DPG-Bench)."""
    text: str
    """The prompt as the benchmark has it."""
    painted: str = ""
    """What the model is asked: `text`, or its rewriting."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """GenEval's line."""

    def asking(self, painted: str) -> "BenchmarkPrompt":
        """The same prompt with another text for the model."""
        return replace(self, painted=painted)


def read_geneval(path: str | Path, *, count: int | None = None) -> list[BenchmarkPrompt]:
    """Prompts of an `evaluation_metadata.jsonl`, the first `count`; ValueError names a line that is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected GenEval's evaluation_metadata.jsonl (prompts/ of its repository)"
        )
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        metadata = _geneval_line(line, where=f"{path}, line {number}")
        text = metadata["prompt"]
        index = len(found)
        found.append(BenchmarkPrompt(index=index, name=f"{index:05d}", text=text, painted=text, metadata=metadata))
    return _first(found, count, source=path)


def read_dpg(folder: str | Path, *, count: int | None = None) -> list[BenchmarkPrompt]:
    """Prompts of DPG-Bench's folder, one text file each, in the order of their numbers; the first `count`."""
    folder = Path(folder)
    files = sorted(folder.glob("*.txt"), key=lambda path: _natural(path.stem)) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder}: no *.txt files; expected DPG-Bench's folder dpg_bench/prompts")
    found = []
    for path in files:
        text = " ".join(path.read_text(encoding="utf-8").split())
        if not text:
            raise ValueError(f"{path} is empty; expected a prompt. Remove the file, or fetch it again.")
        found.append(BenchmarkPrompt(index=len(found), name=path.stem, text=text, painted=text))
    return _first(found, count, source=folder)


class Layout(Protocol):
    """Where a benchmark's pictures go."""

    def complete(self, prompt: BenchmarkPrompt) -> bool:
        """Whether all pictures of the prompt are there."""

    def write(self, prompt: BenchmarkPrompt, pictures: Sequence[Picture]) -> None:
        """Write all pictures of a prompt, uint8 [S, S, 3] each."""

    def read(self, prompt: BenchmarkPrompt) -> list[Picture]:
        """What `write` wrote."""


@dataclass(frozen=True)
class GenEvalLayout:
    """GenEval's image folder."""

    folder: Path
    images_per_prompt: int

    def samples(self, prompt: BenchmarkPrompt) -> list[Path]:
        """The prompt's picture files."""
        names = (f"{number:05d}.png" for number in range(self.images_per_prompt))
        return [self.folder / prompt.name / "samples" / name for name in names]

    def complete(self, prompt: BenchmarkPrompt) -> bool:
        """Whether samples and metadata are there; the metadata is written last."""
        metadata = self.folder / prompt.name / "metadata.jsonl"
        return metadata.is_file() and all(path.is_file() for path in self.samples(prompt))

    def read(self, prompt: BenchmarkPrompt) -> list[Picture]:
        """The samples."""
        return [read_picture(path) for path in self.samples(prompt)]

    def write(self, prompt: BenchmarkPrompt, pictures: Sequence[Picture]) -> None:
        """Write samples, grid, metadata."""
        for path, picture in zip(self.samples(prompt), pictures, strict=True):
            write_atomic(path, png_bytes(picture))
        write_atomic(self.folder / prompt.name / "grid.png", png_bytes(sheet(pictures, columns=len(pictures))))
        write_atomic(self.folder / prompt.name / "metadata.jsonl", json.dumps(prompt.metadata))


@dataclass(frozen=True)
class DpgLayout:
    """DPG-Bench's image folder."""

    folder: Path

    def path(self, prompt: BenchmarkPrompt) -> Path:
        """The prompt's file."""
        return self.folder / f"{prompt.name}.png"

    def complete(self, prompt: BenchmarkPrompt) -> bool:
        """Whether the file is there."""
        return self.path(prompt).is_file()

    def read(self, prompt: BenchmarkPrompt) -> list[Picture]:
        """The pictures, cut as the evaluator cuts them."""
        whole = read_picture(self.path(prompt))
        side = whole.shape[1] // 2
        corners = [(row * side, column * side) for row in range(whole.shape[0] // side) for column in range(2)]
        return [whole[top : top + side, left : left + side] for top, left in corners]

    def write(self, prompt: BenchmarkPrompt, pictures: Sequence[Picture]) -> None:
        """Write the pictures as one, in rows of two, as the evaluator cuts them."""
        write_atomic(self.path(prompt), png_bytes(sheet(pictures, columns=2)))


def paint_benchmark(
    painter: Painter,
    prompts: Sequence[BenchmarkPrompt],
    layout: Layout,
    sampling: Sampling,
    *,
    images_per_prompt: int,
    batch_size: int,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda prompts: None,
) -> None:
    """Paint what is not there yet; `part` (rank, of how many) takes every so many prompts.

    Prompt i's picture j has random numbers i * images_per_prompt + j, whatever was there already.
    """
    rank, world_size = part
    waiting = [prompt for prompt in prompts[rank::world_size] if not layout.complete(prompt)]
    for prompt in waiting:
        pictures: list[Picture] = []
        for first in range(0, images_per_prompt, batch_size):
            size = min(batch_size, images_per_prompt - first)
            start = prompt.index * images_per_prompt + first
            pictures.extend(paint(painter, [prompt.painted] * size, sampling, first_image=start))
        layout.write(prompt, pictures)
        progress(1)


def _geneval_line(line: str, *, where: str) -> dict[str, Any]:
    try:
        metadata = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); expected one object a line") from error
    missing = [key for key in ("tag", "include", "prompt") if not isinstance(metadata, dict) or key not in metadata]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; expected tag, include and prompt, as GenEval's file has")
    if not str(metadata["prompt"]).strip():
        raise ValueError(f"{where} has an empty prompt; expected a text that says what to paint")
    return metadata


def _first(prompts: list[BenchmarkPrompt], count: int | None, *, source: Path) -> list[BenchmarkPrompt]:
    if not prompts:
        raise ValueError(f"{source} holds no prompts; expected at least one")
    if count is not None and not 1 <= count <= len(prompts):
        raise ValueError(f"count is {count}; expected 1 to {len(prompts)}, the prompts of {source}, or null for all")
    return prompts[:count]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Numbers by their value and before words."""
    parts = re.findall(r"\d+|\D+", name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
