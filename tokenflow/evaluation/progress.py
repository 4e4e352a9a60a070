"""How far an evaluation is: a bar on a terminal, plain lines otherwise."""

import logging
import sys
import time
from datetime import timedelta
from types import TracebackType

logger = logging.getLogger(__name__)


class EvaluationProgress:
    """Images done of all, images a second, time left. `with EvaluationProgress(...) as progress: progress.update(n)`.

    Args:
        total: Images of all ranks together.
        done: Images that an earlier process has counted; they do not enter the rate.
        active: False on all ranks but one.
        seconds_between_lines: Plain lines come no closer than this, but for the last.
        verbs: What is being done, and what has been.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        active: bool = True,
        seconds_between_lines: float = 10.0,
        verbs: tuple[str, str] = ("evaluating", "evaluated"),
    ) -> None:
        self.total = total
        self.done = self._first = done
        self._active = active
        self._seconds = seconds_between_lines
        self._began = self._last_line = time.monotonic()
        self._bar = None
        self._doing, self._done = verbs

    def __enter__(self) -> "EvaluationProgress":
        if not self._active:
            return self
        if self.done:
            logger.info("continuing after %d of %d images", self.done, self.total)
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._row = self._bar.add_task(self._doing, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, done: int) -> None:
        """`done` images are counted, those of an earlier process among them."""
        self.done = min(done, self.total)
        if not self._active:
            return
        now = time.monotonic()
        rate = (self.done - self._first) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._row, completed=self.done, rate=f"{rate:.1f} images/s")
        elif now - self._last_line >= self._seconds or self.done >= self.total:
            self._last_line = now
            left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
            logger.info("%s %d/%d images  %.1f images/s  eta %s", self._done, self.done, self.total, rate, left)


def _make_bar():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
