"""Random numbers as a pure function of integers (splitmix64): equal on every machine, rank and numpy version."""

import numpy as np

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def mix(*numbers: int) -> int:
    """A well-mixed 63-bit integer of the given integers, in order; the seed of anything that depends on just these."""
    state = 0
    for number in numbers:
        state = _scramble((state ^ (number & _MASK)) + _STEP & _MASK)
    return state >> 1


def _scramble(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def permutation(length: int, *key: int) -> np.ndarray:
    """A shuffle of 0..length-1, int64 [length], that depends on `length` and the key alone."""
    with np.errstate(over="ignore"):
        values = np.arange(length, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(mix(*key))
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        values ^= values >> np.uint64(31)
    return np.argsort(values, kind="stable")
