"""The Triton epilogue against the reference in float64: activations, pools, formats, dtypes."""

from __future__ import annotations

import pytest
import torch

from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS
from crossmedia_fast.ops.conv_act_pool.arguments import check_pool
from crossmedia_fast.ops.conv_act_pool.reference import act_pool2d

from . import tolerances
from .triton_calls import DEVICE, runs_kernels

pytestmark = runs_kernels

POOLS = {
    "max": ("max", 2, None, 0, False, True),
    "max_overlapping": ("max", 3, 2, 1, False, True),
    "max_ceil": ("max", (2, 3), (2, 2), (0, 1), True, True),
    "avg": ("avg", 2, None, 0, False, True),
    "avg_overlapping": ("avg", 3, 2, 1, True, False),
    "none": ("none", 2, None, 0, False, True),
}


def run(
    activation, pool_arguments, dtype, channels_last, bias=True, param=None, shape=(2, 3, 7, 5)
):
    """y, dx and dbias; and the same from the reference in float64."""
    from crossmedia_fast.ops.conv_act_pool import triton

    pool = check_pool(activation, param, *pool_arguments)
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(DEVICE)
    b = torch.randn(shape[1], generator=generator, dtype=torch.float64).to(x) if bias else None
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    launch = triton.Launch(tuple(x.shape), dtype, channels_last, pool)
    y, index, preactivation = launch.forward(x, b, save=True)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    saved = {"output": y, "preactivation": preactivation, "input": x}.get(launch.saved)
    dx, dbias = launch.backward(dy, saved, b, index, True, bias)
    actual = [y, dx, *([dbias] if bias else [])]

    inputs = [t.double().requires_grad_() for t in (x, b) if t is not None]
    z = inputs[0] if b is None else inputs[0] + inputs[1][:, None, None]
    want = act_pool2d(z, pool)
    return actual, [want, *torch.autograd.grad(want, inputs, dy.double())]


def check(actual, expected, dtype):
    tolerances.assert_within(actual[0], expected[0], tolerances.VALUES[dtype])
    gradient = tolerances.GRADIENTS.get(dtype, tolerances.VALUES[dtype])
    for tensor, want in zip(actual[1:], expected[1:], strict=True):
        assert tensor.dtype == dtype
        tolerances.assert_within(tensor, want, gradient)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients(activation: str, pool: str) -> None:
    # both formats in turn, so that every activation and pool meets both
    channels_last = (list(ACTIVATIONS).index(activation) + list(POOLS).index(pool)) % 2 == 1
    check(*run(activation, POOLS[pool], torch.float32, channels_last), torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float64(activation: str) -> None:
    # erf of the interpreter is float64's own; exp and log too
    check(*run(activation, POOLS["max_overlapping"], torch.float64, False), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_half_types(activation: str, pool: str, dtype: torch.dtype) -> None:
    check(*run(activation, POOLS[pool], dtype, True, bias=False), dtype)


@pytest.mark.parametrize(
    ("activation", "param"),
    [("leaky_relu", -0.5), ("leaky_relu", 0.0), ("elu", -1.0), ("elu", 0.0), ("softplus", -2.0)],
)
def test_parameters_that_change_what_is_saved(activation: str, param: float) -> None:
    for pool in ("max", "avg"):
        check(*run(activation, POOLS[pool], torch.float32, False, param=param), torch.float32)


def test_windows_of_more_than_255_positions_keep_a_wide_index() -> None:
    actual, expected = run(
        "relu", ("max", 17, None, 0, False, True), torch.float32, False, shape=(1, 1, 17, 17)
    )
    check(actual, expected, torch.float32)


def test_in_place() -> None:
    from crossmedia_fast.ops.conv_act_pool import triton

    pool = check_pool("relu", None, *POOLS["none"])
    x = torch.randn(1, 2, 3, 3, device=DEVICE)
    want = x.relu()
    launch = triton.Launch((1, 2, 3, 3), x.dtype, False, pool)
    y = launch.forward(x, None, save=False, in_place=True)[0]
    assert y is x
    assert torch.equal(x, want)


def test_all_minus_infinity_gives_a_position_inside() -> None:
    from crossmedia_fast.ops.conv_act_pool import triton

    pool = check_pool("identity", None, "max", 3, 2, 1, False, True)
    x = torch.full((1, 1, 4, 4), float("-inf"), device=DEVICE)
    launch = triton.Launch((1, 1, 4, 4), x.dtype, False, pool)
    y, index, _ = launch.forward(x, None, save=True)
    assert y.eq(float("-inf")).all()
    # the window at the corner begins in the padding: its first element inside is position 4
    assert index is not None
    assert index.flatten().tolist() == [4, 3, 1, 0]


def test_of_several_nan_the_last_wins_as_in_pytorch() -> None:
    from crossmedia_fast.ops.conv_act_pool import triton

    pool = check_pool("relu", None, "max", 2, None, 0, False, True)
    x = torch.tensor([[1.0, float("nan")], [float("nan"), 2.0]], device=DEVICE).view(1, 1, 2, 2)
    launch = triton.Launch((1, 1, 2, 2), x.dtype, False, pool)
    y, index, _ = launch.forward(x, None, save=True)
    assert index is not None
    assert index.item() == 2
    assert y.isnan().all()
