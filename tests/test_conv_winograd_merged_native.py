"""dw and dbias of few input channels, all phases of the stride side by side, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import cpu_conv, prepared
from crossmedia_fast.ops.conv_act_pool.conv_cost import (
    AVX2,
    AVX512,
    few_channels_gain,
    merged_gradient_gain,
)

from .test_conv_winograd_backward_native import (
    Backward,
    assert_memory_around_gradients_is_left_alone,
    assert_same_bits_for_any_thread_count,
    assert_same_kinds,
)
from .test_conv_winograd_native import AVG2, FORMATS, MAX2, MAX3, NONE, fits
from .tolerances import WINOGRAD_GRADIENTS, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

MAX_UNEVEN: dict[str, Any] = {"pool": "max", "size": (2, 3), "stride": (1, 2)}

# N, C, H, W, K, R, S, stride, padding
SHAPES = [
    (2, 3, 33, 31, 16, 7, 7, 2, 3),
    (1, 3, 63, 65, 64, 11, 11, 4, 2),
    (3, 6, 33, 31, 20, 4, 4, 2, 1),
    (2, 3, 16, 18, 130, 4, 4, 2, 1),  # three groups of filters
    (70, 2, 9, 11, 18, 5, 5, 2, 0),  # more runs than partial gradients
    (1, 1, 19, 500, 33, 3, 3, 2, 1),  # a strip of more tiles than a chunk
    (2, 8, 12, 13, 8, 3, 3, (1, 2), 1),
    (1, 8, 12, 12, 1, 4, 2, 2, 0),
    (2, 5, 13, 17, 37, 3, 3, 1, 1),
    (1, 4, 5, 5, 8, 5, 5, 1, 0),
    (1, 1, 13, 13, 8, 9, 9, 3, 4),
]


def weight_gradients(problem: Backward) -> tuple[Tensor, Tensor]:
    dx, dw, dbias = problem.run(False, True, True)
    assert dx is None
    return dw, dbias


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: Any, memory: str) -> None:
    for pool, activation in (
        (NONE, "leaky_relu"),
        (NONE, "tanh"),
        (MAX2, "relu"),
        (AVG2, "leaky_relu"),
        (MAX3, "relu"),
        (MAX3, "silu"),
        (MAX_UNEVEN, "leaky_relu"),
    ):
        if not fits(shape, pool):
            continue
        problem = Backward(shape, pool, activation, memory)
        dw, dbias = weight_gradients(problem)
        _, want_dw, want_dbias = problem.expected()
        assert dw.stride() == problem.w.stride()
        assert_within(dw, want_dw, WINOGRAD_GRADIENTS[problem.taps])
        # of one filter alone the terms may nearly cancel: what they would give at random
        scale = problem.dy.double().square().sum((0, 2, 3)).sqrt().max().item()
        assert_within(dbias, want_dbias, 2e-6, scale)


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_filters_in_channels_last_give_the_same_bits(shape: Any, memory: str) -> None:
    problem = Backward(shape, NONE, "relu", memory)
    expected, _ = weight_gradients(problem)
    problem.w = problem.w.to(memory_format=torch.channels_last)
    dw, _ = weight_gradients(problem)
    assert dw.stride() == problem.w.stride()
    assert torch.equal(dw, expected)


@pytest.mark.parametrize("memory", FORMATS)
def test_same_bits_for_any_thread_count(memory: str) -> None:
    for shape in ((9, 3, 60, 58, 70, 7, 7, 2, 3), (2, 6, 62, 60, 40, 4, 4, 2, 1)):
        for pool in (MAX2, MAX3, NONE):
            problem = Backward(shape, pool, "relu", memory)
            assert_same_bits_for_any_thread_count(problem, False, True, True)


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["dy", "x"])
def test_not_finite_stays_where_it_is(where: str, value: float, memory: str) -> None:
    shape = (2, 3, 34, 31, 40, 4, 4, 2, 1)
    for pool, activation in ((NONE, "identity"), (MAX2, "relu"), (AVG2, "relu"), (MAX3, "relu")):
        problem = Backward(shape, pool, activation, memory)
        if where == "dy":
            problem.dy[0, 3, 2, 3] = value
            problem.dy[1, 39, 3, 3] = value
        else:
            problem.x[0, 1, 3, 6] = value
            problem.x[1, 2, 12, 14] = value
        _, *expected = problem.expected()
        for ours, want in zip(weight_gradients(problem), expected, strict=True):
            assert_same_kinds(ours, want, WINOGRAD_GRADIENTS[2])


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_around_gradients_is_left_alone(shape: Any, memory: str) -> None:
    problem = Backward(shape, NONE, "relu", memory)
    assert_memory_around_gradients_is_left_alone(problem, False, True, True)


def algorithms_of(
    monkeypatch: pytest.MonkeyPatch, precision: str, dx: bool
) -> list[tuple[str, bool, bool, bool]]:
    """Which algorithm computes which gradients of a layer like AlexNet's first."""
    called = []
    backward = cpu_conv.ConvLaunch.backward

    def record(self: Any, algorithm: str, *arguments: Any) -> Any:
        called.append((algorithm, *arguments[-3:]))
        return backward(self, algorithm, *arguments)

    monkeypatch.setattr(cpu_conv.ConvLaunch, "backward", record)
    x = torch.randn(2, 3, 99, 99, requires_grad=dx)
    w = torch.randn(64, 3, 11, 11, requires_grad=True)
    bias = torch.randn(64, requires_grad=True)
    prepared.prepared_calls.clear()
    with cmf.conv_precision(precision):
        cmf.conv_act_pool2d(
            x, w, bias, stride=4, pool="max", pool_size=3, pool_stride=2
        ).sum().backward()
    prepared.prepared_calls.clear()
    return called


def test_each_gradient_has_the_algorithm_that_is_least_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merged = ("winograd", False, True, True)
    assert algorithms_of(monkeypatch, "high", False) == [merged]
    dx = ("few_channels", True, False, False)
    assert algorithms_of(monkeypatch, "high", True) == [dx, merged]
    assert algorithms_of(monkeypatch, "highest", True) == [("few_channels", True, True, True)]


def test_costs() -> None:
    """As measured on a Zen 4 and a Zen 3: times of the direct kernel over Winograd's."""
    alexnet = (8, 3, 224, 224), (64, 3, 11, 11), (8, 64, 55, 55), (4, 4)
    assert merged_gradient_gain(*alexnet, False) > 2  # 2.4
    assert few_channels_gain(*alexnet, False) > 2  # 3.0
    lenet = (64, 6, 14, 14), (16, 6, 5, 5), (64, 16, 10, 10), (1, 1)
    assert merged_gradient_gain(*lenet, True) < 1  # 0.6
    assert few_channels_gain(*lenet, True) > 1  # 1.3
    vgg = (4, 3, 224, 224), (64, 3, 3, 3), (4, 64, 224, 224), (1, 1)
    assert merged_gradient_gain(*vgg, True) < 1  # 0.6
    assert few_channels_gain(*vgg, True) < 1  # 0.7: tiles of F(2×2)
    many = (1, 12, 224, 224), (64, 12, 4, 4), (1, 64, 112, 112), (2, 2)
    assert merged_gradient_gain(*many, False) == 0  # is not for so many channels
    dcgan = (32, 3, 64, 64), (64, 3, 4, 4), (32, 64, 32, 32), (2, 2)
    assert few_channels_gain(*dcgan, False, AVX512) > 1
    assert few_channels_gain(*dcgan, False, AVX2) < 1  # 0.8
    assert few_channels_gain(*alexnet, False, AVX2) > 2
