"""The native act_pool2d kernels, called with raw addresses, against PyTorch in float64.

Every input is a multiple of 1/8 in [-8, 8) and every bias one in [-1, 1]: exact in all four dtypes,
and so are their sums in the compute type. Ties are therefore frequent, the kinks of the activations
(0, 6, ±3) are hit exactly, and the chosen positions can be compared one by one.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from crossmedia_fast import native

from .act_pool2d_native_calls import DTYPES, NO_POOL, SENTINEL_BYTE, Call, Geometry

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)


@pytest.fixture(autouse=True)
def _one_thread_for_pytorch():
    """Thousands of small references: starting threads would cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# |error| <= value * (1 + |expected|). float32: an activation is good to 2 ulp and a derivative from
# the output cancels once (1 - y * y), 9 terms at most add up: 16 * 2^-24. float64 goes through
# libm's functions. Half types round the output once (2^-11, 2^-8), and a derivative that follows
# from the rounded output doubles that, times the largest |dy| and |alpha| below.
FORWARD_ERROR = {"float32": 1e-6, "float64": 1e-14, "float16": 2**-11, "bfloat16": 2**-8}
BACKWARD_ERROR = {"float32": 2e-6, "float64": 1e-14, "float16": 2**-8, "bfloat16": 2**-5}

ACTIVATIONS = [
    ("identity", 0.0),
    ("relu", 0.0),
    ("leaky_relu", 0.01),
    ("leaky_relu", 0.0),
    ("leaky_relu", -0.25),  # not monotone
    ("relu6", 0.0),
    ("elu", 1.0),
    ("elu", -0.5),  # not monotone
    ("silu", 0.0),
    ("gelu", 0.0),
    ("gelu_tanh", 0.0),
    ("tanh", 0.0),
    ("sigmoid", 0.0),
    ("softplus", 1.0),
    ("softplus", 3.0),  # reaches the linear part; no multiple of 1/8 is its threshold 20 / 3
    ("hardswish", 0.0),
]
ACTIVATION_IDS = [f"{name}-{param}" for name, param in ACTIVATIONS]

GEOMETRIES = [
    # the usual windows; widths around one, two and four vectors of 16 lanes, even and odd
    Geometry((2, 3, 8, 34), (2, 2), (2, 2)),
    Geometry((1, 17, 7, 33), (2, 2), (2, 2)),
    Geometry((2, 16, 5, 67), (2, 2), (2, 2), ceil_mode=True),
    Geometry((2, 5, 9, 37), (3, 3), (2, 2)),
    Geometry((1, 33, 13, 35), (3, 3), (2, 2), (1, 1)),
    Geometry((1, 2, 12, 36), (3, 3), (2, 2), (1, 1), ceil_mode=True, count_include_pad=False),
    # stride 1, overlapping and padded
    Geometry((1, 4, 6, 35), (2, 2), (1, 1), (1, 1)),
    Geometry((1, 18, 7, 19), (3, 3), (1, 1), (1, 1), count_include_pad=False),
    # gaps between windows, and a stride that no vector form covers
    Geometry((1, 3, 11, 40), (2, 2), (3, 3)),
    Geometry((1, 19, 11, 23), (2, 3), (4, 5), (1, 1)),
    Geometry((1, 2, 10, 41), (3, 2), (3, 3), (1, 1), ceil_mode=True),
    # unequal axes; masks of 8 bits and windows that have one bit too many
    Geometry((1, 3, 9, 38), (4, 2), (2, 2), (2, 1)),
    Geometry((1, 3, 9, 38), (2, 4), (1, 2), (0, 2), count_include_pad=False),
    Geometry((1, 3, 10, 39), (1, 8), (1, 2)),
    Geometry((2, 1, 10, 39), (1, 9), (3, 2), (0, 4)),
    Geometry((1, 2, 9, 21), (5, 4), (3, 2), (2, 2), ceil_mode=True),
    # one output; a window larger than the input; one element; 256 positions need a 4-byte index
    Geometry((1, 9, 6, 7), (6, 7), (1, 1)),
    Geometry((2, 2, 3, 5), (6, 10), (2, 3), (3, 5), count_include_pad=False),
    Geometry((3, 1, 1, 1), (1, 1), (1, 1)),
    Geometry((1, 2, 20, 33), (15, 17), (3, 2)),
    Geometry((1, 3, 20, 33), (16, 16), (3, 2), (8, 8), ceil_mode=True),
    Geometry((2, 20, 5, 7), NO_POOL, NO_POOL),
    Geometry((1, 3, 4, 37), NO_POOL, NO_POOL),
    # large enough for several threads
    Geometry((2, 18, 34, 66), (2, 2), (2, 2)),
    Geometry((2, 18, 33, 65), (3, 3), (2, 2), (1, 1)),
]


