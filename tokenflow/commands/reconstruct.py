"""`tokenflow reconstruct`: pictures to codes and back."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenflow import TokenFlowTokenizer
from tokenflow.commands.targets import check_folder
from tokenflow.data.samples import BadSample
from tokenflow.data.transforms import center_crop, decode_image, to_array, to_tensor
from tokenflow.evaluation.grid import Picture, tile
from tokenflow.evaluation.measure import png_bytes, write_atomic
from tokenflow.evaluation.reconstruction import psnr, reconstruct_uint8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="picture files of any size and format")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="what save_pretrained wrote, or a hub id")
    parser.add_argument(
        "--out", "--output", type=Path, default=Path("reconstructions"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--side_by_side", action="store_true", help="write the original beside its reconstruction in one picture"
    )


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct each picture, write a PNG, print a line each; 1 where some, but not all, could not be read."""
    device = choose_device(arguments.device)
    check_folder(arguments.out, option="--out")
    targets = target_paths(arguments.images, arguments.out)
    pictures, complaints = _readable(arguments.images)
    tokenizer = TokenFlowTokenizer.from_pretrained(arguments.tokenizer).eval().to(device)
    size = tokenizer.config.image_size
    values = []
    for path, target in zip(arguments.images, targets, strict=True):
        if path not in pictures:
            continue
        picture = pictures[path]
        original = to_array(center_crop(picture, size))
        reconstruction, codes = reconstruct(tokenizer, original, device=device)
        shown = reconstruction
        if arguments.side_by_side:
            shown = tile([np.stack([original, reconstruction])], columns=2)
        write_atomic(target, png_bytes(shown))
        values.append(picture_psnr(original, reconstruction))
        note = "" if picture.size == (size, size) else f", cropped from {picture.width}x{picture.height}"
        print(
            f"{path}: PSNR {values[-1]:.2f} dB, {codes.numel()} codes ({codes.unique().numel()} different), "
            f"{size}x{size}{note} -> {target}"
        )
    if len(values) > 1:
        print(f"mean PSNR of {len(values)} pictures: {sum(values) / len(values):.2f} dB")
    for complaint in complaints:
        print(f"left out: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


def _readable(paths: list[Path]) -> tuple[dict[Path, Image.Image], list[str]]:
    """The pictures that can be read, and what is wrong with the others; raises the first fault where all have one."""
    found, faults = {}, []
    for path in paths:
        try:
            found[path] = read_picture(path)
        except (ValueError, OSError) as error:
            faults.append(error)
    if not found:
        raise faults[0]
    return found, [str(fault) for fault in faults]


def reconstruct(
    tokenizer: TokenFlowTokenizer, original: Picture, *, device: torch.device
) -> tuple[Picture, torch.Tensor]:
    """A uint8 picture [S, S, 3] through the tokenizer: the picture drawn from its codes, and the codes [L]."""
    codes = tokenizer.encode(to_tensor(torch.from_numpy(original)[None]).to(device))
    reconstruction = reconstruct_uint8(tokenizer.decode(codes))[0]
    return reconstruction.permute(1, 2, 0).cpu().numpy(), codes[0].cpu()


def picture_psnr(original: Picture, reconstruction: Picture) -> float:
    """PSNR in dB of two uint8 pictures [H, W, 3]."""
    pair = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in (original, reconstruction)]
    return float(psnr(*pair))


def read_picture(path: Path) -> Image.Image:
    """A picture file as RGB, upright; OSError when it is absent, ValueError when it is no picture."""
    if not path.is_file():
        found, remedy = "no such file", "Check the path."
        if path.is_dir():
            found, remedy = "a folder", f"Name its pictures, as in {path}/*.jpg"
        raise FileNotFoundError(f"{path}: {found}; expected a picture file. {remedy}")
    try:
        return decode_image(path.read_bytes())
    except BadSample as error:
        raise ValueError(f"{path}: {error}. Expected a JPEG, PNG or the like.") from error


def target_paths(images: list[Path], folder: Path) -> list[Path]:
    """`NAME.png` in the folder for each picture; pictures of one name get their number behind it."""
    stems = [path.stem for path in images]
    names = [
        stem if stems.count(stem) == 1 else f"{stem}-{stems[: index + 1].count(stem)}"
        for index, stem in enumerate(stems)
    ]
    targets = [folder / f"{name}.png" for name in names]
    for image, target in zip(images, targets, strict=True):
        if target.resolve() in {path.resolve() for path in images}:
            raise ValueError(f"{image} would be overwritten by a reconstruction; choose another folder with --out")
    return targets


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU; a named device that is not there is an error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    available = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= available:
        raise ValueError(f"device is {name!r}, but torch sees {available} GPUs; use --device cpu or auto")
    return device
