"""Filters that are read where they are: of few positions, whose kept copies would be watched for
writes, and scaled by the BatchNorm behind them as they are read."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.fusion.bound import BoundCall
from crossmedia_fast.fusion.region import Region
from crossmedia_fast.ops.conv_act_pool import prepared

from .conv_native_launch import After, Case, pointwise, threads
from .fuse_cases import FORMATS, TOLERANCE, watch_runs
from .fuse_models import settle
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")


class Layer(NamedTuple):
    channels: int
    filters: int
    kernel: int
    stride: int
    size: int
    algorithm: str
    planes: bool = False  # whether images are contiguous


# more weights than any second cache keeps, of positions that it does
LAYERS = {
    "1x1": Layer(600, 700, 1, 1, 6, "pointwise"),
    "strided 1x1": Layer(512, 650, 1, 2, 9, "pointwise"),
    "1x1 of planes": Layer(600, 700, 1, 1, 8, "pointwise", True),
    "1x1 of small planes": Layer(600, 700, 1, 1, 6, "pointwise", True),
    "strided 1x1 of planes": Layer(512, 650, 1, 2, 16, "pointwise", True),
    "patches": Layer(140, 230, 3, 2, 7, "patches"),
    "winograd": Layer(100, 130, 3, 1, 12, "winograd"),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
each_format = pytest.mark.parametrize("format", FORMATS)


@pytest.fixture
def forced(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "forced_algorithm", layer.algorithm)


def network(layer: Layer, format: str, norm: bool = True) -> tuple[nn.Module, nn.Module, Tensor]:
    """A fused model, the plain one and an input; the weights are in `format`."""
    torch.manual_seed(2)
    conv = nn.Conv2d(
        *(layer.channels, layer.filters, layer.kernel, layer.stride, layer.kernel // 2),
        bias=not norm,
    )
    layers = [conv, *([nn.BatchNorm2d(layer.filters)] if norm else []), nn.ReLU()]
    plain = settle(nn.Sequential(*layers)).eval().to(memory_format=FORMATS[format])
    x = torch.randn(1, layer.channels, layer.size, layer.size)
    if layer.planes:
        plain = plain.to(memory_format=torch.contiguous_format)
    else:
        x = x.to(memory_format=torch.channels_last)
    return cmf.fuse(copy.deepcopy(plain)), plain, x


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[BoundCall]:
    """The bound calls that gave something."""
    seen: list[BoundCall] = []

    def note(call: BoundCall, y: Tensor | None, named: Any) -> None:
        if y is not None:
            seen.append(call)

    watch_runs(monkeypatch, note)
    return seen


def same(fused: nn.Module, plain: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = fused(x)
        exact = copy.deepcopy(plain).double()(x.double())
    assert_within(y, exact, TOLERANCE)
    return y  # type: ignore[no-any-return]


def reads(call: BoundCall, weight: Any) -> bool:
    """Whether the call reads the filters where they are, and nobody looks for writes to them."""
    hashed = [part[0] for part in call.memory.hashed]
    return any(part[0] is weight for part in call.memory.read) and all(
        tensor is not weight for tensor in hashed
    )


CHANGES: dict[str, Callable[[Any], Any]] = {
    "weight": lambda m: m[0].weight.data.mul_(1.5),
    "one weight": lambda m: m[0].weight.data[3, 7].add_(3),
    "weight's storage": lambda m: m[0].weight.set_(m[0].weight.detach() * 2),
    "another weight": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach() + 0.1)),
    "scale": lambda m: m[1].weight.data.mul_(0.5),
    "shift": lambda m: m[1].bias.data.add_(1),
    "mean": lambda m: m[1].running_mean.add_(1),
    "variance": lambda m: m[1].running_var.mul_(4),
}


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@each_format
@each_layer
def test_every_call_gives_the_bits_of_the_first(
    layer: Layer, format: str, norm: bool, calls: list[BoundCall]
) -> None:
    fused, plain, x = network(layer, format, norm)
    first = same(fused, plain, x)
    calls.clear()
    for count in (1, 2, 7):  # more than blocks of filters, too
        with threads(count):
            assert torch.equal(same(fused, plain, x), first)
    assert calls
    assert all(reads(call, fused[0].weight) for call in calls)  # type: ignore[index]


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("change", CHANGES)
@each_format
@each_layer
def test_every_change_is_seen(
    layer: Layer, format: str, change: str, calls: list[BoundCall]
) -> None:
    fused, plain, x = network(layer, format)
    for _ in range(3):
        before = same(fused, plain, x)
    calls.clear()
    with torch.no_grad():
        CHANGES[change](fused)
        CHANGES[change](plain)
    after = same(fused, plain, x)
    assert not torch.equal(after, before)
    # what is read at every call is no reason to bind the call anew
    assert bool(calls) == (change in ("weight", "one weight"))
    assert torch.equal(same(fused, plain, x), after)


@pytest.mark.usefixtures("forced")
@each_layer
def test_nothing_is_kept_of_them(layer: Layer) -> None:
    fused, plain, x = network(layer, "channels_last")
    for _ in range(2):
        same(fused, plain, x)
    cache = next(
        region.cache
        for region in gc.get_objects()
        if type(region) is Region and region.bound.find(fused[0], x) is not None  # type: ignore[index]
    )
    assert not cache.entries


@pytest.mark.usefixtures("forced")
@each_layer
def test_other_shapes_of_the_same_layer(layer: Layer, calls: list[BoundCall]) -> None:
    fused, plain, x = network(layer, "channels_last")
    many = torch.cat([x] * 150)  # of more positions than filters are read for
    for _ in range(2):
        for batch in (x, many, x[..., 1:]):
            format = torch.contiguous_format if layer.planes else torch.channels_last
            same(fused, plain, batch.contiguous(memory_format=format))
    weight = fused[0].weight  # type: ignore[index]
    assert {reads(call, weight) for call in calls} == {False, True}


def test_a_scale_is_refused_by_what_keeps_the_filters() -> None:
    module: Any = native.module
    case = Case("pointwise", pointwise(1, 8, (5, 5), 16), After())
    pointer = torch.randn(400).data_ptr()
    with pytest.raises(ValueError, match="w_scale"):
        module.conv_act_pool2d_forward(
            *("pointwise", case.launch.native, *([pointer] * 5), 0, 0, 1), w_scale=pointer
        )
