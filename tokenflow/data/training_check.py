"""Does training read it? The training loader itself is built on a path, and reads a batch or a whole epoch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tokenflow.data.codes import codes_of_source
from tokenflow.data.config import DataConfig, SourceConfig
from tokenflow.data.loader import Loader
from tokenflow.data.sources import open_source


@dataclass(frozen=True, kw_only=True)
class TrainingCheck:
    """What became of it."""

    readable: bool
    problem: str
    """Why training would stop; "" when it would not."""
    samples_read: int
    skipped: int
    """Unusable samples that others stood in for."""
    batch_shape: tuple[int, ...]
    """Of the last batch of images or codes; () when there was none."""

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def check_training(
    path: str,
    *,
    image_size: int = 256,
    batch_size: int = 32,
    read: Literal["batch", "all"] = "batch",
    workers: int = 0,
    progress: Callable[[int], None] = lambda samples: None,
) -> TrainingCheck:
    """Build the training loader on a path and read the first batch, or all whole batches of an epoch.

    Args:
        path: As in `SourceConfig.path`.
        image_size: Of the pictures in a batch; codes have their own.
        batch_size: Lowered to the number of samples where there are fewer.
        read: What to read.
        workers: Processes of the loader.
        progress: Is told how many samples are read.
    """
    samples = skipped = 0
    shape: tuple[int, ...] = ()
    loader = None
    try:
        source = SourceConfig(path=path)
        codes = codes_of_source(source)
        config = DataConfig(
            sources=(source,), image_size=codes.image_size if codes else image_size, num_workers=workers
        )
        batch_size = min(batch_size, sum(open_source(source).shard_sizes))
        loader = Loader(config, global_batch_size=batch_size, micro_batch_size=batch_size, seed=0)
        for _ in range(loader.steps_per_epoch if read == "all" else 1):
            batch, _ = next(loader)
            samples = loader.samples_read
            shape = tuple((batch["codes"] if codes else batch["images"]).shape)
            progress(samples)
        problem = ""
    except (ValueError, OSError) as error:
        problem = " ".join(str(error).split())
    finally:
        if loader is not None:
            skipped, samples = loader.bad_reads, loader.samples_read
            loader.close()
    return TrainingCheck(
        readable=not problem, problem=problem, samples_read=samples, skipped=skipped, batch_shape=shape
    )


def too_many_unusable(*, unusable: int, samples: int) -> str:
    """Why training would stop in the course of an epoch with so many unusable samples; "" when it would not."""
    config = DataConfig(sources=(SourceConfig(path="-"),), image_size=256)
    if unusable <= max(config.min_bad_samples, config.max_bad_fraction * samples):
        return ""
    return (
        f"{unusable:,} of {samples:,} samples cannot be used, more than training accepts (data.max_bad_fraction "
        f"{config.max_bad_fraction}, data.min_bad_samples {config.min_bad_samples}): write the shards again with "
        "`tokenflow make-shards`, which leaves them out"
    )
