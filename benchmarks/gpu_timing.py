"""Time on a GPU, and what the card can do: measured, not taken from a data sheet."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable

import torch

_CACHE_BYTES = 256 << 20  # more than any L2 cache
_WARM = 3


@dataclasses.dataclass(frozen=True)
class Ceilings:
    copy_bytes_per_second: float  # read and written
    operations_per_second: dict[str, float]  # of the best matrix product, a dtype each


def seconds(call: Callable[[], object], budget: float = 0.2) -> float:
    """The median of a call by CUDA events, operands from memory; `budget` in seconds a case."""
    cache = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(_WARM):
        call()
    first = _spans(call, cache, 3)
    count = max(5, min(200, int(budget / max(statistics.median(first), 1e-5))))
    return statistics.median(_spans(call, cache, count))


def _spans(call: Callable[[], object], cache: torch.Tensor, count: int) -> list[float]:
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
    torch.cuda.synchronize()
    for start, end in zip(starts, ends, strict=True):
        cache.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]


def measure(dtypes: dict[str, torch.dtype]) -> Ceilings:
    """The copy bandwidth, and the matrix product's rate in each dtype ("tf32": of float32)."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = 2 * source.numel() / seconds(functools.partial(target.copy_, source))
    rates = {}
    for name, dtype in dtypes.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        best = 0.0
        for size in (4096, 8192):
            a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in "ab")
            best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b))
        rates[name] = best
    torch.backends.cuda.matmul.allow_tf32 = False
    return Ceilings(copy, rates)
