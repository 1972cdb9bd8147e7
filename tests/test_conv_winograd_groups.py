"""Winograd convolutions of several groups: each is a convolution of some of the channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native

from .conv_act_pool_cases import POOLS, algorithm, assert_like_reference, gradients, make
from .conv_native_launch import threads
from .tolerances import GRADIENTS, WINOGRAD, WINOGRAD_GRADIENTS, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

# groups, channels and filters of each (at least a vector of every instruction set), kernel, stride
CASES = [
    (2, 16, 32, 3, 1),
    (3, 32, 32, 3, 1),
    (5, 16, 64, 4, 2),
    (2, 48, 32, 5, 1),
    (4, 16, 32, 3, 2),
    (3, 24, 20, 3, 1),
    (2, 17, 33, 3, 1),
    (2, 40, 56, 4, 2),
    (3, 19, 21, 3, 2),  # phases side by side, as channels of one pixel
]
# What a vector of AVX-512 has no group of, and AVX2 has: few channels, whose phases are merged.
FEW_CASES = [(3, 8, 8, 3, 2), (2, 8, 9, 4, 2)]


def problem(case: Any, size: tuple[int, int] = (21, 18), **more: Any) -> tuple[Any, dict[str, Any]]:
    groups, channels, filters, kernel, stride = case
    x, w, b = make(
        in_channels=groups * channels,
        out_channels=groups * filters,
        kernel=kernel,
        groups=groups,
        size=size,
        **more,
    )
    w = w / (channels * kernel * kernel) ** 0.5
    return (x, w, b), {"groups": groups, "stride": stride, "padding": kernel // 2}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case: Any, channels_last: bool) -> None:
    tensors, arguments = problem(case, channels_last=channels_last)
    doubles = [t.double() for t in tensors]
    for pool in ("none", "max2", "avg2", "max3s2p1_ceil"):
        for activation in ("relu", "identity") if pool == "none" else ("leaky_relu",):
            follows = {"activation": activation, **POOLS[pool]}
            with algorithm("winograd"):
                assert cmf.explain(*tensors, **arguments, **follows).algorithm == "winograd"
                y = cmf.conv_act_pool2d(*tensors, **arguments, **follows)
            expected = cmf.conv_act_pool2d_reference(*doubles, **arguments, **follows)
            taps = -(-case[3] // case[4])
            assert_within(y, expected, WINOGRAD[taps])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES + FEW_CASES, ids=str)
def test_gradients(case: Any, channels_last: bool) -> None:
    tensors, arguments = problem(case, channels_last=channels_last)
    doubles = [t.double() for t in tensors]
    for pool, activation in (("none", "elu"), ("max2", "identity"), ("avg3s2p1", "identity")):
        follows = arguments | {"activation": activation, **POOLS[pool]}
        dy = torch.randn_like(cmf.conv_act_pool2d_reference(*tensors, **follows))
        with algorithm("winograd"):
            y, found = gradients(cmf.conv_act_pool2d, tensors, dy, **follows)
        expected, wanted = gradients(cmf.conv_act_pool2d_reference, doubles, dy.double(), **follows)
        taps = -(-case[3] // case[4])
        assert_within(y.detach(), expected.detach(), WINOGRAD[taps])
        for grad, want in zip(found, wanted, strict=True):
            assert_within(grad, want, WINOGRAD_GRADIENTS[taps])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", [CASES[5], *FEW_CASES], ids=str)
def test_weight_gradients_alone(case: Any, channels_last: bool) -> None:
    (x, w, b), arguments = problem(case, channels_last=channels_last)
    arguments |= {"activation": "identity", "pool": "none"}
    leaves = [t.requires_grad_() for t in (w, b)]
    with algorithm("winograd"):
        y = cmf.conv_act_pool2d(x, w, b, **arguments)
        dy = torch.randn_like(y)
        found = torch.autograd.grad(y, leaves, dy)
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    expected = cmf.conv_act_pool2d_reference(x.double(), *doubles, **arguments)
    wanted = torch.autograd.grad(expected, doubles, dy.double())
    for grad, want in zip(found, wanted, strict=True):
        assert_within(grad, want, GRADIENTS[torch.float32])


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gradients_where_the_output_is_kept(activation: str) -> None:
    tensors, arguments = problem(CASES[1])
    for pool in ("none", "max2", "avg2"):
        with algorithm("winograd"):
            assert_like_reference(tensors, **arguments, activation=activation, **POOLS[pool])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_not_finite_stays_in_its_group(value: float, channels_last: bool) -> None:
    (x, w, b), arguments = problem(CASES[1], channels_last=channels_last)
    x[1, 40, 7, 9] = value  # of the second group
    w[70] = 0.0  # a filter of the third
    arguments |= {"activation": "identity", "pool": "none"}
    with algorithm("winograd"):
        y = cmf.conv_act_pool2d(x, w, b, **arguments)
    expected = cmf.conv_act_pool2d_reference(x.double(), w.double(), b.double(), **arguments)
    assert_within(y, expected, WINOGRAD[3])
    assert not y[:, 32:64].isfinite().all()
    assert y[:, :32].isfinite().all()
    assert y[:, 64:].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_what_is_not_finite_stay_in_its_group(
    value: float, channels_last: bool
) -> None:
    tensors, arguments = problem(CASES[1], channels_last=channels_last)
    arguments |= {"activation": "identity", "pool": "none"}
    leaves = [t.requires_grad_() for t in tensors]
    with algorithm("winograd"):
        y = cmf.conv_act_pool2d(*leaves, **arguments)
        dy = torch.randn_like(y)
        dy[1, 40, 7, 9] = value  # of the second group
        dx, dw, dbias = torch.autograd.grad(y, leaves, dy)
    expected = cmf.conv_act_pool2d_reference(*leaves, **arguments)
    for found, wanted in zip(
        (dx, dw, dbias), torch.autograd.grad(expected, leaves, dy), strict=True
    ):
        assert torch.equal(found.isfinite(), wanted.isfinite())
        assert not found.isfinite().all()


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_the_same_bits_for_any_number_of_threads(case: Any) -> None:
    tensors, arguments = problem(case, size=(45, 50))
    leaves = [t.requires_grad_() for t in tensors]
    runs = []
    for count in (1, 2, 5):
        with threads(count), algorithm("winograd"):
            y = cmf.conv_act_pool2d(*leaves, **arguments)
            runs.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for run in runs[1:]:
        for found, expected in zip(run, runs[0], strict=True):
            assert torch.equal(found, expected)


def test_changed_weights_are_noticed() -> None:
    tensors, arguments = problem(CASES[0])
    with algorithm("winograd"):
        cmf.conv_act_pool2d(*tensors, **arguments)
        tensors[1].data[40].neg_()  # of the second group
        y = cmf.conv_act_pool2d(*tensors, **arguments)
    doubles = [t.double() for t in tensors]
    assert_within(y, cmf.conv_act_pool2d_reference(*doubles, **arguments), WINOGRAD[3])


def test_groups_that_fill_no_vector_are_refused() -> None:
    for channels, filters in ((3, 32), (16, 3), (1, 1)):
        tensors, arguments = problem((2, channels, filters, 3, 1))
        plan = cmf.explain(*tensors, **arguments)
        assert "groups" in dict(plan.rejected_algorithms)["winograd"]


@pytest.mark.parametrize("needs_grad", [False, True])
def test_the_plan_takes_them(needs_grad: bool) -> None:
    """A ResNeXt's and a RegNet's layers."""
    for channels, group, size in ((256, 16, 28), (512, 16, 14), (96, 24, 56)):
        x = torch.randn(4, channels, size, size)
        w = torch.randn(channels, group, 3, 3, requires_grad=needs_grad)
        plan = cmf.explain(x, w, padding=1, groups=channels // group)
        assert plan.algorithm == "winograd"
