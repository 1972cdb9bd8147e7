"""Layers that nobody chose: random ones of every kind, beside PyTorch's eager mode.

    python -m benchmarks.sweep --mode training --channels-last --threads 2 --layers 120
    python -m benchmarks.sweep --kinds first,patch --seed 7

Each layer runs in turn by `conv_act_pool2d` and by PyTorch's own functions, in inference or in a
training step (gradients of the weight, the bias and, but for first layers, the input). Printed are
the geometric mean, each kind's, and the layers at which the package is slowest beside eager: what
the suites' layers don't show.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import crossmedia_fast as cmf

from . import timing

LEAST_WORK, MOST_WORK = 1e6, 1e9  # multiply-adds: neither overhead alone nor seconds
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "identity": lambda z: z,
}
POOLS = ("none", "none", "max", "avg")
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SIZES = (7, 8, 14, 16, 28, 32, 56, 64)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What layers of a kind are drawn from; filter, stride and dilation belong together."""

    filters: tuple[tuple[tuple[int, int], int, int], ...]  # (R, S), stride, dilation
    channels: tuple[int, ...] = WIDTHS
    filter_counts: tuple[int, ...] = WIDTHS  # of one group
    sizes: tuple[int, ...] = SIZES
    group: int | None = None  # channels of a group; None = all of them
    padded: bool = True  # by half a filter
    first: bool = False  # needs no gradient of its input


