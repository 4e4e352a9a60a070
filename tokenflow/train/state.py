"""Where a run is: step, samples, data cursor, skipped steps; and the random number generators of a rank."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class TrainState:
    """Everything about a run's position that does not depend on the number of ranks. JSON-able."""

    seed: int = 0
    """The run's seed; random draws of a step are functions of (seed, step)."""
    step: int = 0
    """Optimiser steps done, skipped ones included. While a step runs: its index."""
    samples: int = 0
    """Samples consumed, over all ranks."""
    cursor: dict[str, Any] = field(default_factory=dict)
    """The loader's position after the last sample consumed; empty at the start."""
    skipped_steps: int = 0
    """Steps skipped because something was not finite."""
    skipped_in_a_row: int = 0
    """How many of them just now, without a finite one between."""
    rollbacks: int = 0
    """How often the weights went back to a checkpoint."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `state.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        """Inverse of `to_json`.

        Raises:
            ValueError: Fields are missing or unknown.
        """
        expected = {f.name for f in dataclasses.fields(cls)}
        if set(values) != expected:
            raise ValueError(f"state has the fields {sorted(values)}; expected {sorted(expected)}")
        return cls(**values)


def plain_cursor(cursor: Any) -> dict[str, Any]:
    """A loader's cursor (dataclass or dictionary) as a JSON-able dictionary."""
    if dataclasses.is_dataclass(cursor) and not isinstance(cursor, type):
        return dataclasses.asdict(cursor)
    return dict(cursor)


def capture_rng() -> dict[str, Any]:
    """State of python's, numpy's and torch's generators of this rank (all its GPUs included).

    Holds only tensors, numbers, strings and tuples, so that `torch.load(weights_only=True)` reads it back.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Inverse of `capture_rng`."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@contextmanager
def forked_rng() -> Iterator[None]:
    """Random draws inside this context leave the generators outside it as they were."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)
