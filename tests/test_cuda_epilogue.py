"""The CUDA epilogue against the reference in float64, and index by index against the CPU's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossmedia_fast.ops.conv_act_pool import cpu
from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS
from crossmedia_fast.ops.conv_act_pool.arguments import Pool2d, check_pool
from crossmedia_fast.ops.conv_act_pool.reference import act_pool2d

from . import tolerances
from .cuda_calls import DEVICE, ORDERS, Guards, misaligned, runs_kernels, set_order, wide

pytestmark = runs_kernels

# windows that tile the plane, overlap, leave gaps, hang over its edge, are larger than one thread
# writes
POOLS = {
    "max": ("max", 2, None, 0, False, True),
    "max_overlapping": ("max", 3, 2, 1, False, True),
    "max_tiles_of_3x2": ("max", (3, 2), None, 0, True, True),
    "max_gaps": ("max", 1, 3, 0, False, True),
    "max_ceil": ("max", (2, 3), (2, 2), (0, 1), True, True),
    "max_large": ("max", 5, None, 0, False, True),
    "avg": ("avg", 2, None, 0, False, True),
    "avg_overlapping": ("avg", 3, 2, 1, True, False),
    "avg_padding_counts": ("avg", 3, 2, 1, True, True),
    "avg_large": ("avg", 5, None, 0, False, True),
    "none": ("none", 2, None, 0, False, True),
}
# [N, K, H, W]: nothing a multiple of anything; runs of 4 and of 8 elements along a row, and along
# the channels
ODD, EVEN = (2, 3, 7, 5), (2, 8, 7, 16)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _forward_afterwards():
    yield
    set_order(("forward", 0))


def values(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(DEVICE)
    b = torch.randn(shape[1], generator=generator, dtype=torch.float64).to(x)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x, b


def launch_of(x: Tensor, channels_last: bool, pool: Pool2d):
    from crossmedia_fast.ops.conv_act_pool import cuda

    return cuda.Launch(tuple(x.shape), x.dtype, channels_last, pool)


def both_ways(x: Tensor, b: Tensor | None, channels_last: bool, pool: Pool2d, misalign: int = 0):
    """y, the index and the pre-activation; dx and dbias for a dy of normal values; and that dy."""
    launch = launch_of(x, channels_last, pool)
    with Guards(misalign):
        y, index, preactivation = launch.forward(x, b, save=True)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dy = dy.to(y).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    saved = {"output": y, "preactivation": preactivation, "input": x}.get(launch.saved)
    with Guards(misalign):
        dx, dbias = launch.backward(dy, saved, b, index, True, True)
    return (y, index, preactivation, dx, dbias), dy


def check(x: Tensor, b: Tensor | None, channels_last: bool, pool: Pool2d) -> None:
    (y, _, _, dx, dbias), dy = both_ways(x, b, channels_last, pool)
    inputs = [t.double().requires_grad_() for t in (x, b) if t is not None]
    z = inputs[0] if b is None else inputs[0] + inputs[1][:, None, None]
    want = act_pool2d(z, pool)
    expected = torch.autograd.grad(want, inputs, dy.double())
    dtype = x.dtype
    tolerances.assert_within(y, want, tolerances.VALUES[dtype])
    gradient = tolerances.GRADIENTS.get(dtype, tolerances.VALUES[dtype])
    for actual, wanted in zip((dx, dbias), expected, strict=False):
        assert actual.dtype == dtype
        tolerances.assert_within(actual, wanted, gradient)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients(activation: str, pool: str) -> None:
    number = list(ACTIVATIONS).index(activation) + list(POOLS).index(pool)
    set_order(ORDERS[number % len(ORDERS)])
    for channels_last in (False, True):
        # both shapes in turn, so that every activation meets every kernel
        shape = (ODD, EVEN)[(number + channels_last) % 2]
        x, b = values(shape, torch.float32, channels_last, number)
        check(x, b, channels_last, check_pool(activation, None, *POOLS[pool]))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_other_dtypes(pool: str, dtype: torch.dtype) -> None:
    number = list(POOLS).index(pool)
    for activation in ("relu", "silu", list(ACTIVATIONS)[number]):
        for shape in (ODD, EVEN):
            for channels_last in (False, True):
                x, b = values(shape, dtype, channels_last)
                given = b if dtype == torch.float64 else None  # as the public function has it
                check(x, given, channels_last, check_pool(activation, None, *POOLS[pool]))


@pytest.mark.parametrize(
    ("activation", "param"),
    [("leaky_relu", -0.5), ("leaky_relu", 0.0), ("elu", -1.0), ("elu", 0.0), ("softplus", -2.0)],
)
def test_parameters_that_change_what_is_saved(activation: str, param: float) -> None:
    for pool in ("max", "max_overlapping", "avg", "avg_overlapping", "none"):
        for shape in (ODD, EVEN):
            x, b = values(shape, torch.float32, False)
            check(x, b, False, check_pool(activation, param, *POOLS[pool]))


def special_values(shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """Ties, zeros of both signs, infinities and NaN."""
    choices = torch.tensor([0.0, -0.0, 1.0, 1.0, -1.0, -5.0, 7.0, float("inf")])
    choices = torch.cat([choices, torch.tensor([float("-inf"), float("nan")])])
    picks = torch.randint(10, shape, generator=torch.Generator().manual_seed(3))
    x = choices[picks]
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_ties_infinities_and_nan_as_the_cpu_has_them(pool: str, channels_last: bool) -> None:
    for activation in ACTIVATIONS:
        pool2d = check_pool(activation, None, *POOLS[pool])
        for shape in (ODD, EVEN):
            x = special_values(shape, channels_last)
            b = torch.linspace(-1, 1, shape[1])
            (y, index, kept, dx, dbias), dy = both_ways(
                x.to(DEVICE), b.to(DEVICE), channels_last, pool2d
            )
            on_cpu = cpu.Launch(tuple(x.shape), x.dtype, channels_last, pool2d)
            want, want_index, want_kept = on_cpu.forward(x, b, save=True)
            saved = {"output": want, "preactivation": want_kept, "input": x}.get(on_cpu.saved)
            want_dx, want_dbias = on_cpu.backward(dy.cpu(), saved, b, want_index, True, True)
            assert (index is None) == (want_index is None)
            if index is not None:
                assert torch.equal(index.cpu(), want_index)
            for actual, expected in ((y, want), (kept, want_kept), (dx, want_dx)):
                if expected is not None:
                    assert torch.equal(actual.cpu().isnan(), expected.isnan())
                    tolerances.assert_within(actual.cpu(), expected, 5e-7)
            tolerances.assert_within(dbias.cpu(), want_dbias, 3e-6)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", ["max", "max_overlapping", "avg", "none"])
def test_the_same_bits_in_every_order_and_width(pool: str, channels_last: bool) -> None:
    x, b = values((3, 16, 12, 16), torch.float32, channels_last)
    pool2d = check_pool("silu", None, *POOLS[pool])
    results = []
    for order in ORDERS:
        set_order(order)
        results.append(both_ways(x, b, channels_last, pool2d)[0])
    with wide():
        results.append(both_ways(x, b, channels_last, pool2d)[0])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", ["max", "max_overlapping", "max_tiles_of_3x2", "avg", "none"])
def test_any_alignment(pool: str, channels_last: bool, dtype: torch.dtype) -> None:
    x, b = values(EVEN, dtype, channels_last)
    pool2d = check_pool("tanh", None, *POOLS[pool])
    want, _ = both_ways(x, b, channels_last, pool2d)
    for inputs, outputs in ((1, 0), (0, 1), (1, 1)):
        got, _ = both_ways(
            misaligned(x, inputs), misaligned(b, inputs), channels_last, pool2d, outputs
        )
        for first, second in zip(want[:4], got[:4], strict=True):
            assert (first is None and second is None) or torch.equal(first, second)
        # another kernel adds in another order
        tolerances.assert_within(got[4], want[4], tolerances.SAME_DTYPE[dtype] * 4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_many_blocks_with_several_steps_a_thread(pool: str, channels_last: bool) -> None:
    # more threads than a GPU needs: each takes two cells, and a plane has many parts
    shape = (1, 33, 200, 161) if pool == "none" else (1, 33, 400, 322)
    x, b = values(shape, torch.float32, channels_last)
    check(x, b, channels_last, check_pool("relu", None, *POOLS[pool]))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 1, 1, 1), (1, 300, 1, 1), (70, 2, 2, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_few_elements(shape: tuple[int, ...], channels_last: bool) -> None:
    for pool in (("none", 2, None, 0, False, True), ("max", 1, 1, 0, False, True)):
        pool2d = check_pool("gelu", None, *pool)
        x, b = values(shape, torch.float32, channels_last)
        if shape[0]:
            check(x, b, channels_last, pool2d)
            continue
        launch = launch_of(x, channels_last, pool2d)
        y, index, kept = launch.forward(x, b, save=True)
        assert tuple(y.shape) == shape
        saved = {"output": y, "preactivation": kept, "input": x}.get(launch.saved)
        dx, dbias = launch.backward(torch.empty_like(y), saved, b, index, True, True)
        assert tuple(dx.shape) == shape
        assert dbias.eq(0).all()


def test_windows_of_more_than_255_positions_keep_a_wide_index() -> None:
    x, b = values((1, 2, 17, 34), torch.float32, False)
    check(x, b, False, check_pool("relu", None, "max", 17, None, 0, False, True))
    x, b = values((1, 8, 17, 17), torch.float32, True)
    check(x, b, True, check_pool("silu", None, "max", 17, None, 0, False, True))


@pytest.mark.parametrize("pool", ["max", "max_overlapping", "avg", "none"])
def test_one_gradient_alone(pool: str) -> None:
    x, b = values(EVEN, torch.float32, False)
    pool2d = check_pool("sigmoid", None, *POOLS[pool])
    (y, index, kept, dx, dbias), dy = both_ways(x, b, False, pool2d)
    launch = launch_of(x, False, pool2d)
    saved = {"output": y, "preactivation": kept, "input": x}.get(launch.saved)
    got = launch.backward(dy, saved, b, index, True, False)
    assert torch.equal(got[0], dx)
    assert got[1] is None
    got = launch.backward(dy, saved, b, index, False, True)
    assert got[0] is None
    assert torch.equal(got[1], dbias)


def test_in_place() -> None:
    pool = check_pool("relu", None, *POOLS["none"])
    x, _ = values((1, 2, 4, 4), torch.float32, False)
    want = x.relu()
    y = launch_of(x, False, pool).forward(x, None, save=False, in_place=True)[0]
    assert y is x
    assert torch.equal(x, want)


def test_a_dy_of_any_strides() -> None:
    x, b = values(EVEN, torch.float32, False)
    pool = check_pool("relu", None, *POOLS["max"])
    (y, index, _, dx, dbias), dy = both_ways(x, b, False, pool)
    strided = torch.empty((*dy.shape[:3], 2 * dy.shape[3]), device=DEVICE)[..., ::2].copy_(dy)
    got = launch_of(x, False, pool).backward(strided, y, b, index, True, True)
    assert torch.equal(got[0], dx)
    assert torch.equal(got[1], dbias)


def test_what_the_kernels_do_not_take() -> None:
    from crossmedia_fast.ops.conv_act_pool import cuda

    with pytest.raises(ValueError, match="width must be"):
        cuda.Launch(
            (1, 1, 1, 2**31), torch.float32, False, check_pool("relu", None, *POOLS["none"])
        )
