"""Results of the built-in world's prompts on disk and on a terminal: tables, and a grid of prompts x pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenflow.data.captions import PROMPT_KINDS
from tokenflow.evaluation.compositional import CompositionalResult, GalleryRow
from tokenflow.evaluation.grid import Picture, enlarge
from tokenflow.evaluation.measure import png_bytes, write_atomic
from tokenflow.evaluation.paper_generation import TABLE_6, aligned, markdown

RIGHT, WRONG = (26, 127, 75), (179, 55, 47)
_LABEL_WIDTH, _FRAME, _GAP = 330, 3, 4


def kind_cells(result: CompositionalResult) -> list[list[str]]:
    """Shares by kind and split under the main setting: cells of a table, the header first."""
    score = result.scores[0]
    lines = [["kind", "seen", "held out"]]
    for kind in (*PROMPT_KINDS, "all kinds"):
        parts = [score.overall(s) if kind == "all kinds" else score.kinds[s].get(kind) for s in ("seen", "heldout")]
        lines.append([kind, *("-" if part is None else f"{part.value:.3f} ± {part.error:.3f}" for part in parts)])
    return lines


def setting_cells(result: CompositionalResult) -> list[list[str]]:
    """Every way to sample: cells of a table, the header first."""
    lines = [["steps", "guidance", "seen", "held out", "prompts"]]
    for row in result.rows():
        shares = [f"{row[split]:.3f} ± {row[f'{split}_error']:.3f}" for split in ("seen", "heldout")]
        asked = row["seen_images"] + row["heldout_images"]
        lines.append([row["steps"], f"{row['guidance_scale']:g}", *shares, f"{asked}"])
    return lines


def paper_cells() -> list[list[str]]:
    """The paper's Table 6: cells of a table, the header first."""
    lines = [["top-k", "top-p", "GenEval", "ImageReward"]]
    for row in TABLE_6:
        steps = (", ".join(f"{value:g}" for value in values) for values in (row.top_k, row.top_p))
        lines.append([*(f"[{values}]" for values in steps), f"{row.geneval:.3f}", f"{row.image_reward:.3f}"])
    return lines


def compositional_text(result: CompositionalResult) -> str:
    """Both tables for a terminal."""
    return f"{aligned(kind_cells(result))}\n\n{aligned(setting_cells(result))}"


def compositional_markdown(result: CompositionalResult, *, title: str, protocol: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    gallery = "\n".join(
        f"- {row.prompt} ({row.kind}{', held out' if row.split == 'heldout' else ''}): "
        f"{sum(row.marks)} of {len(row.marks)} right"
        for row in result.gallery
    )
    how = "\n".join(f"- {name}: {value}" for name, value in protocol.items())
    return (
        f"# {title}\n\nShare of prompts whose picture the verifier reads back exactly, ± one standard error.\n\n"
        f"{markdown(kind_cells(result))}\n\n## Steps and guidance\n\n{markdown(setting_cells(result))}\n\n"
        f"The paper's Table 6 (arXiv 2412.03069v2), its 7B model on GenEval, for the direction:\n\n"
        f"{markdown(paper_cells())}\n\n## Pictures (grid.png)\n\n{gallery}\n\n## Protocol\n\n{how}\n"
    )


def save_gallery(rows: Sequence[GalleryRow], path: str | Path) -> Path:
    """Write prompts x pictures as a PNG; a green frame is right, a red one wrong."""
    return write_atomic(path, png_bytes(gallery_picture(rows)))


def gallery_picture(rows: Sequence[GalleryRow]) -> Picture:
    """Each row a prompt and its framed pictures; tiny pictures are enlarged by a whole factor."""
    side = rows[0].pictures.shape[1]
    factor = max(1, -(-64 // side))
    cell = side * factor + 2 * _FRAME + _GAP
    columns = max(len(row.pictures) for row in rows)
    canvas = np.full((len(rows) * cell + _GAP, _LABEL_WIDTH + columns * cell, 3), 255, np.uint8)
    for index, row in enumerate(rows):
        top = _GAP + index * cell
        canvas[top : top + cell - _GAP, _GAP:_LABEL_WIDTH] = _label(row, height=cell - _GAP)
        for column, (picture, right) in enumerate(zip(row.pictures, row.marks, strict=True)):
            left = _LABEL_WIDTH + column * cell
            canvas[top : top + cell - _GAP, left : left + cell - _GAP] = framed(enlarge(picture, factor), right=right)
    return canvas


def framed(picture: Picture, *, right: bool) -> Picture:
    """A picture [H, W, 3] in a green or red frame."""
    height, width = picture.shape[:2]
    canvas = np.empty((height + 2 * _FRAME, width + 2 * _FRAME, 3), np.uint8)
    canvas[:] = RIGHT if right else WRONG
    canvas[_FRAME:-_FRAME, _FRAME:-_FRAME] = picture
    return canvas


def _label(row: GalleryRow, *, height: int) -> Picture:
    import textwrap

    from PIL import Image, ImageDraw

    label = Image.new("RGB", (_LABEL_WIDTH - _GAP, height), "white")
    kind = f"{row.kind}{', held out' if row.split == 'heldout' else ''}"
    text = "\n".join([*textwrap.wrap(row.prompt, 50)[:3], f"({kind})"])
    ImageDraw.Draw(label).multiline_text((4, height // 2), text, fill="black", anchor="lm", spacing=3)
    return np.asarray(label)
