"""The paper's reconstruction figures, to be read beside ours.

Source: TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation, arXiv 2412.03069v2, Table 2
(ImageNet-1k validation set, 50,000 pictures, 256 and 384 pixels) and, for 224 pixels, rFID of the ablations in Table 5.
The tables give no usage, so that column is ours alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

IMAGES = 50_000
"""Pictures of ImageNet-1k's validation set."""

SSIM_NOTE = (
    "The paper does not say how SSIM was taken; its authors' script gives data_range 2 for pictures in [0, 1], which "
    "flatters, so its values stand in that column. Ours is given in both."
)


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of a table of the paper; None where it has a dash, or no such column."""

    model: str
    table: int
    resolution: int
    ratio: float | None = None
    """Pixels of the side of one position of the finest scale."""
    levels: int | None = None
    """Residual levels: scales here, codes a position in RQ-VAE and VILA-U."""
    rfid: float
    psnr: float | None = None
    ssim: float | None = None


def _row(model: str, resolution: int, ratio: float, levels: int, *values: float) -> PaperRow:
    return PaperRow(
        model=model,
        table=2,
        resolution=resolution,
        ratio=ratio,
        levels=levels,
        **dict(zip(("rfid", "psnr", "ssim"), values, strict=False)),
    )


PAPER_ROWS: tuple[PaperRow, ...] = (
    _row("VQ-GAN", 256, 16, 1, 4.98, 20.00, 0.629),
    _row("LlamaGen", 256, 16, 1, 2.19, 20.79, 0.675),
    _row("RQ-VAE", 256, 32, 4, 3.20),
    _row("RQ-VAE", 256, 16, 4, 1.30),
    _row("VAR", 256, 16, 10, 1.00, 22.63, 0.755),
    _row("VILA-U", 256, 16, 4, 1.80),
    _row("TokenFlow", 256, 16, 9, 1.37, 21.41, 0.687),
    _row("LlamaGen", 384, 14.2, 1, 0.94, 21.94, 0.726),
    _row("VILA-U", 384, 14.2, 16, 1.25),
    _row("VAR", 384, 16, 13, 2.09, 22.73, 0.774),
    _row("TokenFlow", 384, 14.2, 15, 0.63, 22.77, 0.731),
    PaperRow(model="semantic codebook only", table=5, resolution=224, rfid=8.07),
    PaperRow(model="+ shared mapping", table=5, resolution=224, rfid=3.96),
    PaperRow(model="+ multi-scale quantisation", table=5, resolution=224, rfid=2.18),
    PaperRow(model="+ CLIP initialisation", table=5, resolution=224, rfid=2.16),
)

_HEADER = ("model", "table", "res.", "ratio", "levels", "rFID", "PSNR", "SSIM (range 2)", "SSIM (range 255)", "usage")


def beside_ours(
    *, name: str, metrics: Mapping[str, float | str], images: int, image_size: int, scales: Sequence[int]
) -> dict[str, Any]:
    """The paper's rows, ours, and whether they compare: plain values, for `result.json` and the two printed forms.

    Table 5's rows are there at 224 pixels only.
    """
    rows = [row for row in PAPER_ROWS if row.table == 2 or row.resolution == image_size]
    ours = {
        "model": name,
        "resolution": image_size,
        "ratio": round(image_size / max(scales), 1),
        "levels": len(scales),
        **{key: metrics[key] for key in ("rfid", "psnr", "ssim_authors", "ssim", "usage")},
    }
    return {
        "source": "arXiv 2412.03069v2, Tables 2 and 5",
        "rows": [asdict(row) for row in rows],
        "ours": ours,
        "comparable": comparability(images=images, image_size=image_size),
        "ssim": SSIM_NOTE,
    }


def comparability(*, images: int, image_size: int) -> str:
    """One sentence: which rows of the paper a result may be held against."""
    rule = f"The paper's rows compare only with the same {IMAGES} pictures of ImageNet-1k val at the same resolution"
    sizes = sorted({row.resolution for row in PAPER_ROWS})
    if images != IMAGES or image_size not in sizes:
        return f"{rule}; ours is over {images} pictures at {image_size} x {image_size}: NOT comparable."
    return f"{rule}; ours is over {images} pictures at {image_size} x {image_size}, if they are those."


def as_text(table: Mapping[str, Any]) -> str:
    """The rows as aligned columns, ours last, and below them what to know before comparing."""
    lines = _cells(table)
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, table["comparable"], table["ssim"]])


def as_markdown(table: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    header, *rows = _cells(table)
    lines = [header, ["---"] + ["---:"] * (len(_HEADER) - 1), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{table['comparable']} {table['ssim']}\n"


def _cells(table: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [
            *(row["model"], f"{row['table']}", f"{row['resolution']}", _number(row["ratio"], 1)),
            *(_number(row["levels"], 0), _number(row["rfid"], 2), _number(row["psnr"], 2), _number(row["ssim"], 3)),
            *("-", "-"),
        ]
        for row in table["rows"]
    ]
    ours = table["ours"]
    mine = [
        *(ours["model"], "ours", f"{ours['resolution']}", _number(ours["ratio"], 1), _number(ours["levels"], 0)),
        *(_number(ours["rfid"], 2), _number(ours["psnr"], 2), _number(ours["ssim_authors"], 3)),
        *(_number(ours["ssim"], 3), _number(ours["usage"], 4)),
    ]
    return [list(_HEADER), *rows, mine]


def _number(value: float | str | None, decimals: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.{decimals}f}".removesuffix(".0") if decimals == 1 else f"{value:.{decimals}f}"
