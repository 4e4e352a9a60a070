"""What can be read off frozen features: shapes of the built-in world, cell by cell.

    python -m benchmarks.semantics --teacher runs/demo/teacher/model --tokenizer runs/demo/tokenizer/model [--json]

A small convolutional probe learns, from the features of 6000 training scenes, which of the five shapes covers each of
the 8 x 8 cells. Reported is the share of covered cells that it names rightly on 1000 new scenes of training pairs of
colour and shape (`seen`) and on 1000 with pairs that training never shows (`heldout`). Features that mean something
are read after few steps; pixels need many. Rows: raw pixels, the teacher's tokens, the codes' features, and the
semantic half of those.

    python -m benchmarks.semantics --tokenizer runs/demo/tokenizer/model --neighbourhood 3 --whiten

With `--neighbourhood` the probe has the form of a multimodal model's projector, two layers that read so many cells on a
side; `--whiten` gives it uncorrelated channels, in place of channels that are each of variance one.
"""

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rows import print_rows
from tokenflow.data.shapes import SHAPES, SceneSampler, Split, coverage, draw
from tokenflow.data.transforms import to_tensor
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import teacher_tower
from tokenflow.understanding.projector import whitening

IMAGE_SIZE, GRID, BATCH = 32, 8, 32
_COVERED = 0.3
"""Share of a cell that a shape must cover to be its."""


class Scenes(NamedTuple):
    """Pictures [N, 3, 32, 32] in [-1, 1] and, for every cell, 0 or a shape's number from 1: [N, 8, 8]."""

    images: Tensor
    labels: Tensor


def scenes(split: Split, count: int) -> Scenes:
    """The first scenes of a split."""
    sampler = SceneSampler(0, split)
    images, labels = [], []
    cell = IMAGE_SIZE // GRID
    for index in range(count):
        scene = sampler[index]
        images.append(draw(scene, IMAGE_SIZE))
        label = np.zeros((GRID, GRID), np.int64)
        for item in scene.objects:
            share = coverage(item, IMAGE_SIZE).reshape(GRID, cell, GRID, cell).mean((1, 3))
            label[share > _COVERED] = 1 + SHAPES.index(item.shape)
        labels.append(label)
    return Scenes(to_tensor(torch.from_numpy(np.stack(images))), torch.from_numpy(np.stack(labels)))


def probe(
    features: dict[str, Tensor],
    found: dict[str, Scenes],
    *,
    steps: int,
    neighbourhood: int | None = None,
    whiten: bool = False,
) -> dict[str, float]:
    """Share of covered cells named rightly, by split; features [N, C, 8, 8] of every split."""
    torch.manual_seed(0)
    train, labels = features["train"], found["train"].labels
    rows = train.transpose(0, 1).flatten(1).T
    deviation, mean = torch.std_mean(rows, dim=0)
    weight, bias = torch.diag(1 / (deviation + 1e-6)), -mean / (deviation + 1e-6)
    if whiten:
        weight, bias = whitening(rows)
    features = {split: F.conv2d(part, weight[..., None, None], bias) for split, part in features.items()}
    train = features["train"]
    layers: list[nn.Module] = []
    for width in (train.shape[1], 64, 64) if neighbourhood is None else (train.shape[1],):
        kernel = neighbourhood or 3
        layers += [nn.Conv2d(width, 64, kernel, padding=kernel // 2), nn.GELU()]
    net = nn.Sequential(*layers, nn.Conv2d(64, 1 + len(SHAPES), 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(train), (BATCH,))
        loss = F.cross_entropy(net(train[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    shares = {}
    for split in ("seen", "heldout"):
        with torch.no_grad():
            named = net(features[split]).argmax(1)
        covered = found[split].labels > 0
        shares[split] = (named == found[split].labels)[covered].float().mean().item()
    return shares


def _grid(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (GRID, GRID))


@torch.no_grad()
def read(images: Tensor, teacher: nn.Module | None, tokenizer: TokenFlowTokenizer | None) -> dict[str, Tensor]:
    """Features [N, C, 8, 8] by the name of what they are."""
    found = {"pixels": F.pixel_unshuffle(images, IMAGE_SIZE // GRID)}
    if teacher is not None:
        found["teacher"] = _grid(torch.cat([teacher(part) for part in images.split(256)]))
    if tokenizer is not None:
        codes = torch.cat([tokenizer.encode(part) for part in images.split(256)])
        found["codes"] = _grid(tokenizer.features(codes, "last_scale"))
        found["semantic half"] = _grid(tokenizer.features(codes, "semantic"))
    return found


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row a kind of features."""
    teacher = teacher_tower(arguments.teacher) if arguments.teacher else None
    tokenizer = TokenFlowTokenizer.from_pretrained(arguments.tokenizer).eval() if arguments.tokenizer else None
    sizes: dict[Split, int] = {"train": arguments.pictures, "seen": arguments.asked, "heldout": arguments.asked}
    found = {split: scenes(split, count) for split, count in sizes.items()}
    features = {split: read(part.images, teacher, tokenizer) for split, part in found.items()}
    for name in features["train"]:
        start = time.process_time()
        shares = probe(
            {split: part[name] for split, part in features.items()},
            found,
            steps=arguments.steps,
            neighbourhood=arguments.neighbourhood,
            whiten=arguments.whiten,
        )
        yield {
            "features": name,
            "steps": arguments.steps,
            **{split: round(share, 3) for split, share in shares.items()},
            "cpu_s": round(time.process_time() - start, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON row a kind of features, nothing else")
    parser.add_argument("--teacher", help="folder of a teacher")
    parser.add_argument("--tokenizer", help="folder of a tokenizer")
    parser.add_argument("--steps", type=int, default=600, help="of the probe, 32 pictures each (default %(default)s)")
    parser.add_argument("--neighbourhood", type=int, choices=[1, 3, 5, 7], help="cells on a side for a projector")
    parser.add_argument("--whiten", action="store_true", help="uncorrelated channels")
    parser.add_argument("--pictures", type=int, default=6000, help="training scenes (default %(default)s)")
    parser.add_argument("--asked", type=int, default=1000, help="scenes of each split asked (default %(default)s)")
    arguments = parser.parse_args()
    print_rows(measure(arguments), as_json=arguments.json)


if __name__ == "__main__":
    main()
