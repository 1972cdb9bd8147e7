"""The native act_pool2d kernels, called with raw addresses, against PyTorch in float64.

Every input is a multiple of 1/8 in [-8, 8) and every bias one in [-1, 1]: exact in all four dtypes,
and so are their sums in the compute type. Ties are therefore frequent, the kinks of the activations
(0, 6, ±3) are hit exactly, and the chosen positions can be compared one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool.activation import activate

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

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

SENTINEL_BYTE = 0xA5
MARGIN = 64  # bytes on both sides of every output


@dataclass(frozen=True)
class Geometry:
    """A pooling and the shape that it works on."""

    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def out(self) -> tuple[int, int]:
        if self.size == (0, 0):
            return self.shape[2:]
        probe = torch.empty((1, 1, *self.shape[2:]), device="meta")
        return F.max_pool2d(probe, self.size, self.stride, self.padding, 1, self.ceil_mode).shape[
            2:
        ]


NO_POOL = (0, 0)

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


class Guarded:
    """A dense tensor between two margins that nothing may write to."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
        self.bytes = math.prod(shape) * dtype.itemsize
        self.buffer = torch.full((self.bytes + 2 * MARGIN,), SENTINEL_BYTE, dtype=torch.uint8)
        flat = self.buffer[MARGIN : MARGIN + self.bytes].view(dtype)
        if channels_last and len(shape) == 4:
            n, k, h, w = shape
            self.tensor = flat.view(n, h, w, k).permute(0, 3, 1, 2)
        else:
            self.tensor = flat.view(shape)

    def address(self) -> int:
        return self.buffer.data_ptr() + MARGIN

    def check(self) -> None:
        outside = torch.cat([self.buffer[:MARGIN], self.buffer[MARGIN + self.bytes :]])
        assert bool((outside == SENTINEL_BYTE).all()), "wrote outside its output"


def make_problem(
    geometry: Geometry, pool: str, activation: str, param: float, dtype: str, channels_last: bool
):
    n, k, h, w = geometry.shape
    out = geometry.out()
    none = pool == "none"
    return native.module.ActPool2dProblem(
        batch=n,
        channels=k,
        height=h,
        width=w,
        out_height=out[0],
        out_width=out[1],
        pool_height=1 if none else geometry.size[0],
        pool_width=1 if none else geometry.size[1],
        pool_stride_height=1 if none else geometry.stride[0],
        pool_stride_width=1 if none else geometry.stride[1],
        pool_pad_height=geometry.padding[0],
        pool_pad_width=geometry.padding[1],
        count_include_pad=geometry.count_include_pad,
        pool=pool,
        activation=activation,
        activation_param=param,
        dtype=dtype,
        channels_last=channels_last,
    )


