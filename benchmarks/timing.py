"""How a call is timed: samples of a turn, and what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# The clock and the loop cost 0.1 µs; a block this long makes them invisible.
SHORTEST_SAMPLE = 200e-6
FEWEST, MOST = 3, 1000  # samples a turn


def block_size(call: Callable[[], object]) -> int:
    """How many calls one sample must hold so that it is long enough. Also the warm-up."""
    for _ in range(3):
        call()
    size = 1
    while True:
        start = time.perf_counter()
        for _ in range(size):
            call()
        elapsed = time.perf_counter() - start
        if elapsed >= SHORTEST_SAMPLE:
            return size
        size *= 2


def turn(call: Callable[[], object], block: int, seconds: float) -> float:
    """The median of the samples of one turn, in seconds a call."""
    for _ in range(block):  # another process had the caches in between
        call()
    samples = []
    end = time.perf_counter() + seconds
    while len(samples) < FEWEST or (time.perf_counter() < end and len(samples) < MOST):
        start = time.perf_counter()
        for _ in range(block):
            call()
        samples.append((time.perf_counter() - start) / block)
    return quantile(samples, 0.5)


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the neighbours."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
