"""The direct convolution for few input channels against PyTorch in float64: values, what backward
needs, special values, thread counts, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool.activation import PARAM_NAMES
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool, conv_output_size
from crossmedia_fast.ops.conv_act_pool.cpu_conv import ConvLaunch
from crossmedia_fast.ops.conv_act_pool.reference import act_pool2d, conv_act_pool2d_reference

from .conv_act_pool_cases import POOLS
from .tolerances import GRADIENTS, VALUES, assert_within

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

NAME = "few_channels"
FORMATS = [(True, True), (False, False), (True, False), (False, True)]  # x, y channels_last
RELU2: dict[str, Any] = {"activation": "relu", **POOLS["max2"]}

# batch, C, H, W, K, R, S, stride, padding: first layers of known networks, small; rows shorter than
# a block and of one window; one channel to eight; filters that fill no vector, one, and two; more
# windows along a row than are transformed at once; few filters, whose planes go row by row; filters
# two and three at a time, whose rows of windows end in a part of a vector, and in one taken before
SHAPES = [
    (2, 1, 28, 28, 32, 3, 3, 1, 1),
    (2, 3, 26, 35, 64, 3, 3, 1, 1),
    (1, 1, 28, 28, 6, 5, 5, 1, 2),
    (2, 3, 31, 33, 33, 3, 3, 2, 0),
    (2, 3, 18, 20, 64, 4, 4, 2, 1),
    (1, 3, 39, 37, 20, 7, 7, 2, 3),
    (1, 3, 47, 51, 16, 11, 11, 4, 2),
    (1, 6, 17, 16, 40, 4, 4, 2, 1),
    (2, 4, 5, 4, 17, 3, 3, 1, 1),
    (1, 8, 9, 3, 50, 2, 3, 1, 0),
    (3, 5, 4, 30, 1, 1, 1, 1, 0),
    (1, 2, 40, 7, 15, 1, 5, (3, 1), (0, 2)),
    (1, 2, 7, 71, 48, 3, 3, 1, 1),
    (2, 3, 20, 37, 8, 3, 3, 1, 1),
    (2, 8, 21, 65, 3, 3, 3, (2, 1), 1),
    (1, 1, 13, 33, 23, 3, 3, 1, 1),
    (2, 5, 9, 14, 2, 5, 5, 1, 2),
    (1, 2, 8, 50, 19, 2, 7, (2, 1), (0, 3)),
]
# of F(2x2)'s tiles, and of windows alone
SPECIAL = [(1, 2, 12, 40, 18, 3, 3, 1, 1), (1, 2, 12, 40, 18, 5, 5, 1, 2)]


class Problem:
    """A convolution with what follows it, its operands, and its launch in given formats."""

    def __init__(self, shape: tuple[Any, ...], seed: int = 0, **pool: Any) -> None:
        n, c, h, w, k, r, s, stride, padding = shape
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, c, h, w, generator=generator)
        self.w = torch.randn(k, c, r, s, generator=generator) / (c * r * s) ** 0.5
        self.bias: Tensor | None = torch.randn(k, generator=generator) / 4
        self.arguments = {"stride": stride, "padding": padding, **pool}
        self.conv = check_conv(stride, padding, 1, 1)
        full = {"activation": "relu", "activation_param": None, "pool": "max", "pool_size": 2,
                "pool_stride": None, "pool_padding": 0, "ceil_mode": False,
                "count_include_pad": True}  # fmt: skip
        self.pool = check_pool(**{**full, **pool})
        self.z_shape = (n, k, *conv_output_size(self.x, self.w, self.conv))

    def launch(self, x_last: bool, y_last: bool) -> ConvLaunch:
        shapes = tuple(self.x.shape), tuple(self.w.shape), self.z_shape
        return ConvLaunch(*shapes, torch.float32, self.conv, self.pool, x_last, y_last)

    def forward(self, x_last: bool, y_last: bool, save: bool) -> Any:
        launch = self.launch(x_last, y_last)
        assert launch.refusal(NAME) == ""
        x = self.x.contiguous(
            memory_format=torch.channels_last if x_last else torch.contiguous_format
        )
        return launch.forward(NAME, x, self.w, self.bias, save)

    def backward(self, x_last: bool, y_last: bool, dy: Tensor, dbias: bool = True) -> Any:
        """dw and dbias, from what forward kept."""
        launch = self.launch(x_last, y_last)
        assert launch.refusal(NAME, backward=True) == ""
        y, index, preactivation = self.forward(x_last, y_last, save=True)
        saved = {"output": y, "preactivation": preactivation}.get(launch.pool_launch.saved)
        x = self.x.contiguous(
            memory_format=torch.channels_last if x_last else torch.contiguous_format
        )
        operands = (dy, saved, index, x, self.w, self.bias)
        return launch.backward(NAME, *operands, False, True, dbias)[1:], index

    def reference_gradients(self, dy: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        """dw and dbias in float64; of a maximum, where the index says that it was: what float32
        and float64 take for the largest of nearly equal values may differ."""
        x, *leaves = (t.requires_grad_() for t in self.doubles())
        z = torch.nn.functional.conv2d(x, *leaves, self.conv.stride, self.conv.padding)
        y = act_pool2d(z, self.pool) if self.pool.pool != "max" else chosen(self, z, index)
        return torch.autograd.grad(y, leaves, dy.double())

    def random_dy(self) -> Tensor:
        shape = self.launch(True, True).pool_launch.y_shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def doubles(self) -> tuple[Tensor, ...]:
        return tuple(t.double() for t in (self.x, self.w, self.bias) if t is not None)

    def reference(self) -> Tensor:
        return conv_act_pool2d_reference(*self.doubles(), **self.arguments)

    def z(self) -> Tensor:
        x, w, *bias = self.doubles()
        return torch.nn.functional.conv2d(x, w, *bias, self.conv.stride, self.conv.padding)


def chosen(problem: Problem, z: Tensor, index: Tensor | None) -> Tensor:
    """What act(z) is where the index bytes point: the maxima, if they point to maxima."""
    assert index is not None
    p = problem.pool
    rows = torch.arange(index.shape[2])[:, None] * p.stride[0] - p.padding[0]
    columns = torch.arange(index.shape[3]) * p.stride[1] - p.padding[1]
    codes = index.long()
    at = (rows + codes // p.size[1]) * z.shape[3] + columns + codes % p.size[1]
    param = p.activation_param if p.activation in PARAM_NAMES else None
    flat = act_pool2d(z, check_pool(p.activation, param, "none", 1, 1, 0, False, True)).flatten(2)
    return flat.gather(2, at.flatten(2)).view(index.shape)


@pytest.mark.parametrize(("x_last", "y_last"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[Any, ...], x_last: bool, y_last: bool) -> None:
    for name in ("max2", "none", "max3s2p1_ceil"):
        problem = Problem(shape, **POOLS[name])
        if min(problem.z_shape[2:]) < 2:
            continue
        want = problem.reference()
        y, index, _ = problem.forward(x_last, y_last, save=True)
        assert_within(y, want, VALUES[torch.float32])
        if index is not None:
            picked = chosen(problem, problem.z(), index)
            assert_within(picked, want, VALUES[torch.float32])
        again, nothing, _ = problem.forward(x_last, y_last, save=False)
        assert nothing is None
        assert torch.equal(y, again)


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "elu", "tanh", "silu"])
@pytest.mark.parametrize("pool", POOLS)
def test_every_pool(pool: str, activation: str) -> None:
    problem = Problem((2, 3, 17, 19, 20, 3, 3, 1, 1), activation=activation, **POOLS[pool])
    for x_last, y_last in ((True, True), (False, False)):
        y, _, preactivation = problem.forward(x_last, y_last, save=True)
        assert_within(y, problem.reference(), VALUES[torch.float32])
        assert (preactivation is not None) == (activation == "silu" and "max" in pool)


def test_without_bias() -> None:
    problem = Problem((2, 3, 9, 9, 20, 3, 3, 1, 1))
    problem.bias = None
    assert_within(problem.forward(True, True, False)[0], problem.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("shape", SPECIAL, ids=str)
@pytest.mark.parametrize("pool", ["max2", "none", "avg2", "max3s2"])
def test_nan_and_infinities_come_out_where_pytorch_has_them(
    pool: str, shape: tuple[Any, ...]
) -> None:
    problem = Problem(shape, activation="leaky_relu", **POOLS[pool])
    problem.x[0, 0, 2, 3] = float("nan")
    problem.x[0, 1, 8, 22] = float("inf")
    problem.x[0, 1, 9, 30] = -float("inf")
    want = problem.reference()
    assert all(kind(want).any() for kind in (torch.isnan, torch.isinf, torch.isfinite))
    for x_last, y_last in FORMATS:
        assert_within(problem.forward(x_last, y_last, True)[0], want, VALUES[torch.float32])


@pytest.mark.parametrize("shape", SPECIAL, ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 2e37])
def test_weights_that_no_transform_keeps(value: float, shape: tuple[Any, ...]) -> None:
    problem = Problem(shape, activation="leaky_relu")
    problem.w[3, 0, 1, 1] = value
    want = problem.reference()
    for x_last, y_last in FORMATS:
        y = problem.forward(x_last, y_last, True)[0]
        assert_within(y, want, VALUES[torch.float32])
        others = [k for k in range(18) if k != 3]  # whose scale is another
        assert_within(y[:, others], want[:, others], VALUES[torch.float32])


@pytest.mark.parametrize("shape", SPECIAL, ids=str)
def test_inputs_that_no_transform_keeps(shape: tuple[Any, ...]) -> None:
    """Sums of four of them overflow; the convolution's do not."""
    problem = Problem(shape)
    problem.x = 1.5e38 + problem.x * 1e36
    problem.w /= 100
    for x_last, y_last in FORMATS:
        y = problem.forward(x_last, y_last, True)[0]
        assert_within(y, problem.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("y_last", [True, False])
def test_the_first_of_equal_maxima_wins(y_last: bool) -> None:
    problem = Problem((1, 1, 8, 30, 20, 1, 1, 1, 0), activation="identity")
    problem.x = problem.x.round().clamp(-1, 1)
    problem.w.fill_(1.0)
    problem.bias = None
    y, index, _ = problem.forward(True, y_last, save=True)
    windows = problem.x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # [1, 1, 4, 15, 4]
    first = (windows == windows.max(-1, keepdim=True).values).int().argmax(-1)
    assert torch.equal(index, first.expand_as(index).to(torch.uint8))
    assert torch.equal(y, windows.max(-1).values.expand_as(y))


@pytest.mark.parametrize("y_last", [True, False])
@pytest.mark.parametrize("pool", ["max2", "none", "max3s2p1_ceil"])
def test_threads_give_the_same_bits(
    pool: str, y_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem((2, 3, 61, 64, 48, 3, 3, 1, 1), **POOLS[pool])
    results = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(native, "thread_count", lambda threads=threads: threads)
        results.append(problem.forward(y_last, y_last, save=True)[:2])
    for y, index in results[1:]:
        assert torch.equal(y, results[0][0])
        assert index is None or torch.equal(index, results[0][1])


@pytest.mark.parametrize(("x_last", "y_last"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: tuple[Any, ...], x_last: bool, y_last: bool) -> None:
    for name in ("max2", "none", "max3s2p1_ceil", "avg2"):
        problem = Problem(shape, **POOLS[name])
        if min(problem.z_shape[2:]) < 2:
            continue
        dy = problem.random_dy()
        ours, index = problem.backward(x_last, y_last, dy)
        for have, want in zip(ours, problem.reference_gradients(dy, index), strict=True):
            assert_within(have, want, GRADIENTS[torch.float32])


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "elu", "tanh", "silu"])
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_of_every_pool(pool: str, activation: str) -> None:
    problem = Problem((2, 3, 17, 19, 20, 3, 3, 1, 1), activation=activation, **POOLS[pool])
    launch = problem.launch(True, True)
    if launch.pool_launch.saved == "input":
        assert "input" in launch.refusal(NAME, backward=True)
        return
    dy = problem.random_dy()
    for x_last, y_last in ((True, True), (False, False)):
        ours, index = problem.backward(x_last, y_last, dy)
        for have, want in zip(ours, problem.reference_gradients(dy, index), strict=True):
            assert_within(have, want, GRADIENTS[torch.float32])


def test_either_gradient_alone() -> None:
    problem = Problem((2, 3, 9, 9, 20, 3, 3, 1, 1))
    dy = problem.random_dy()
    (dw, dbias), _ = problem.backward(True, True, dy)
    (alone, nothing), _ = problem.backward(True, True, dy, dbias=False)
    assert nothing is None
    assert torch.equal(dw, alone)
    launch = problem.launch(True, True)
    y, index, _ = problem.forward(True, True, save=True)
    x = problem.x.contiguous(memory_format=torch.channels_last)
    operands = (dy, y, index, x, problem.w, problem.bias)
    assert torch.equal(launch.backward(NAME, *operands, False, False, True)[2], dbias)


@pytest.mark.parametrize("pool", ["max2", "none"])
def test_gradients_have_nan_where_pytorch_has_it(pool: str) -> None:
    problem = Problem((1, 2, 12, 40, 18, 3, 3, 1, 1), activation="leaky_relu", **POOLS[pool])
    dy = problem.random_dy()
    dy[0, 3, 2, 5] = float("nan")
    dy[0, 4, 1, 7] = float("inf")
    for value in (0.0, float("inf")):
        problem.x[0, 1, 7, 23] = value
        for x_last, y_last in FORMATS:
            ours, index = problem.backward(x_last, y_last, dy)
            for have, want in zip(ours, problem.reference_gradients(dy, index), strict=True):
                assert_within(have, want, GRADIENTS[torch.float32])


@pytest.mark.parametrize("y_last", [True, False])
@pytest.mark.parametrize("pool", ["max2", "none", "max3s2p1_ceil"])
def test_threads_give_the_same_gradient_bits(
    pool: str, y_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem((3, 3, 61, 64, 48, 3, 3, 1, 1), **POOLS[pool])
    dy = problem.random_dy()
    results = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(native, "thread_count", lambda threads=threads: threads)
        results.append(problem.backward(y_last, y_last, dy)[0])
    for dw, dbias in results[1:]:
        assert torch.equal(dw, results[0][0])
        assert torch.equal(dbias, results[0][1])


def test_a_large_output_goes_past_the_caches() -> None:
    """Above 2 MiB the stores are others."""
    for pool in ("max2", "none"):
        problem = Problem((3, 3, 130, 131, 48, 3, 3, 1, 1), **POOLS[pool])
        assert_within(
            problem.forward(True, True, True)[0], problem.reference(), VALUES[torch.float32]
        )


def test_refusals() -> None:
    base: dict[str, Any] = {
        "x_shape": (1, 3, 20, 20), "w_shape": (8, 3, 3, 3), "z_shape": (1, 8, 18, 18),
        "dtype": torch.float32, "conv": check_conv(1, 0, 1, 1),
        "pool": check_pool("relu", None, "max", 2, None, 0, False, True),
        "x_channels_last": True, "y_channels_last": True,
    }  # fmt: skip
    assert ConvLaunch(**base).refusal(NAME) == ""
    for word, changes in {
        "float32": {"dtype": torch.float64},
        "group": {"conv": check_conv(1, 0, 1, 3), "w_shape": (9, 1, 3, 3),
                  "z_shape": (1, 9, 18, 18)},
        "dilation": {"conv": check_conv(1, 0, 2, 1), "z_shape": (1, 8, 16, 16)},
        "channels": {"x_shape": (1, 9, 20, 20), "w_shape": (8, 9, 3, 3)},
        "16x16": {"x_shape": (1, 3, 20, 20), "w_shape": (8, 3, 17, 3), "z_shape": (1, 8, 4, 18)},
        "255": {"pool": check_pool("relu", None, "max", 16, None, 0, False, True)},
    }.items():  # fmt: skip
        assert word in ConvLaunch(**{**base, **changes}).refusal(NAME)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("filters", range(1, 10))
def test_planes_of_few_filters(filters: int, pool: str) -> None:
    """Beside eight filters the next goes another way: both are the reference's."""
    for activation, shape in (
        ("tanh", (2, 1, 28, 28, filters, 5, 5, 1, 2)),
        ("gelu", (1, 3, 23, 33, filters, 3, 3, 1, 0)),
        ("relu", (1, 2, 40, 16, filters, 3, 1, (2, 1), 0)),
    ):
        problem = Problem(shape, **{**POOLS[pool], "activation": activation})
        y, *_ = problem.forward(False, False, save=False)
        assert_within(y, problem.reference(), VALUES[torch.float32])
        saved, *_ = problem.forward(False, False, save=True)
        assert torch.equal(saved, y)
