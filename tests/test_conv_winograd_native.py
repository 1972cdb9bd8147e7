"""The Winograd convolution against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool
from crossmedia_fast.ops.conv_act_pool.cpu_conv import ConvLaunch
from crossmedia_fast.ops.conv_act_pool.reference import act_pool2d

from .conv_native_launch import kept_weights
from .tolerances import WINOGRAD, WINOGRAD_F6, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MAX2: dict[str, Any] = {"pool": "max", "size": 2, "stride": 2}
MAX3: dict[str, Any] = {"pool": "max", "size": 3, "stride": 2, "padding": 1}
AVG2: dict[str, Any] = {"pool": "avg", "size": 2, "stride": 2}
NONE: dict[str, Any] = {"pool": "none", "size": 1, "stride": 1}

# N, C, H, W, K, R, S, stride, padding: every r; channels and filters on both sides of a vector and
# of two; images of one tile, of a part of one, and cut into bands; several images a band; F(2×2),
# for few tiles that share a megabyte of weights; at last filters in parts, some of which see
# nothing but padding.
SHAPES = [
    (2, 16, 8, 8, 32, 3, 3, 1, 1),
    (3, 5, 13, 17, 37, 3, 3, 1, 1),
    (1, 33, 6, 5, 1, 3, 3, 1, 0),
    (1, 3, 70, 150, 17, 3, 3, 1, 1),
    (40, 20, 7, 6, 50, 3, 3, 1, 2),
    (2, 16, 16, 18, 32, 4, 4, 2, 1),
    (2, 6, 33, 31, 20, 4, 4, 2, 1),
    (2, 32, 23, 21, 40, 3, 3, 2, 1),
    (2, 3, 33, 31, 16, 7, 7, 2, 3),
    (2, 17, 33, 31, 16, 7, 7, 2, 3),
    (1, 3, 63, 65, 16, 11, 11, 4, 2),
    (2, 33, 15, 14, 24, 5, 5, 1, 2),
    (1, 8, 12, 12, 8, 4, 2, 2, 0),
    (1, 8, 12, 13, 8, 3, 3, (1, 2), 1),
    (1, 4, 5, 5, 8, 5, 5, 1, 0),
    (2, 96, 7, 6, 100, 3, 3, 1, 1),
    (8, 80, 4, 3, 97, 3, 3, 1, 1),
    (1, 90, 7, 9, 90, 3, 3, 1, 0),
    (2, 16, 16, 18, 32, 7, 7, 1, 3),
    (1, 21, 29, 31, 3, 7, 7, 1, 3),
    (2, 5, 13, 12, 37, 6, 6, 1, 2),
    (1, 17, 22, 19, 20, 9, 9, 1, 4),
    (1, 3, 70, 150, 17, 9, 7, 1, 3),
    (2, 18, 12, 14, 16, 8, 3, 1, 1),
    (1, 20, 15, 15, 18, 11, 12, 1, 0),
    (1, 6, 3, 2, 5, 7, 7, 1, 6),
    (2, 4, 1, 9, 9, 5, 15, 1, 4),
]


class Problem:
    """Tensors and a launch of one shape."""

    def __init__(self, shape: Any, pool: dict[str, Any], activation: str, memory: str) -> None:
        N, C, H, W, K, R, S, stride, padding = shape
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(N, C, H, W, generator=generator).to(memory_format=FORMATS[memory])
        self.w = torch.randn(K, C, R, S, generator=generator) / (C * R * S) ** 0.5
        self.bias = torch.randn(K, generator=generator)
        self.conv = check_conv(stride, padding, 1, 1)
        self.pool = check_pool(
            activation,
            None,
            pool["pool"],
            pool["size"],
            pool["stride"],
            pool.get("padding", 0),
            False,
            True,
        )
        strides = self.conv.stride
        taps = max(-(-R // strides[0]), -(-S // strides[1]))
        self.taps = -(-taps // -(-taps // 5))  # of a part
        self.launch = ConvLaunch(
            tuple(self.x.shape),
            tuple(self.w.shape),
            tuple(self.convolve(self.x.double()).shape),
            torch.float32,
            self.conv,
            self.pool,
            memory == "channels_last",
            memory == "channels_last",
        )

    def convolve(self, x: Tensor) -> Tensor:
        w, bias = self.w.to(x.dtype), self.bias.to(x.dtype)
        return F.conv2d(x, w, bias, self.conv.stride, self.conv.padding)

    def expected(self) -> Tensor:
        return act_pool2d(self.convolve(self.x.double()), self.pool)

    def run(
        self, save: bool = False, algorithm: str = "winograd"
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.launch.forward(algorithm, self.x, self.w, self.bias, save)


def fits(shape: Any, pool: dict[str, Any]) -> bool:
    _, _, H, W, _, R, S, stride, padding = shape
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    height = (H + 2 * padding - R) // strides[0] + 1
    width = (W + 2 * padding - S) // strides[1] + 1
    size = pool["size"] if isinstance(pool["size"], tuple) else (pool["size"], pool["size"])
    room = 2 * pool.get("padding", 0)
    return height + room >= size[0] and width + room >= size[1]


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: Any, memory: str) -> None:
    for pool, activation in (
        (NONE, "leaky_relu"),
        (MAX2, "relu"),
        (MAX2, "silu"),
        (MAX2, "elu"),
        (AVG2, "leaky_relu"),
        (AVG2, "tanh"),
        (MAX3, "relu"),
    ):
        if not fits(shape, pool):
            continue
        problem = Problem(shape, pool, activation, memory)
        y, _, _ = problem.run()
        assert y.is_contiguous(memory_format=FORMATS[memory])
        assert_within(y, problem.expected(), WINOGRAD[problem.taps])


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 4, 128, 128, 40, 3, 3, 1, 1),
        (2, 4, 128, 130, 48, 3, 3, 1, 1),  # some bands begin inside a line of a plane
        (9, 16, 64, 64, 32, 3, 3, 1, 1),
        (2, 4, 129, 131, 48, 3, 3, 1, 1),
    ],
    ids=str,
)
def test_a_large_output_goes_past_the_caches(shape: Any, memory: str) -> None:
    """Above 4 MiB whole lines are stored otherwise."""
    for pool, activation in ((NONE, "relu6"), (NONE, "leaky_relu"), (MAX3, "relu")):
        problem = Problem(shape, pool, activation, memory)
        assert_within(problem.run()[0], problem.expected(), WINOGRAD[3])


@pytest.mark.parametrize("memory", FORMATS)
def test_larger_tiles(memory: str) -> None:
    for shape in ((3, 5, 13, 17, 37, 3, 3, 1, 1), (1, 33, 70, 65, 33, 3, 3, 1, 0)):
        for pool, activation in ((NONE, "relu"), (MAX2, "relu"), (AVG2, "relu"), (MAX3, "silu")):
            problem = Problem(shape, pool, activation, memory)
            y, _, _ = problem.run(algorithm="winograd_f6")
            assert_within(y, problem.expected(), WINOGRAD_F6)
    other = Problem(SHAPES[5], NONE, "relu", memory)
    assert "3×3" in other.launch.refusal("winograd_f6")


@pytest.mark.parametrize("memory", FORMATS)
def test_what_backward_needs(memory: str) -> None:
    shape = (2, 16, 14, 18, 40, 3, 3, 1, 1)
    for pool, activation in ((MAX2, "relu"), (MAX3, "relu"), (MAX2, "silu"), (AVG2, "relu")):
        problem = Problem(shape, pool, activation, memory)
        y, index, preactivation = problem.run(save=True)
        assert torch.equal(y, problem.run()[0])
        assert index is not None
        assert index.is_contiguous(memory_format=FORMATS[memory])
        z = problem.convolve(problem.x.double())
        if pool["pool"] == "avg":
            ones = [(z[..., r::2, s::2] > 0).long() << (2 * r + s) for r in (0, 1) for s in (0, 1)]
            close = z.abs().unfold(2, 2, 2).unfold(3, 2, 2).amin((-1, -2)) < 1e-5
            assert ((index == sum(ones)) | close).all()
            continue
        _, flat = F.max_pool2d(
            F.silu(z) if activation == "silu" else z,  # ReLU chooses the maximum even below 0
            pool["size"],
            pool["stride"],
            pool.get("padding", 0),
            return_indices=True,
        )
        rows = torch.arange(y.shape[2])[:, None] * 2 - pool.get("padding", 0)
        columns = torch.arange(y.shape[3]) * 2 - pool.get("padding", 0)
        position = index.long()
        chosen = (rows + position // pool["size"]) * z.shape[3] + columns + position % pool["size"]
        # where rounding chose a neighbour, the neighbour is as large
        values = z.flatten(2).gather(2, chosen.flatten(2))
        assert_within(values, z.flatten(2).gather(2, flat.flatten(2)), WINOGRAD[3])
        assert (chosen == flat).double().mean() > 0.99
        if activation == "silu":
            assert preactivation is not None
            assert_within(preactivation.flatten(2), values, WINOGRAD[3])


@pytest.mark.parametrize("memory", FORMATS)
def test_same_bits_for_any_thread_count(memory: str) -> None:
    before = torch.get_num_threads()
    try:
        for shape in ((3, 20, 30, 29, 70, 3, 3, 1, 1), (1, 3, 70, 150, 100, 3, 3, 1, 1)):
            for pool in (MAX2, MAX3, NONE):
                problem = Problem(shape, pool, "relu", memory)
                outputs = []
                for threads in (1, 2, 3, 7):
                    torch.set_num_threads(threads)
                    outputs.append(problem.run()[0])
                assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("taps", [3, 7])
def test_not_finite_stays_where_it_is(taps: int, value: float, memory: str) -> None:
    """A transform would spread NaN over a tile, and a large value would overflow in it."""
    shape = (2, 18, 14, 15, 40, taps, taps, 1, taps // 2)
    for pool, activation in (
        (NONE, "identity"),
        (NONE, "relu6"),
        (NONE, "leaky_relu"),
        (MAX2, "relu"),
        (AVG2, "relu"),
        (MAX3, "relu"),
    ):
        problem = Problem(shape, pool, activation, memory)
        problem.x[0, 3, 5, 6] = value
        problem.x[1, 17, 13, 14] = value
        y, _, _ = problem.run()
        expected = problem.expected()
        expected = expected.float().double()  # what float32 can't hold is infinite
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.isinf(), expected.isinf())
        if value == 3e38 and taps == 7:
            continue  # it doesn't overflow in F(4, 4): the outputs of its tile round as it does
        finite = expected.isfinite() & (expected.abs() < 1e6)
        assert_within(y[finite], expected[finite], WINOGRAD[problem.taps])
    problem = Problem(shape, MAX2, "relu", memory)
    problem.w[5, 2, taps // 2, taps // 2] = value  # that sees no padding
    y, _, _ = problem.run()
    expected = problem.expected().float()
    assert torch.equal(y[:, 5].isnan(), expected[:, 5].isnan())
    assert torch.equal(y[:, 5].isinf(), expected[:, 5].isinf())
    assert_within(y[:, 6:], expected[:, 6:], WINOGRAD[problem.taps])


def test_precision_decides() -> None:
    x, w = torch.randn(2, 64, 28, 28), torch.randn(64, 64, 3, 3)
    assert cmf.explain(x, w, padding=1).algorithm == "winograd"
    with cmf.conv_precision("highest"):
        plan = cmf.explain(x, w, padding=1)
        # six products of bfloat16 on a matrix unit round as float32 does
        exact = ("implicit_gemm",) if native.has_matrix_unit() else ("patches", "epilogue")
        assert plan.algorithm in exact
        assert "conv_precision" in str(plan)
        y = cmf.conv_act_pool2d(x, w, padding=1)
    with cmf.conv_precision("medium"):
        assert cmf.explain(torch.randn(1, 64, 96, 96), w, padding=1).algorithm == "winograd_f6"
        grows = cmf.explain(torch.randn(1, 64, 96, 96), w.clone().requires_grad_(), padding=1)
        assert grows.algorithm == "winograd"
    assert not torch.equal(y, cmf.conv_act_pool2d(x, w, padding=1))


def test_refusals_say_why() -> None:
    def refusal(x: Any, w: Any, **arguments: Any) -> str:
        memory_format = arguments.pop("memory_format", torch.contiguous_format)
        input = torch.randn(x).to(memory_format=memory_format)
        plan = cmf.explain(input, torch.randn(w), **arguments)
        return dict(plan.rejected_algorithms)["winograd"]

    assert "groups" in refusal((1, 6, 28, 28), (36, 3, 3, 3), groups=2)
    assert "dilation" in refusal((1, 32, 28, 28), (32, 32, 3, 3), dilation=2)
    assert "taps" in refusal((1, 32, 28, 28), (32, 32, 1, 1))
    assert "stride 1" in refusal((1, 32, 28, 28), (32, 32, 13, 13), stride=2)
    assert "at most 15 taps" in refusal((1, 32, 28, 28), (32, 32, 1, 16))
    assert "both sides" in refusal((1, 32, 28, 28), (32, 32, 4, 4), padding="same")
    few: Any = {"pool": "none", "memory_format": torch.channels_last}
    assert "too little" in refusal((8, 512, 4, 4), (1, 512, 4, 4), **few)


def test_memory_around_outputs_is_left_alone() -> None:
    for memory in FORMATS:
        for pool, taps in ((MAX2, 3), (MAX3, 3), (NONE, 3), (MAX2, 7), (NONE, 9)):
            shape = (2, 5, 13, 17, 37, taps, taps, 1, taps // 2)
            problem = Problem(shape, pool, "relu", memory)
            launch = problem.launch
            count = problem.expected().numel()
            prepared = kept_weights(launch, "winograd", problem.w)
            values = torch.full((count + 64,), 7.0)
            codes = torch.full((count + 64,), 77, dtype=torch.uint8)
            tracks = launch.pool_launch.index_dtype is not None
            native.module.conv_act_pool2d_forward(  # type: ignore[union-attr]
                "winograd",
                launch.native,
                problem.x.data_ptr(),
                problem.w.data_ptr(),
                prepared.data_ptr(),
                problem.bias.data_ptr(),
                values.data_ptr() + 32 * 4,
                codes.data_ptr() + 32 if tracks else 0,
                0,
                2,
            )
            for tensor, guard in ((values, 7), (codes, 77)):
                assert (tensor[:32] == guard).all()
                assert (tensor[-32:] == guard).all()
