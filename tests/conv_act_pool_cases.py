"""Inputs for the tests of conv_act_pool2d."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast.ops.conv_act_pool import prepared

from .tolerances import GRADIENTS, VALUES, assert_within

# Edges of the kernels: narrower than a vector, one vector of each instruction set (4, 8, 16 lanes)
# and its neighbours, primes, and one row or column.
EDGE_SIZES = [(5, 4), (9, 17), (16, 16), (15, 33), (31, 7), (3, 64)]
EDGE_CHANNELS = [1, 3, 8, 15, 16, 17, 33]

POOLS: dict[str, dict[str, Any]] = {
    "max2": {"pool": "max"},
    "max3s2": {"pool": "max", "pool_size": 3, "pool_stride": 2},
    "max3s2p1_ceil": {
        "pool": "max",
        "pool_size": 3,
        "pool_stride": 2,
        "pool_padding": 1,
        "ceil_mode": True,
    },
    "max3s1": {"pool": "max", "pool_size": 3, "pool_stride": 1},
    "max_gaps": {"pool": "max", "pool_size": 1, "pool_stride": 3},
    "max_tall": {"pool": "max", "pool_size": (3, 2), "pool_stride": (1, 4), "pool_padding": (1, 0)},
    "avg2": {"pool": "avg"},
    "avg3s2p1": {"pool": "avg", "pool_size": 3, "pool_stride": 2, "pool_padding": 1},
    "avg3s2p1_valid": {
        "pool": "avg",
        "pool_size": 3,
        "pool_stride": 2,
        "pool_padding": 1,
        "ceil_mode": True,
        "count_include_pad": False,
    },
    "avg2s1": {"pool": "avg", "pool_stride": 1},
    "none": {"pool": "none"},
}


def make(
    batch: int = 2,
    in_channels: int = 2,
    size: tuple[int, int] = (9, 17),
    out_channels: int = 3,
    kernel: int = 3,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """input, weight, bias: normal values, seeded."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, in_channels, *size, generator=generator, dtype=torch.float64)
    w = torch.randn(
        out_channels,
        in_channels // groups,
        kernel,
        kernel,
        generator=generator,
        dtype=torch.float64,
    )
    b = torch.randn(out_channels, generator=generator, dtype=torch.float64)
    x, w, b = x.to(dtype), (w / 2).to(dtype), b.to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    return x, w, b


def gradients(function: Any, tensors: Any, dy: Tensor, **arguments: Any) -> Any:
    """The output and the gradients of all `tensors`."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, **arguments)
    return y, torch.autograd.grad(y, leaves, dy.to(y.dtype))


@contextmanager
def algorithm(name: str) -> Iterator[None]:
    """Runs the block with that algorithm wherever it can run, elsewhere with the plan's."""
    choose = prepared.make_plan

    def forced(*arguments: Any) -> Any:
        try:
            return choose(*arguments[:-1], name)
        except NotImplementedError:
            return choose(*arguments[:-1])

    prepared.prepared_calls.clear()
    prepared.make_plan, prepared.forced_algorithm = forced, name
    try:
        yield
    finally:
        prepared.make_plan, prepared.forced_algorithm = choose, None
        prepared.prepared_calls.clear()


def assert_like_reference(tensors: Any, **arguments: Any) -> Tensor:
    """Output and gradients of float32 tensors against the reference in float64; its output."""
    doubles = [t.double() for t in tensors]
    shape = cmf.conv_act_pool2d_reference(*doubles, **arguments).shape
    dy = torch.randn(shape, dtype=torch.float64)
    y, grads = gradients(cmf.conv_act_pool2d, tensors, dy, **arguments)
    expected, wanted = gradients(cmf.conv_act_pool2d_reference, doubles, dy, **arguments)
    assert_within(y.detach(), expected.detach(), VALUES[torch.float32])
    for grad, want in zip(grads, wanted, strict=True):
        assert_within(grad, want, GRADIENTS[torch.float32])
    return expected.detach()


def assert_second_derivatives_like_reference(x: Tensor, w: Tensor, **arguments: Any) -> None:
    """Those of a penalty on the input's gradient, in float32 against float64."""

    def penalty(function: Any, dtype: torch.dtype) -> Any:
        leaves = [t.to(dtype).clone().requires_grad_() for t in (x, w)]
        y = function(*leaves, **arguments)
        (dx,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves)

    ours = penalty(cmf.conv_act_pool2d, torch.float32)
    for grad, want in zip(ours, penalty(cmf.conv_act_pool2d_reference, torch.float64), strict=True):
        assert_within(grad, want, GRADIENTS[torch.float32])
