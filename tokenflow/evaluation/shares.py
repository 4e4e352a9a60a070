"""Shares of right answers with their standard errors, and GenEval's mean over kinds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Share:
    """Share of prompts or questions that are right, and its standard error."""

    value: float
    error: float
    images: int


def share(marks: Sequence[float]) -> Share:
    """Mean of one number a prompt (the share of its pictures that are right) with the mean's standard error."""
    values = np.asarray(marks, dtype=np.float64)
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Share(value=float(values.mean()), error=spread / math.sqrt(len(values)), images=len(values))


def mean_of_kinds(parts: Sequence[Share]) -> Share:
    """GenEval's overall score: the mean over kinds, each with the same weight."""
    error = math.sqrt(sum(part.error**2 for part in parts)) / len(parts)
    value = sum(part.value for part in parts) / len(parts)
    return Share(value=value, error=error, images=sum(part.images for part in parts))
