"""What this machine can do: the fastest matrix product and the fastest copies, measured.

    python -m benchmarks.limits [threads]     prints them as JSON

The fastest float32 matrix product stands for the arithmetic peak: of PyTorch's mm (MKL, which
leaves half of an AMD processor's AVX-512 unused) and of a 1 x 1 convolution over pixels (oneDNN).
It reaches 90 to 97% of what the multiply-add units can do, so shares of it are that much too kind.
Copies are measured at several sizes, because a small problem lives in the caches.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

COPY_BYTES = (1 << 18, 1 << 21, 1 << 24, 1 << 28)  # read and written together


@dataclasses.dataclass(frozen=True)
class Limits:
    threads: int
    operations_per_second: float
    copy_bytes_per_second: dict[int, float]  # bytes read and written -> rate

    def bandwidth(self, size: int) -> float:
        """The copy rate for a problem that moves `size` bytes: of the next larger size measured."""
        sizes = sorted(self.copy_bytes_per_second)
        fitting = next((s for s in sizes if s >= size), sizes[-1])
        return self.copy_bytes_per_second[fitting]

    def to_json(self) -> dict[str, Any]:
        return {
            "threads": self.threads,
            "operations_per_second": self.operations_per_second,
            "copy_bytes_per_second": {str(k): v for k, v in self.copy_bytes_per_second.items()},
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Limits:
        copies = {int(k): float(v) for k, v in data["copy_bytes_per_second"].items()}
        return Limits(data["threads"], data["operations_per_second"], copies)


def _best(call: Callable[[], object], seconds: float) -> float:
    """The shortest call: a limit is what the machine can do, so the best one counts."""
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def measure(threads: int, seconds: float = 0.5) -> Limits:
    import torch

    torch.set_num_threads(threads)
    side = 2048
    a, b, c = (torch.ones(side, side) for _ in range(3))
    peak = 2 * side**3 / _best(lambda: torch.mm(a, b, out=c), seconds)
    pixels, channels = 48, 512
    x = torch.ones(1, channels, pixels, pixels).contiguous(memory_format=torch.channels_last)
    w = torch.ones(channels, channels, 1, 1)
    with torch.inference_mode():
        product = _best(lambda: torch.nn.functional.conv2d(x, w), seconds)
    peak = max(peak, 2 * pixels**2 * channels**2 / product)
    copies = {}
    for size in COPY_BYTES:
        source = torch.ones(size // 2 // 4)
        target = torch.zeros_like(source)
        # several copies a call where one would be all call overhead
        repeat = max(1, (1 << 23) // size)

        def copy(
            source: torch.Tensor = source, target: torch.Tensor = target, repeat: int = repeat
        ) -> None:
            for _ in range(repeat):
                target.copy_(source)

        copies[size] = repeat * size / _best(copy, seconds)
    return Limits(threads, peak, copies)


def measure_apart(threads: int, seconds: float = 0.5) -> Limits:
    """As measure(), in a process of its own, so that its thread pool is gone afterwards."""
    command = [sys.executable, "-m", "benchmarks.limits", str(threads), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Limits.from_json(json.loads(done.stdout))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    measured = measure(
        int(arguments[0]) if arguments else 1, float(arguments[1]) if len(arguments) > 1 else 0.5
    )
    print(json.dumps(measured.to_json()))
