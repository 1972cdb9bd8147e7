"""Values and first gradients of conv_act_pool2d against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crossmedia_fast as cmf
from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS

from .conv_act_pool_cases import EDGE_CHANNELS, EDGE_SIZES, POOLS, algorithm, gradients, make
from .tolerances import (
    BIAS_GRADIENTS,
    GRADIENTS,
    HALF_GRADIENT_FACTOR,
    HALF_GRADIENT_SLACK,
    VALUES,
    assert_within,
)


@pytest.fixture(params=["direct", "winograd", "few_channels", "epilogue"], autouse=True)
def each_algorithm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of this file runs with each; where one can't run, the plan's choice does."""
    with algorithm(request.param):
        yield


def check(tensors: Any, **arguments: Any) -> None:
    """Output and gradients against the reference in float64."""
    dtype = tensors[0].dtype
    doubles = [t.double() for t in tensors]
    expected = cmf.conv_act_pool2d_reference(*doubles, **arguments)
    dy = torch.randn(
        expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    y, grads = gradients(cmf.conv_act_pool2d, tensors, dy, **arguments)
    _, expected_grads = gradients(cmf.conv_act_pool2d_reference, doubles, dy, **arguments)
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    trained = cmf.explain(*leaves, **arguments)
    # an average of a kept output is a pass's, which adds in an order of its own
    averaged = "kept for backward" in trained.reason and arguments.get("pool") == "avg"
    assert y.dtype == dtype
    assert_within(y.detach(), expected, VALUES[dtype])
    with torch.no_grad():
        # a clone may have other strides, and with them another algorithm, as may a call that keeps
        # something for backward; the same clones and algorithm, the same bits
        clones = [t.clone() for t in tensors]
        inferred = cmf.conv_act_pool2d(*clones, **arguments)
        if cmf.explain(*clones, **arguments).algorithm == trained.algorithm and not averaged:
            assert torch.equal(inferred, y), "inference differs"
        assert_within(inferred, expected, VALUES[dtype])
        assert_within(cmf.conv_act_pool2d(*tensors, **arguments), expected, VALUES[dtype])
    if dtype in GRADIENTS:
        for grad, want in zip(grads[:2], expected_grads[:2], strict=True):
            assert_within(grad, want, GRADIENTS[dtype])
        if len(grads) == 3:
            _, magnitudes = gradients(cmf.conv_act_pool2d_reference, doubles, dy.abs(), **arguments)
            scale = magnitudes[2].abs().max().item()
            assert_within(grads[2], expected_grads[2], BIAS_GRADIENTS[dtype], scale)
        return
    _, torch_grads = gradients(cmf.conv_act_pool2d_reference, tensors, dy, **arguments)
    for grad, theirs, want in zip(grads, torch_grads, expected_grads, strict=True):
        ours = (grad.double() - want).abs().max()
        bound = HALF_GRADIENT_FACTOR * (theirs.double() - want).abs().max()
        assert ours <= bound + HALF_GRADIENT_SLACK[dtype] * want.abs().max()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_with_every_pool(activation: str, pool: str, channels_last: bool) -> None:
    check(make(channels_last=channels_last), padding=1, activation=activation, **POOLS[pool])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pool", ["max2", "max3s2p1_ceil", "avg2", "avg3s2p1", "none"])
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "leaky_relu"])
def test_every_dtype(dtype: torch.dtype, pool: str, activation: str) -> None:
    for channels_last in (False, True):
        tensors = make(dtype=dtype, channels_last=channels_last)
        check(tensors, padding=1, activation=activation, **POOLS[pool])


@pytest.mark.parametrize("size", EDGE_SIZES)
@pytest.mark.parametrize("pool", ["max2", "max3s2", "avg2", "none"])
def test_edge_sizes(size: tuple[int, int], pool: str) -> None:
    check(make(size=size, dtype=torch.float64), padding=1, **POOLS[pool])
    check(make(size=size, out_channels=5, channels_last=True), padding=1, **POOLS[pool])


@pytest.mark.parametrize("channels", EDGE_CHANNELS)
def test_edge_channels(channels: int) -> None:
    for pool in ("max2", "max3s2", "avg2", "none"):
        check(make(out_channels=channels, channels_last=True), padding=1, **POOLS[pool])


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (0, 2)},
        {"padding": "same"},
        {"padding": "valid"},
        {"dilation": 2, "padding": 2},
        {"groups": 2, "padding": 1},
        {"stride": [1], "padding": [1, 1], "pool_size": [2, 2]},
        {"activation": "leaky_relu", "activation_param": 0.2},
        {"activation": "leaky_relu", "activation_param": -0.5},
        {"activation": "leaky_relu", "activation_param": 0.0},
        {"activation": "elu", "activation_param": 2.5},
        {"activation": "elu", "activation_param": -1.0},
        {"activation": "softplus", "activation_param": 3.0},
        {"activation": "softplus", "activation_param": -2.0},
    ],
    ids=str,
)
def test_arguments(arguments: dict[str, Any]) -> None:
    groups = arguments.get("groups", 1)
    tensors = make(in_channels=4, out_channels=6, groups=groups, dtype=torch.float64)
    for pool in ("max", "avg"):
        check(tensors, pool=pool, **arguments)


