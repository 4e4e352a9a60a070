"""`tokenflow reconstruct`: pictures to codes and back."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenflow import TokenFlowTokenizer
from tokenflow.commands.targets import check_folder
from tokenflow.data.folders import FolderSource
from tokenflow.data.samples import BadSample
from tokenflow.data.transforms import center_crop, decode_image, to_array, to_tensor
from tokenflow.evaluation.blank_pictures import fault_of_pictures
from tokenflow.evaluation.grid import Picture, tile
from tokenflow.evaluation.measure import png_bytes, write_atomic
from tokenflow.evaluation.reconstruction import psnr, reconstruct_uint8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="pictures of any size and format, or folders of them"
    )
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="what save_pretrained wrote, or a hub id")
    parser.add_argument(
        "--out", "--output", type=Path, default=Path("reconstructions"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--side_by_side", action="store_true", help="write the original beside its reconstruction in one picture"
    )


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct each picture, write a PNG, print a line each; 1 where some could not be read or came back blank."""
    device = choose_device(arguments.device)
    check_folder(arguments.out, option="--out")
    images = picture_files(arguments.images, arguments.out)
    targets = target_paths(images, arguments.out)
    faults: list[ValueError | OSError] = []
    pictures = _readable(images, targets, faults)
    # before a large tokenizer is read
    first = next(pictures, None)
    if first is None:
        raise faults[0]
    tokenizer = TokenFlowTokenizer.from_pretrained(arguments.tokenizer).eval().to(device)
    size = tokenizer.config.image_size
    values, blank = [], []
    for path, target, picture in chain([first], pictures):
        original = to_array(center_crop(picture, size))
        reconstruction, codes = reconstruct(tokenizer, original, device=device)
        shown = reconstruction
        if arguments.side_by_side:
            shown = tile([np.stack([original, reconstruction])], columns=2)
        write_atomic(target, png_bytes(shown))
        values.append(picture_psnr(original, reconstruction))
        if of_one_colour(reconstruction) and not of_one_colour(original):
            blank.append(path)
        how = "resized" if picture.width == picture.height else "cropped"
        note = "" if picture.size == (size, size) else f", {how} from {picture.width}x{picture.height}"
        print(
            f"{path}: PSNR {values[-1]:.2f} dB, {codes.numel()} codes ({codes.unique().numel()} different), "
            f"{size}x{size}{note} -> {target}"
        )
    if len(values) > 1:
        print(f"mean PSNR of {len(values)} pictures: {sum(values) / len(values):.2f} dB")
    if blank:
        print(
            f"{len(blank)} of {len(values)} pictures came back in one colour, first {blank[0]}: the weights are broken "
            f"or not this model's. Try: tokenflow doctor --model {arguments.tokenizer}",
            file=sys.stderr,
        )
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    return 1 if faults or blank else 0


def picture_files(paths: list[Path], written: Path) -> list[Path]:
    """The files named, and those of the folders named; what an earlier run wrote below `written` is passed over."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [path / name for name in FolderSource(path).files]
        if written.resolve() != path.resolve():
            inside = [file for file in inside if not file.resolve().is_relative_to(written.resolve())]
        found += inside
    return found


def _readable(
    paths: list[Path], targets: list[Path], faults: list[ValueError | OSError]
) -> Iterator[tuple[Path, Path, Image.Image]]:
    """File, target and picture of those that can be read, one by one; what is wrong with the others joins `faults`."""
    for path, target in zip(paths, targets, strict=True):
        try:
            picture = read_picture(path)
        except (ValueError, OSError) as error:
            faults.append(error)
            continue
        yield path, target, picture


def reconstruct(
    tokenizer: TokenFlowTokenizer, original: Picture, *, device: torch.device
) -> tuple[Picture, torch.Tensor]:
    """A uint8 picture [S, S, 3] through the tokenizer: the picture drawn from its codes, and the codes [L]."""
    codes = tokenizer.encode(to_tensor(torch.from_numpy(original)[None]).to(device))
    reconstruction = reconstruct_uint8(tokenizer.decode(codes))[0]
    return reconstruction.permute(1, 2, 0).cpu().numpy(), codes[0].cpu()


def of_one_colour(picture: Picture) -> bool:
    """Whether a uint8 picture [H, W, 3] is black, grey or any one colour."""
    return fault_of_pictures(to_tensor(torch.from_numpy(picture)[None])) is not None


def picture_psnr(original: Picture, reconstruction: Picture) -> float:
    """PSNR in dB of two uint8 pictures [H, W, 3]."""
    pair = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in (original, reconstruction)]
    return float(psnr(*pair))


def read_picture(path: Path) -> Image.Image:
    """A picture file as RGB, upright; OSError when it is absent, ValueError when it is no picture."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a picture file. Check the path.")
    try:
        return decode_image(path.read_bytes())
    except BadSample as error:
        raise ValueError(f"{path}: {error}. Expected a JPEG, PNG or the like.") from error


def target_paths(images: list[Path], folder: Path) -> list[Path]:
    """`NAME.png` in the folder for each picture; pictures of one name get their number behind it."""
    stems = Counter(path.stem for path in images)
    numbers: Counter[str] = Counter()
    names = []
    for stem in (path.stem for path in images):
        numbers[stem] += 1
        names.append(stem if stems[stem] == 1 else f"{stem}-{numbers[stem]}")
    targets = [folder / f"{name}.png" for name in names]
    sources = {path.resolve() for path in images}
    for image, target in zip(images, targets, strict=True):
        if target.resolve() in sources:
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