class Call:
    """One problem with its operands; runs forward and backward on guarded outputs."""

    def __init__(
        self,
        geometry: Geometry,
        pool: str,
        activation: str = "relu",
        param: float = 0.0,
        dtype: str = "float32",
        channels_last: bool = False,
        has_bias: bool = True,
        x: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.geometry, self.pool, self.activation, self.param = geometry, pool, activation, param
        self.dtype, self.channels_last = DTYPES[dtype], channels_last
        self.problem = make_problem(geometry, pool, activation, param, dtype, channels_last)
        generator = torch.Generator().manual_seed(seed)
        self.y_shape = (*geometry.shape[:2], *geometry.out())

        def grid(shape: tuple[int, ...], low: int, high: int) -> Tensor:
            values = torch.randint(low, high, shape, generator=generator).to(torch.float64) / 8
            return self.stored(values)

        self.x = grid(geometry.shape, -64, 64) if x is None else self.stored(x)
        self.bias = grid((geometry.shape[1],), -8, 9) if has_bias else None
        self.dy = grid(self.y_shape, -16, 17)

    def stored(self, values: Tensor) -> Tensor:
        target = Guarded(tuple(values.shape), self.dtype, self.channels_last)
        target.tensor.copy_(values)
        return target.tensor

    def z(self) -> Tensor:
        z = self.x.double()
        return z if self.bias is None else z + self.bias.double()[:, None, None]

    def forward(self, threads: int = 1, track: bool = True) -> tuple[Tensor, ...]:
        y = Guarded(self.y_shape, self.dtype, self.channels_last)
        index = preactivation = None
        if track and self.problem.index_itemsize:
            index_dtype = torch.uint8 if self.problem.index_itemsize == 1 else torch.int32
            index = Guarded(self.y_shape, index_dtype, self.channels_last)
        if track and self.problem.saved == "preactivation":
            preactivation = Guarded(self.y_shape, self.dtype, self.channels_last)
        native.module.act_pool2d_forward(
            self.problem,
            self.x.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
            y.address(),
            0 if index is None else index.address(),
            0 if preactivation is None else preactivation.address(),
            threads,
        )
        for output in (y, index, preactivation):
            if output is not None:
                output.check()
        return tuple(None if o is None else o.tensor for o in (y, index, preactivation))

    def backward(
        self,
        outputs: tuple[Tensor, ...],
        threads: int = 1,
        need_dx: bool = True,
        need_dbias: bool = True,
        dy: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        y, index, preactivation = outputs
        kinds = {"output": y, "preactivation": preactivation, "input": self.x}
        saved = kinds.get(self.problem.saved)
        dx = Guarded(self.geometry.shape, self.dtype, self.channels_last)
        dbias = Guarded((self.geometry.shape[1],), self.dtype, False)
        native.module.act_pool2d_backward(
            self.problem,
            (self.dy if dy is None else dy).data_ptr(),
            0 if saved is None else saved.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
            0 if index is None else index.data_ptr(),
            dx.address() if need_dx else 0,
            dbias.address() if need_dbias else 0,
            threads,
        )
        dx.check()
        dbias.check()
        return dx.tensor, dbias.tensor

    # -- the same in PyTorch, float64 ------------------------------------------------------------

    def flat_positions(self, index: Tensor) -> Tensor:
        """Positions within the windows [N, K, P, Q] as positions in the plane."""
        g = self.geometry
        position = index.long()
        rows = torch.arange(index.shape[2]) * g.stride[0] - g.padding[0]
        columns = torch.arange(index.shape[3]) * g.stride[1] - g.padding[1]
        h = rows[:, None] + position // g.size[1]
        w = columns + position % g.size[1]
        assert bool(((h >= 0) & (h < g.shape[2]) & (w >= 0) & (w < g.shape[3])).all())
        return h * g.shape[3] + w

    def pooled(self, values: Tensor) -> Tensor:
        g = self.geometry
        if self.pool == "max":
            return F.max_pool2d(values, g.size, g.stride, g.padding, 1, g.ceil_mode)
        if self.pool == "avg":
            return F.avg_pool2d(
                values, g.size, g.stride, g.padding, g.ceil_mode, g.count_include_pad
            )
        return values

    def max_positions(self, values: Tensor) -> Tensor:
        g = self.geometry
        return F.max_pool2d(
            values, g.size, g.stride, g.padding, 1, g.ceil_mode, return_indices=True
        )[1]

    def act(self, z: Tensor) -> Tensor:
        return activate(z, self.activation, self.param)

    def ordered_by(self) -> Tensor:
        """What the maximum is taken over: x + bias, where the activation keeps its order."""
        return self.z() if self.problem.monotone else self.act(self.z())

    def expected_gradients(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """dx and dbias through the positions in `index` (max), else through the pooling itself."""
        z = self.z().requires_grad_()
        if self.pool == "max":
            chosen = z.flatten(2).gather(2, self.flat_positions(index).flatten(2))
            y = self.act(chosen).view(self.y_shape)
        else:
            y = self.pooled(self.act(z))
        (dx,) = torch.autograd.grad(y, z, self.dy.double())
        return dx, dx.sum((0, 2, 3))


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


# -- bad arguments -------------------------------------------------------------------------------

GOOD = {
    "batch": 2,
    "channels": 3,
    "height": 8,
    "width": 8,
    "out_height": 4,
    "out_width": 4,
    "pool_height": 2,
    "pool_width": 2,
    "pool_stride_height": 2,
    "pool_stride_width": 2,
    "pool_pad_height": 0,
    "pool_pad_width": 0,
    "count_include_pad": True,
    "pool": "max",
    "activation": "relu",
    "activation_param": 0.0,
    "dtype": "float32",
    "channels_last": False,
}
HUGE = 2**40
BAD_PROBLEMS = [
    {"batch": -1},
    {"channels": 0},
    {"channels": -3},
    {"height": 0},
    {"width": -(2**40)},
    {"out_height": 0},
    {"out_height": 5},
    {"out_width": 3},
    {"out_width": 2**40},
    {"pool_height": 0},
    {"pool_width": -2},
    {"pool_stride_height": 0},
    {"pool_stride_width": -1},
    {"pool_pad_height": 2},
    {"pool_pad_width": -1},
    {"pool": "median"},
    {"pool": ""},
    {"pool": "none"},
    {"activation": "relu7"},
    {"dtype": "int8"},
    {"batch": HUGE, "channels": HUGE},
    {"batch": HUGE, "channels": HUGE, "height": HUGE, "out_height": HUGE // 2},
    {"height": HUGE, "width": HUGE, "out_height": HUGE // 2, "out_width": HUGE // 2},
    {"height": 2**41, "out_height": 2**40},
    # a window whose positions exceed 31 bits
    {"pool_height": 2**20, "pool_width": 2**20, "height": 2**20, "width": 2**20}
    | {"out_height": 1, "out_width": 1},
]


@pytest.mark.parametrize("change", BAD_PROBLEMS, ids=lambda change: "-".join(change))
def test_a_bad_problem_is_a_value_error(change: dict[str, object]) -> None:
    native.module.ActPool2dProblem(**GOOD)
    with pytest.raises(ValueError):
        native.module.ActPool2dProblem(**(GOOD | change))


@pytest.mark.parametrize(
    "change",
    [{"batch": 2.5}, {"batch": "2"}, {"pool": 3}, {"activation": None}, {"activation_param": "x"}],
    ids=str,
)
def test_a_bad_type_is_a_type_error(change: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        native.module.ActPool2dProblem(**(GOOD | change))


def test_huge_but_consistent_sizes_make_a_problem() -> None:
    native.module.ActPool2dProblem(
        **(GOOD | {"height": 2**30, "width": 2**20, "out_height": 2**29, "out_width": 2**19})
    )


@pytest.mark.parametrize(
    ("position", "value"),
    [(1, 0), (1, 2), (2, 2), (3, 0), (3, 1), (6, 0), (6, -1), (6, 2**20)],
)
def test_bad_addresses_and_threads_of_forward(position: int, value: int) -> None:
    call = Call(Geometry((1, 2, 4, 4), (2, 2), (2, 2)), "max")
    y = torch.zeros(1, 2, 2, 2)
    index = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    arguments = [call.problem, call.x.data_ptr(), call.bias.data_ptr(), y.data_ptr()]
    arguments += [index.data_ptr(), 0, 1]
    native.module.act_pool2d_forward(*arguments)
    # 1 and 2 stand for an address that is off by that many bytes
    arguments[position] = arguments[position] + value if value in (1, 2) else value
    with pytest.raises(ValueError):
        native.module.act_pool2d_forward(*arguments)


@pytest.mark.parametrize(
    ("position", "value"),
    [(1, 0), (1, 1), (2, 0), (2, 2), (3, 1), (4, 0), (5, 1), (6, 2), (7, 0), (7, 2**20)],
)
def test_bad_addresses_and_threads_of_backward(position: int, value: int) -> None:
    call = Call(Geometry((1, 2, 4, 4), (2, 2), (2, 2)), "max")
    y, index, _ = call.forward()
    dx, dbias = torch.zeros(1, 2, 4, 4), torch.zeros(2)
    arguments = [call.problem, call.dy.data_ptr(), y.data_ptr(), call.bias.data_ptr()]
    arguments += [index.data_ptr(), dx.data_ptr(), dbias.data_ptr(), 1]
    native.module.act_pool2d_backward(*arguments)
    arguments[position] = arguments[position] + value if value in (1, 2) else value
    with pytest.raises(ValueError):
        native.module.act_pool2d_backward(*arguments)


def test_the_index_of_four_bytes_is_aligned() -> None:
    call = Call(Geometry((1, 1, 16, 16), (16, 16), (16, 16)), "max")
    assert call.problem.index_itemsize == 4
    index = torch.zeros(8, dtype=torch.uint8)
    y = torch.zeros(1)
    with pytest.raises(ValueError, match="index"):
        native.module.act_pool2d_forward(
            call.problem, call.x.data_ptr(), 0, y.data_ptr(), index.data_ptr() + 1, 0, 1
        )


def test_average_masks_need_their_index_and_other_pools_their_saved_values() -> None:
    masked = Call(Geometry((1, 1, 4, 4), (2, 2), (2, 2)), "avg", "relu")
    assert masked.problem.saved == "mask"
    dx = torch.zeros(16)
    with pytest.raises(ValueError, match="index"):
        native.module.act_pool2d_backward(
            masked.problem, masked.dy.data_ptr(), 0, 0, 0, dx.data_ptr(), 0, 1
        )
    from_input = Call(Geometry((1, 1, 4, 4), (2, 2), (2, 2)), "avg", "gelu")
    assert from_input.problem.saved == "input"
    with pytest.raises(ValueError, match="saved"):
        native.module.act_pool2d_backward(
            from_input.problem, from_input.dy.data_ptr(), 0, 0, 0, dx.data_ptr(), 0, 1
        )