def test_a_window_beyond_255_elements_has_a_wide_index() -> None:
    tensors = make(size=(20, 33), dtype=torch.float64)
    for channels_last in (False, True):
        if channels_last:
            tensors = (tensors[0].to(memory_format=torch.channels_last), *tensors[1:])
        check(tensors, padding=1, pool_size=(17, 16), pool_stride=1)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_random_configurations(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel = draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 2))
    padding = draw(st.integers(0, 3))
    pool_size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    pool_padding = tuple(draw(st.integers(0, size // 2)) for size in pool_size)
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding + 4)
    size = (draw(st.integers(least, least + 20)), draw(st.integers(least, least + 40)))
    tensors = make(
        batch=draw(st.integers(1, 3)),
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 9)),
        size=size,
        kernel=kernel,
        groups=groups,
        dtype=torch.float64,
        channels_last=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
    check(
        tensors if draw(st.booleans()) else tensors[:2],
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        pool=draw(st.sampled_from(["max", "avg", "none"])),
        pool_size=pool_size,
        pool_stride=draw(st.sampled_from([None, 1, 2, (2, 1), 3])),
        pool_padding=pool_padding,
        ceil_mode=draw(st.booleans()),
        count_include_pad=draw(st.booleans()),
    )


def _plain_input(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A convolution that is the identity: the pooling sees `x` itself."""
    channels = x.shape[1]
    weight = torch.eye(channels, dtype=x.dtype)[:, :, None, None]
    return x, weight, torch.zeros(channels, dtype=x.dtype)


@pytest.mark.parametrize("channels_last", [False, True])
def test_ties_go_to_the_first_in_row_order(channels_last: bool) -> None:
    x = torch.randint(-1, 2, (2, 3, 12, 18), generator=torch.Generator().manual_seed(0)).double()
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    tensors = _plain_input(x)
    for pool in ("max2", "max3s2p1_ceil", "max3s1"):
        for activation in ("identity", "relu", "leaky_relu", "silu"):
            arguments = {"activation": activation, **POOLS[pool]}
            y = cmf.conv_act_pool2d_reference(*tensors, **arguments)
            dy = torch.arange(1.0, y.numel() + 1, dtype=torch.float64).view_as(y)
            _, (dx, _, _) = gradients(cmf.conv_act_pool2d, tensors, dy, **arguments)
            _, (want, _, _) = gradients(cmf.conv_act_pool2d_reference, tensors, dy, **arguments)
            assert_within(dx, want, 1e-14)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_come_out_where_the_reference_has_them(
    activation: str, value: float
) -> None:
    for dtype in (torch.float32, torch.float64):
        x = make(size=(12, 22), in_channels=3, dtype=dtype)[0]
        x[0, 0, ::5, ::3] = value
        x[1, 2] = value
        for channels_last in (False, True):
            if channels_last:
                x = x.to(memory_format=torch.channels_last)
            # one channel a group: over several, 0 · inf would be NaN everywhere
            arguments: dict[str, Any] = {"groups": 3, "activation": activation}
            tensors = (x, torch.ones(3, 1, 1, 1, dtype=dtype), torch.zeros(3, dtype=dtype))
            for pool in ("max2", "max3s2", "avg2", "avg3s2p1", "none"):
                y = cmf.conv_act_pool2d(*tensors, **arguments, **POOLS[pool])
                # in float64: PyTorch's float32 gelu makes NaN of +inf in its vector loop
                doubles = [t.double() for t in tensors]
                want = cmf.conv_act_pool2d_reference(*doubles, **arguments, **POOLS[pool])
                assert torch.equal(y.isnan(), want.isnan()), (pool, dtype)
                assert torch.equal(y.isinf(), want.isinf()), (pool, dtype)
                assert_within(y, want, VALUES[dtype])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2, 1::2],
        lambda x: x[:, 1:2].expand(-1, 2, -1, -1),
        lambda x: x.flip(3),
        lambda x: x.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2),
    ],
    ids=["transposed", "sliced", "expanded", "flipped", "permuted"],
)
def test_any_strides(view: Any) -> None:
    x, w, b = make(size=(20, 22), dtype=torch.float64)
    wide = torch.randn(3, 2, 3, 6, dtype=torch.float64)[:, :, :, ::2]
    check((view(x), wide, torch.randn(6, dtype=torch.float64)[::2]), padding=1)
    # and gradients of any strides: expanded, transposed
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = cmf.conv_act_pool2d(*leaves, padding=1)
    want = cmf.conv_act_pool2d_reference(*leaves, padding=1)
    for dy in (torch.ones((), dtype=y.dtype).expand_as(y), torch.randn_like(y).mT.contiguous().mT):
        ours = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        theirs = torch.autograd.grad(want, leaves, dy, retain_graph=True)
        for grad, expected in zip(ours, theirs, strict=True):
            assert_within(grad, expected, GRADIENTS[torch.float64])


def test_memory_format_follows_the_convolution() -> None:
    for channels_last in (False, True):
        tensors = make(channels_last=channels_last, out_channels=8)
        y = cmf.conv_act_pool2d(*tensors)
        want = cmf.conv_act_pool2d_reference(*tensors)
        assert y.stride() == want.stride()


@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_unbatched_and_empty(pool: str) -> None:
    x, w, b = make()
    y = cmf.conv_act_pool2d(x[0], w, b, pool=pool)
    assert_within(y, cmf.conv_act_pool2d_reference(x[0], w, b, pool=pool), VALUES[torch.float32])
    leaves = [t.requires_grad_() for t in (x[:0].detach(), w, b)]
    y = cmf.conv_act_pool2d(*leaves, pool=pool)
    assert y.shape == cmf.conv_act_pool2d_reference(*leaves, pool=pool).shape
    for leaf, grad in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
        assert grad.shape == leaf.shape
        assert not grad.count_nonzero()


def test_no_bias() -> None:
    for channels_last in (False, True):
        x, w, _ = make(channels_last=channels_last, dtype=torch.float64)
        for pool in POOLS.values():
            check((x, w), padding=1, activation="tanh", **pool)
