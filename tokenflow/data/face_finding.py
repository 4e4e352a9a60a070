"""Finds the faces in a set of shards or a folder of pictures, and writes them into the samples' records.

Processes look at samples; one process, in order, writes. Doing it again changes nothing, and after an interruption it
continues: at the shard, or, in a folder, at the picture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenflow.data.config import SourceConfig
from tokenflow.data.face_detectors import FaceDetector
from tokenflow.data.face_index import ShardFaces
from tokenflow.data.face_records import FaceCounts, FaceRecords, FolderRecords, ShardRecords
from tokenflow.data.face_search import FaceSearch, FacesOf
from tokenflow.data.folders import FolderSource
from tokenflow.data.ordered_workers import WorkerDied, ordered_map
from tokenflow.data.shards import ShardSource
from tokenflow.data.sources import open_source

_BLOCK = 8
Block = tuple[int, int, range]
"""(shard, number of the first sample in it, indices in the source)."""


@dataclass(frozen=True, kw_only=True)
class FaceReport:
    """What was found."""

    samples: int
    with_faces: int
    faces: int
    detector: str
    written: int
    """Records that were written or changed, by this run and those that it continued."""
    unknown: dict[str, int]
    """Samples that cannot be looked at, by the code of the reason; they count as having no face."""
    kept: dict[str, int]
    """Samples whose faces stand in the index alone, by the code of the reason."""

    @property
    def share(self) -> float:
        """Of the samples with a face among all."""
        return self.with_faces / max(1, self.samples)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return vars(self) | {"share": round(self.share, 6)}


class FaceFinding:
    """The search through one path; a second one with the same arguments continues where the first stopped."""

    def __init__(self, path: str, *, detector: FaceDetector):
        """Look at what is there; writes nothing but the index of a shard that training makes too.

        Raises:
            ValueError: There are no samples.
        """
        self.source = open_source(SourceConfig(path=path))
        self.detector = detector
        self.total = sum(self.source.shard_sizes)
        self._search = FaceSearch(source=self.source, detector=detector)

    def preview(self, count: int) -> list[FacesOf]:
        """Look at up to `count` samples, evenly spread; writes nothing."""
        count = min(count, self.total)
        return self._search([number * self.total // count for number in range(count)])

    def run(self, *, workers: int = 0, progress: Callable[[int], None] = lambda samples: None) -> FaceReport:
        """Look at all samples, write records, index and report.

        Args:
            workers: Processes that look; 0 does it in this one. The result is the same for any number.
            progress: Called with the number of samples that are done with.

        Raises:
            ValueError: Another process writes to the same place.
        """
        with self._records() as records:
            found = self._found(records, workers)
            try:
                for (shard, start, indices), faces in found:
                    records.add(shard, start, faces)
                    progress(indices.stop)
            finally:
                found.close()
            progress(self.total)
            return self._report(*records.finish())

    def _records(self) -> FaceRecords:
        if isinstance(self.source, FolderSource):
            return FolderRecords(self.source, detector=self.detector.name)
        assert isinstance(self.source, ShardSource)
        return ShardRecords(self.source, detector=self.detector.name)

    def _found(self, records: FaceRecords, workers: int) -> Iterator[tuple[Block, list[FacesOf]]]:
        searched = ordered_map(self._look, self._blocks(records), workers=workers)
        try:
            for block, faces in searched:
                yield block, self._look_apart(block) if isinstance(faces, WorkerDied) else faces
        finally:
            searched.close()

    def _blocks(self, records: FaceRecords) -> Iterator[Block]:
        first = 0
        for shard, size in enumerate(self.source.shard_sizes):
            if not size or not records.done(shard):
                for start in range(0, size, _BLOCK):
                    yield shard, start, range(first + start, first + min(start + _BLOCK, size))
            first += size

    def _look(self, block: Block) -> list[FacesOf]:
        return self._search(block[2])

    def _look_apart(self, block: Block) -> list[FacesOf]:
        """The samples of a block that ended a worker, so that only the one that does it is lost."""
        found = []
        ones = (range(index, index + 1) for index in block[2])
        for _, faces in ordered_map(self._search, ones, workers=1):
            if isinstance(faces, WorkerDied):
                detail = f"the process that looked at it ended with exit code {faces.exit_code}: out of memory?"
                faces = [FacesOf(reason="crashed", detail=detail)]
            found += faces
        return found

    def _report(self, entries: dict[str, ShardFaces], counts: FaceCounts) -> FaceReport:
        together = [entry.counts for entry in entries.values()]
        return FaceReport(
            samples=sum(map(len, together)),
            with_faces=sum(int(np.count_nonzero(many)) for many in together),
            faces=sum(int(many.sum(dtype=np.int64)) for many in together),
            detector=self.detector.name,
            written=counts.written,
            unknown=dict(sorted(counts.unknown.items())),
            kept=dict(sorted(counts.kept.items())),
        )