def assert_near(actual: Tensor, expected: Tensor, error: float, what: str) -> None:
    difference = (actual.double() - expected).abs()
    worst = (difference / (1 + expected.abs())).max().item() if difference.numel() else 0.0
    assert worst <= error, f"{what}: error {worst:.3g} above {error:.3g}"


def pools_of(geometry: Geometry) -> list[str]:
    return ["none"] if geometry.size == NO_POOL else ["max", "avg"]


def check_call(call: Call, dtype: str) -> None:
    outputs = call.forward()
    y, index, preactivation = outputs
    z = call.z()
    activated = call.act(z)
    assert_near(y, call.pooled(activated), FORWARD_ERROR[dtype], "y")

    if call.pool == "max":
        positions = call.flat_positions(index)
        ordered = call.problem.saved in ("output", "nothing")
        if ordered:  # one value decides, exact in every dtype: so are the positions
            torch.testing.assert_close(
                positions, call.max_positions(call.ordered_by()), rtol=0, atol=0
            )
        else:  # values that float64 tells apart may be equal in float32
            chosen = activated.flatten(2).gather(2, positions.flatten(2)).view(call.y_shape)
            assert_near(chosen, call.pooled(activated), 1e-6, "chosen value")
            chosen = z.flatten(2).gather(2, positions.flatten(2)).view(call.y_shape)
            torch.testing.assert_close(preactivation, chosen.to(call.dtype), rtol=0, atol=0)

    dx, dbias = call.backward(outputs)
    expected_dx, expected_dbias = call.expected_gradients(index)
    error = BACKWARD_ERROR[dtype]
    assert_near(dx, expected_dx, error, "dx")
    # each term of the sum has an error of its own, in proportion to its dy
    scale = 1 + call.dy.double().abs().sum((0, 2, 3))
    worst = ((dbias.double() - expected_dbias).abs() / scale).max().item()
    assert worst <= error, f"dbias: error {worst:.3g} above {error:.3g}"

    (only_y, _, _) = call.forward(track=False)
    torch.testing.assert_close(only_y, y, rtol=0, atol=0)
    alone_dx, untouched = call.backward(outputs, need_dbias=False)
    torch.testing.assert_close(alone_dx, dx, rtol=0, atol=0)
    assert bool((untouched.flatten().view(torch.uint8) == SENTINEL_BYTE).all())
    _, alone_dbias = call.backward(outputs, need_dx=False)
    torch.testing.assert_close(alone_dbias, dbias, rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(("activation", "param"), ACTIVATIONS, ids=ACTIVATION_IDS)
def test_matches_pytorch(activation: str, param: float, dtype: str, channels_last: bool) -> None:
    for number, geometry in enumerate(GEOMETRIES):
        for pool in pools_of(geometry):
            call = Call(
                geometry,
                pool,
                activation,
                param,
                dtype,
                channels_last,
                number % 4 != 3,
                seed=number,
            )
            try:
                check_call(call, dtype)
            except AssertionError as error:
                raise AssertionError(f"{pool} {geometry}: {error}") from error


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_for_every_thread_count(dtype: str, pool: str, channels_last: bool) -> None:
    shapes = [(2, 18, 61, 66), (1, 5, 130, 130), (1, 70, 40, 40), (9, 1, 64, 64)]
    for shape in shapes:
        for size, stride in (((2, 2), (2, 2)), ((3, 3), (2, 2))):
            window = (NO_POOL, NO_POOL) if pool == "none" else (size, stride)
            call = Call(Geometry(shape, *window), pool, "tanh", 0.0, dtype, channels_last)
            outputs = call.forward()
            gradients = call.backward(outputs)
            for threads in (2, 3, 7):
                again = call.forward(threads)
                for one, other in zip(outputs, again, strict=True):
                    if one is not None:
                        assert torch.equal(one, other)
                for one, other in zip(gradients, call.backward(outputs, threads), strict=True):
                    assert torch.equal(one, other)


# PyTorch's own vector loops and scalar tails disagree there (csrc/common/activation.h).
GRADIENT_AT_NAN_VARIES = ("relu6", "elu", "hardswish")
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.5, 6.0, 6.5, -3.0, 1e4, -1e4]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("activation", "param"), ACTIVATIONS, ids=ACTIVATION_IDS)
def test_nan_and_infinity(activation: str, param: float, dtype: str, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    specials = torch.tensor(SPECIAL, dtype=torch.float64)
    for geometry in (
        Geometry((2, 19, 12, 38), (2, 2), (2, 2)),
        Geometry((1, 17, 13, 41), (3, 3), (2, 2), (1, 1), ceil_mode=True),
        Geometry((1, 3, 9, 20), (2, 2), (3, 3)),
        Geometry((1, 5, 9, 21), NO_POOL, NO_POOL),
    ):
        for pool in pools_of(geometry):
            chosen = torch.randint(0, len(SPECIAL), geometry.shape, generator=generator)
            x = specials[chosen]
            x[:, 0] = -math.inf  # whole windows of it
            call = Call(
                geometry, pool, activation, param, dtype, channels_last, has_bias=False, x=x
            )
            where = f"{pool} {geometry}"
            outputs = call.forward()
            # float64: PyTorch's float32 gelu gives NaN at infinity in its vector loop alone
            z = call.z().requires_grad_()
            expected = call.pooled(call.act(z))
            tolerance = {"rtol": 2e-6, "atol": 1e-6, "equal_nan": True}
            torch.testing.assert_close(
                outputs[0].double(), expected.detach(), **tolerance, msg=where
            )
            if pool == "max" and call.problem.saved in ("output", "nothing"):
                assert torch.equal(
                    call.flat_positions(outputs[1]), call.max_positions(call.ordered_by())
                ), where
            if pool != "max":  # positions among saturated values differ: their gradient is 0
                (expected_dx,) = torch.autograd.grad(expected, z, call.dy.double())
                dx, _ = call.backward(outputs)
                if activation in GRADIENT_AT_NAN_VARIES:
                    dx, expected_dx = dx[~z.isnan()], expected_dx[~z.isnan()]
                torch.testing.assert_close(dx.double(), expected_dx, **tolerance, msg=f"{where} dx")


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_a_dead_unit_stays_zero(
    pool: str, activation: str, bad: float, channels_last: bool
) -> None:
    window = (NO_POOL, NO_POOL) if pool == "none" else ((2, 2), (2, 2))
    call = Call(Geometry((2, 17, 8, 38), *window), pool, activation, channels_last=channels_last)
    call.x.clamp_(max=-2)
    dy = call.stored(torch.full(call.y_shape, bad, dtype=torch.float64))
    dx, dbias = call.backward(call.forward(), dy=dy)
    assert bool((dx == 0).all())
    assert bool((dbias == 0).all())


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [2, 3])
def test_an_element_that_was_not_chosen_has_no_gradient(size: int, channels_last: bool) -> None:
    call = Call(
        Geometry((1, 18, 9, 39), (size, size), (2, 2)),
        "max",
        "identity",
        channels_last=channels_last,
    )
    outputs = call.forward()
    dy = call.stored(torch.full(call.y_shape, math.inf, dtype=torch.float64))
    dx, _ = call.backward(outputs, dy=dy)
    chosen = torch.zeros((1, 18, 9 * 39), dtype=torch.bool)
    chosen.scatter_(2, call.flat_positions(outputs[1]).flatten(2), True)
    expected = torch.where(chosen, math.inf, 0.0).view(1, 18, 9, 39)
    assert torch.equal(dx.contiguous(), expected)


def test_negative_zero_and_the_sum_of_an_empty_batch() -> None:
    call = Call(
        Geometry((1, 3, 4, 33), (2, 2), (2, 2)),
        "max",
        "identity",
        has_bias=False,
        x=torch.full((1, 3, 4, 33), -0.0, dtype=torch.float64),
    )
    y = call.forward()[0]
    assert bool(torch.signbit(y).all())

    empty = Call(Geometry((0, 3, 4, 33), (2, 2), (2, 2)), "max")
    _, dbias = empty.backward(empty.forward())
    assert dbias.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("activation", "param"), ACTIVATIONS, ids=ACTIVATION_IDS)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_without_a_pool_the_output_may_replace_the_input(
    dtype: str, activation: str, param: float, channels_last: bool
) -> None:
    call = Call(
        Geometry((2, 19, 5, 35), NO_POOL, NO_POOL), "none", activation, param, dtype, channels_last
    )
    expected = call.forward(track=False)[0]
    address = call.x.data_ptr()
    native.module.act_pool2d_forward(call.problem, address, call.bias.data_ptr(), address, 0, 0, 2)
    torch.testing.assert_close(call.x, expected, rtol=0, atol=0)
