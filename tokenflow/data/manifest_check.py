"""Whether shards are what their folder's manifest.json says."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenflow.data.counts import MANIFEST_NAME


@dataclass(frozen=True, kw_only=True)
class ManifestCheck:
    """Shards against manifests."""

    listed: int
    """Shards that were looked at and are listed."""
    hashed: int
    """Of those, the ones whose sha256 was compared."""
    unlisted: tuple[str, ...]
    """Shards beside a manifest that does not list them."""
    missing: tuple[str, ...]
    """Shards that a manifest lists and that are not there."""
    different: tuple[str, ...]
    """What does not agree, a line a shard."""

    @property
    def holds(self) -> bool:
        """Whether everything that is listed is there and as listed."""
        return not self.missing and not self.different

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self) | {"holds": self.holds}

    @classmethod
    def of(cls, paths: Sequence[str], found: Sequence[dict[str, Any]]) -> "ManifestCheck | None":
        """Compare shards with the manifests of their folders; None where there is no manifest.

        Args:
            paths: The shards that were looked at.
            found: For each of them samples, bytes and sha256 (None: not computed).
        """
        manifests = {folder: listed_shards(folder) for folder in {os.path.dirname(path) for path in paths}}
        if not any(manifests.values()):
            return None
        unlisted, different, hashed, listed = [], [], 0, 0
        for path, actual in zip(paths, found, strict=True):
            entries, name = manifests[os.path.dirname(path)], os.path.basename(path)
            if not entries:
                continue
            if name not in entries:
                unlisted.append(path)
                continue
            listed += 1
            hashed += actual["sha256"] is not None
            wrong = [
                f"{field} {_short(actual[field])}, the manifest says {_short(entries[name][field])}"
                for field in ("samples", "bytes", "sha256")
                if field in entries[name] and actual[field] is not None and actual[field] != entries[name][field]
            ]
            different += [f"{path}: {'; '.join(wrong)}"] if wrong else []
        gone = [os.path.join(folder, name) for folder, entries in manifests.items() for name in entries]
        return cls(
            listed=listed,
            hashed=hashed,
            unlisted=tuple(unlisted),
            missing=tuple(sorted(path for path in gone if not os.path.exists(path))),
            different=tuple(different),
        )


def listed_shards(folder: str) -> dict[str, dict[str, Any]]:
    """{name: entry} of a folder's manifest; empty without one. Raises ValueError for a manifest of another kind."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        return {}
    try:
        return {shard["name"]: shard for shard in json.loads(path.read_text())["shards"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is no manifest of shards ({type(error).__name__}: {error}); expected {{"shards": [...]}}. '
            "Write the shards again, or remove it: samples are then counted."
        ) from error


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _short(value: Any) -> str:
    return f"{value:.12}..." if isinstance(value, str) else f"{value:,}"
