"""Whether pictures of the built-in world still show their scene: the verifier that `evaluate_tokenizer` takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenflow.data.shapes import Scene
from tokenflow.data.verifier import matches
from tokenflow.evaluation.grid import Picture


def verify_scenes(pictures: Sequence[Picture], records: Sequence[Mapping[str, Any] | None]) -> float:
    """Share of uint8 pictures [S, S, 3] from which every object of their record's scene reads back rightly.

    Records are those of `tokenflow.data.shape_shards.write_shapes` (a DataConfig with `records=True`).
    """
    scenes = [(record or {}).get("scene") for record in records]
    if None in scenes:
        raise ValueError(f"record {scenes.index(None)} holds no scene, expected one as write_shapes stores it")
    right = [matches(Scene.from_json(scene), picture) for scene, picture in zip(scenes, pictures, strict=True)]
    return sum(right) / len(right)