KINDS = {
    "3x3": Kind((((3, 3), 1, 1),)),
    "3x3/2": Kind((((3, 3), 2, 1),)),
    "1x1": Kind((((1, 1), 1, 1), ((1, 1), 2, 1))),
    "4x4/2": Kind((((4, 4), 2, 1),)),
    "5x5": Kind((((5, 5), 1, 1), ((5, 5), 2, 1))),
    "large": Kind((((7, 7), 1, 1), ((7, 7), 1, 1), ((9, 9), 1, 1)), WIDTHS[:7], sizes=SIZES[2:6]),
    "few filters": Kind(  # of a generator's image, a critic's logits, a map of a few classes
        (((1, 1), 1, 1), ((3, 3), 1, 1), ((4, 4), 1, 1), ((7, 7), 1, 1)), filter_counts=(1, 2, 3, 4)
    ),
    "rows": Kind((((1, 7), 1, 1), ((7, 1), 1, 1), ((1, 3), 1, 1)), WIDTHS[:8], sizes=SIZES[:6]),
    "2x2/2": Kind((((2, 2), 2, 1),), padded=False),
    "dilated": Kind((((3, 3), 1, 2), ((3, 3), 1, 4)), WIDTHS[2:9]),
    "depthwise": Kind((((3, 3), 1, 1), ((3, 3), 2, 1), ((5, 5), 1, 1)), group=1),
    "groups": Kind((((3, 3), 1, 1), ((3, 3), 2, 1)), (64, 128, 256), group=8),
    "first": Kind(
        (((3, 3), 1, 1), ((3, 3), 2, 1), ((5, 5), 1, 1), ((7, 7), 2, 1)),
        (1, 3, 3),
        sizes=(28, 32, 64, 128, 224),
        first=True,
    ),
    "patch": Kind(
        (((4, 4), 4, 1), ((8, 8), 8, 1), ((16, 16), 16, 1)),
        (3,),
        sizes=(64, 128, 224),
        padded=False,
        first=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution with what follows it."""

    kind: str
    batch: int
    channels: int
    size: int
    filters: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    dilation: int
    groups: int
    activation: str
    pool: str

    @property
    def out_size(self) -> tuple[int, int]:
        reach = [self.dilation * (taps - 1) + 1 for taps in self.kernel]
        height, width = (
            (self.size + 2 * pad - r) // self.stride + 1
            for pad, r in zip(self.padding, reach, strict=True)
        )
        return height, width

    @property
    def work(self) -> int:
        taps = self.channels // self.groups * math.prod(self.kernel)
        return self.batch * math.prod(self.out_size) * self.filters * taps


def draw(source: random.Random, kind: str) -> Layer:
    """A layer of that kind, of neither too little nor too much work."""
    of = KINDS[kind]
    while True:
        kernel, stride, dilation = source.choice(of.filters)
        channels = source.choice(of.channels)
        groups = 1 if of.group is None else channels // of.group
        layer = Layer(
            kind,
            source.choice((1, 1, 2, 4, 8)),
            channels,
            source.choice(of.sizes),
            channels if groups > 1 else source.choice(of.filter_counts),
            kernel,
            stride,
            tuple(dilation * (taps // 2) if of.padded else 0 for taps in kernel),  # type: ignore[arg-type]
            dilation,
            groups,
            source.choice(tuple(ACTIVATIONS)),
            source.choice(POOLS),
        )
        if min(layer.out_size) >= 2 and LEAST_WORK <= layer.work <= MOST_WORK:
            return layer


def calls(
    layer: Layer, training: bool, channels_last: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The layer by this package, and by PyTorch's own functions."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    taps = layer.channels // layer.groups
    x = torch.randn(layer.batch, layer.channels, layer.size, layer.size)
    w = torch.randn(layer.filters, taps, *layer.kernel) / (taps * math.prod(layer.kernel)) ** 0.5
    x, w = (t.contiguous(memory_format=memory_format) for t in (x, w))
    b = torch.randn(layer.filters)
    conv = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}

    def ours() -> Tensor:
        return cmf.conv_act_pool2d(x, w, b, activation=layer.activation, pool=layer.pool, **conv)

    def eager() -> Tensor:
        y = ACTIVATIONS[layer.activation](F.conv2d(x, w, b, **conv))
        if layer.pool == "none":
            return y
        return F.max_pool2d(y, 2) if layer.pool == "max" else F.avg_pool2d(y, 2)

    if not training:
        return ours, eager
    leaves = [w, b] if KINDS[layer.kind].first else [w, b, x]
    dy = torch.randn_like(eager())
    for leaf in leaves:
        leaf.requires_grad_()

    def step(forward: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(forward(), leaves, dy)

    return step(ours), step(eager)


def measure(layer: Layer, training: bool, channels_last: bool, seconds: float) -> dict[str, float]:
    """Seconds a call of each, the median of three turns."""
    names = ("fused", "eager")
    turns: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.nullcontext() if training else torch.inference_mode():
        both = dict(zip(names, calls(layer, training, channels_last), strict=True))
        blocks = {name: timing.block_size(call) for name, call in both.items()}
        for _ in range(3):
            for name, call in both.items():
                turns[name].append(timing.turn(call, blocks[name], seconds))
    return {name: timing.quantile(times, 0.5) for name, times in turns.items()}


def mean(ratios: list[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--mode", choices=("inference", "training"), default="inference")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=len(KINDS) * 8)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--turn", type=float, default=0.02, help="seconds of one, of six a layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=16, help="how many of the slowest")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kinds = arguments.kinds.split(",")
    for kind in kinds:
        if kind not in KINDS:
            parser.error(f"unknown kind {kind!r}")
    source = random.Random(arguments.seed)
    rows = []
    for i in range(arguments.layers):
        layer = draw(source, kinds[i % len(kinds)])
        training = arguments.mode == "training"
        times = measure(layer, training, arguments.channels_last, arguments.turn)
        rows.append((times["eager"] / times["fused"], layer, times))
    rows.sort(key=lambda row: row[0])
    of_kinds = {kind: [q for q, layer, _ in rows if layer.kind == kind] for kind in kinds}
    print(f"{arguments.mode}: {mean([row[0] for row in rows]):.2f} times as fast as eager")
    print("  " + ", ".join(f"{kind} {mean(q):.2f}" for kind, q in of_kinds.items() if q))
    for ratio, layer, times in rows[: arguments.show]:
        milliseconds = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in times.items())
        print(f"  {ratio:.2f}: {milliseconds}: {layer}")


if __name__ == "__main__":
    main()
