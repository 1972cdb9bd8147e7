"""How well the plan's model of what convolutions cost chooses on this machine.

    python -m benchmarks.plan_costs --threads 2 --seconds 200

Layers drawn at random run by Winograd, by products of patches and by PyTorch's convolution with the
fused epilogue, in inference and in a training step. Lost is what the plan's choice takes beyond the
best of the three, on average over the layers; the rows are the layers that lose most. The constants
of `conv_cost` were found from what `--out` writes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import pathlib
import random
import time
from collections.abc import Iterator
from typing import Any

import torch

import crossmedia_fast as cmf
from crossmedia_fast.ops.conv_act_pool import prepared
from crossmedia_fast.ops.conv_act_pool.conv_cost import (
    Sizes,
    direct_work,
    patches_work,
    winograd_work,
)
from crossmedia_fast.ops.conv_act_pool.cpu_choice import conv_costs

from . import timing

FILTERS = [(3, 1, 1)] * 4 + [(3, 2, 1)] * 3 + [(4, 2, 1), (5, 1, 2)] * 2 + [(5, 2, 2), (7, 2, 3)]
BATCHES = (1, 1, 2, 4, 8, 16)
CHANNELS = (9, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SIZES = (4, 7, 8, 10, 14, 16, 20, 28, 32, 56, 64)
LEAST_WORK, MOST_WORK = 2e5, 1.5e9  # multiply-adds: neither overhead alone nor seconds
MODES = ("inference", "training")
ALGORITHMS = ("winograd", "patches", "epilogue")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution + ReLU, square in everything, and a 2×2 max pooling or none."""

    batch: int
    channels: int
    size: int
    filters: int
    kernel: int
    stride: int
    padding: int
    channels_last: bool
    pooled: bool

    @property
    def conv_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def work(self) -> int:
        taps = self.channels * self.kernel**2
        return self.batch * self.conv_size**2 * self.filters * taps

    def work_of(self, algorithm: str, mode: str) -> float:
        """The model's word."""
        sizes = Sizes(
            (self.batch, self.channels, self.size, self.size),
            (self.filters, self.channels, self.kernel, self.kernel),
            (self.batch, self.filters, self.conv_size, self.conv_size),
            (self.stride, self.stride),
            (self.padding, self.padding),
            x_channels_last=self.channels_last,
        )
        kept, costs = mode == "inference", conv_costs()
        if algorithm == "winograd":
            return winograd_work(sizes, 4, kept, costs) * costs.least_gain
        return {"patches": patches_work, "epilogue": direct_work}[algorithm](sizes, kept, costs)


def draw(source: random.Random) -> Layer:
    """A layer whose convolution has an output, of neither too little nor too much work."""
    while True:
        layer = Layer(
            source.choice(BATCHES),
            source.choice(CHANNELS),
            source.choice(SIZES),
            source.choice((8, *CHANNELS[1:])),
            *source.choice(FILTERS),
            channels_last=source.random() < 0.6,
            pooled=source.random() < 0.3,
        )
        if layer.conv_size >= 2 and LEAST_WORK <= layer.work <= MOST_WORK:
            return layer


@contextlib.contextmanager
def forced(algorithm: str) -> Iterator[None]:
    """The algorithm of every call inside."""
    prepared.prepared_calls.clear()
    prepared.forced_algorithm = algorithm
    try:
        yield
    finally:
        prepared.forced_algorithm = None
        prepared.prepared_calls.clear()


def measure(layer: Layer, seconds: float) -> dict[str, dict[str, float]]:
    """Seconds a call: [mode][algorithm], in two turns each."""
    format = torch.channels_last if layer.channels_last else torch.contiguous_format
    x = torch.randn(layer.batch, layer.channels, layer.size, layer.size)
    w = torch.randn(layer.filters, layer.channels, layer.kernel, layer.kernel)
    tensors = [x.contiguous(memory_format=format), w.contiguous(memory_format=format)]
    tensors.append(torch.randn(layer.filters))
    arguments: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    arguments |= {"activation": "relu", "pool": "max" if layer.pooled else "none"}
    dy = torch.randn_like(cmf.conv_act_pool2d(*tensors, **arguments))
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def inference() -> None:
        with torch.inference_mode():
            cmf.conv_act_pool2d(*tensors, **arguments)

    def training() -> None:
        cmf.conv_act_pool2d(*leaves, **arguments).backward(dy)
        for leaf in leaves:
            leaf.grad = None

    found: dict[str, dict[str, float]] = {}
    for mode, call in zip(MODES, (inference, training), strict=True):
        turns: dict[str, list[float]] = {name: [] for name in ALGORITHMS}
        for _ in range(2):
            for name in ALGORITHMS:
                with forced(name):
                    turns[name].append(timing.turn(call, timing.block_size(call), seconds))
        found[mode] = {name: min(times) for name, times in turns.items()}
    return found


def lost(layer: Layer, times: dict[str, float], mode: str) -> float:
    """The logarithm of the chosen algorithm's time over the best one's."""
    chosen = min(times, key=lambda name: layer.work_of(name, mode))
    return math.log(times[chosen] / min(times.values()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_costs", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=200, help="in all")
    parser.add_argument("--turn", type=float, default=0.02, help="seconds of one, of eight a layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="a file of JSON, a line a layer")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = random.Random(arguments.seed)
    rows = []
    end = time.perf_counter() + arguments.seconds
    while time.perf_counter() < end or not rows:
        layer = draw(source)
        rows.append((layer, measure(layer, arguments.turn)))
    for mode in MODES:
        ordered = sorted(
            ((lost(a, times[mode], mode), a, times[mode]) for a, times in rows),
            key=lambda row: -row[0],
        )
        mean = sum(row[0] for row in ordered) / len(ordered)
        print(f"{mode}: {100 * math.expm1(mean):.1f}% lost over {len(ordered)} layers")
        for loss, layer, times in ordered[:5]:
            text = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in times.items())
            print(f"  {100 * math.expm1(loss):.0f}%: {layer}: {text}")
    if arguments.out is not None:
        lines = [json.dumps({**dataclasses.asdict(a), "seconds": times}) for a, times in rows]
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
