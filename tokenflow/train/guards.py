"""What keeps a long run from dying or from training on rubbish: non-finite steps, stop signals."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from tokenflow.train import distributed
from tokenflow.train.engine import Engine

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """A run kept producing NaN or infinity, whatever was tried."""


@dataclass(frozen=True)
class Verdict:
    """What all ranks agreed on at the end of a step."""

    non_finite: tuple[str, ...]
    """Names of loss terms and gradients that were not finite on some rank."""
    stop: bool
    """Whether some rank was asked to stop."""


class StepGuard:
    """Watches one step's terms and gradients; one small reduction a step makes all ranks agree."""

    def __init__(self) -> None:
        self._flags: dict[str, Tensor] = {}

    def start_step(self) -> None:
        """Forget the last step."""
        self._flags = {}

    def watch(self, terms: Mapping[str, Tensor]) -> None:
        """Take in a micro-batch's terms (scalars, by name; the same names on every rank)."""
        for name, value in terms.items():
            flag = (~torch.isfinite(value.detach().float())).any().float()
            self._flags[name] = flag if name not in self._flags else torch.maximum(self._flags[name], flag)

    def judge(self, engines: Mapping[str, Engine], *, stop: bool) -> Verdict:
        """Agree over all ranks; call it after the step's last backward and before any engine's step."""
        flags = dict(self._flags)
        flags.update({f"gradient of {name}": engine.non_finite_gradient() for name, engine in engines.items()})
        device = distributed.device()
        row = torch.stack([torch.tensor(float(stop), device=device), *(flag.to(device) for flag in flags.values())])
        values = distributed.max_over_ranks(row).tolist()
        bad = tuple(name for name, value in zip(flags, values[1:], strict=True) if value > 0)
        return Verdict(non_finite=bad, stop=values[0] > 0)


class StopSignal:
    """SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT ask for a checkpoint and an orderly end.

    A second SIGINT ends the process at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        try:
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            logger.info("not in the main thread: signals will end the process without a checkpoint")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
