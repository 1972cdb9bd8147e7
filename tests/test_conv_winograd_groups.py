"""Winograd convolutions of several groups: each has blocks of channels and filters of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native

from .conv_act_pool_cases import POOLS, algorithm, assert_like_reference, make
from .conv_native_launch import threads
from .tolerances import WINOGRAD, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

# groups, channels and filters of each (whole blocks of every instruction set), kernel, stride
CASES = [
    (2, 16, 32, 3, 1),
    (3, 32, 32, 3, 1),
    (5, 16, 64, 4, 2),
    (2, 48, 32, 5, 1),
    (4, 16, 32, 3, 2),
]


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


@pytest.mark.parametrize("pool", ["none", "max2", "avg2"])
def test_gradients(pool: str) -> None:
    """The forward is ours, and backward PyTorch's."""
    tensors, arguments = problem(CASES[1])
    arguments |= {"activation": "silu", **POOLS[pool]}
    with algorithm("winograd"):
        assert_like_reference(tensors, **arguments)


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


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_the_same_bits_for_any_number_of_threads(case: Any) -> None:
    tensors, arguments = problem(case, size=(45, 50))
    results = []
    for count in (1, 2, 5):
        with threads(count), algorithm("winograd"):
            results.append(cmf.conv_act_pool2d(*tensors, **arguments))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_changed_weights_are_noticed() -> None:
    tensors, arguments = problem(CASES[0])
    with algorithm("winograd"):
        cmf.conv_act_pool2d(*tensors, **arguments)
        tensors[1].data[40].neg_()  # of the second group
        y = cmf.conv_act_pool2d(*tensors, **arguments)
    doubles = [t.double() for t in tensors]
    assert_within(y, cmf.conv_act_pool2d_reference(*doubles, **arguments), WINOGRAD[3])


def test_groups_that_fill_no_block_are_refused() -> None:
    for channels, filters in ((10, 32), (16, 20), (1, 1)):
        tensors, arguments = problem((2, channels, filters, 3, 1))
        plan = cmf.explain(*tensors, **arguments)
        assert "groups" in dict(plan.rejected_algorithms)["winograd"]
