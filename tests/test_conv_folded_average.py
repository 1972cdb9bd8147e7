"""Average pooling folded into the convolution's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native

from .conv_act_pool_cases import gradients, make
from .tolerances import GRADIENTS, VALUES, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

AVERAGE: dict[str, Any] = {"activation": "identity", "pool": "avg"}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": 1},
        {"padding": (2, 0), "pool_size": (2, 3)},
        {"pool_size": 3, "groups": 2},
        {"padding": 1, "pool_size": (1, 2), "ceil_mode": True},
    ],
    ids=str,
)
def test_values_and_gradients(
    arguments: dict[str, Any], dtype: torch.dtype, channels_last: bool
) -> None:
    tensors = make(
        in_channels=4,
        out_channels=6,
        size=(40, 36),
        groups=arguments.get("groups", 1),
        dtype=dtype,
        channels_last=channels_last,
    )
    arguments = {**AVERAGE, **arguments}
    assert cmf.explain(*tensors, **arguments).algorithm == "folded"
    doubles = [t.double().clone() for t in tensors]
    expected = cmf.conv_act_pool2d_reference(*doubles, **arguments)
    dy = torch.randn(expected.shape, dtype=torch.float64)
    y, grads = gradients(cmf.conv_act_pool2d, tensors, dy, **arguments)
    _, wanted = gradients(cmf.conv_act_pool2d_reference, doubles, dy, **arguments)
    assert_within(y.detach(), expected, VALUES[dtype])
    for grad, want in zip(grads, wanted, strict=True):
        assert_within(grad, want, GRADIENTS[dtype])
    with torch.inference_mode():
        for _ in range(2):  # the second call has the folded weights already
            assert_within(cmf.conv_act_pool2d(*tensors, **arguments), expected, VALUES[dtype])
        tensors[1].mul_(2)
        doubled = cmf.conv_act_pool2d_reference(doubles[0], 2 * doubles[1], doubles[2], **arguments)
        assert_within(cmf.conv_act_pool2d(*tensors, **arguments), doubled, VALUES[dtype])


def test_second_derivatives() -> None:
    x, w, b = make(size=(24, 24), dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, w, b)]

    def penalty(function: Any) -> Any:
        y = function(*leaves, padding=1, **AVERAGE)
        (dx,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves)

    for ours, theirs in zip(
        penalty(cmf.conv_act_pool2d), penalty(cmf.conv_act_pool2d_reference), strict=True
    ):
        assert_within(ours, theirs, GRADIENTS[torch.float64])


def test_opposite_infinities_meet() -> None:
    """In an average they are NaN; in a folded weight they would not meet."""
    x, w, b = make(in_channels=1, out_channels=1, size=(40, 40))
    w.zero_()
    w[0, 0, 1, 1], w[0, 0, 1, 2] = 1.0, -0.5
    x[0, 0, 10, 11] = torch.inf
    y = cmf.conv_act_pool2d(x, w, b, padding=1, **AVERAGE)
    want = cmf.conv_act_pool2d_reference(x, w, b, padding=1, **AVERAGE)
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y.isinf(), want.isinf())


def test_what_is_not_folded() -> None:
    def reason(**arguments: Any) -> str:
        tensors = make(size=(40, 40), dtype=arguments.pop("dtype", torch.float32))
        plan = cmf.explain(*tensors, **{**AVERAGE, **arguments})
        return dict(plan.rejected_algorithms)["folded"]

    assert "between" in reason(activation="relu")
    assert "side by side" in reason(pool_size=3, pool_stride=2)
    assert "edge" in reason(pool_size=3, ceil_mode=True)
    assert "stride" in reason(stride=2)
    assert "half" in reason(dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("group", "kernel", "training", "channels_last", "folds"),
    [
        (1, 3, False, False, False),
        (1, 5, False, True, False),
        (1, 3, True, True, False),
        (1, 3, True, False, True),
        (1, 5, True, True, True),
        (4, 3, False, True, True),
        (32, 3, False, True, False),
        (32, 3, True, True, True),
    ],
)
def test_groups_with_kernels_of_their_own_are_not_folded(
    group: int, kernel: int, training: bool, channels_last: bool, folds: bool
) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 64, 28, 28).contiguous(memory_format=memory_format)
    w = torch.randn(64, group, kernel, kernel).contiguous(memory_format=memory_format)
    w.requires_grad_(training)
    arguments: dict[str, Any] = {"activation": "identity", "pool": "avg", "groups": 64 // group}
    plan = cmf.explain(x, w, padding=kernel // 2, **arguments)
    assert (plan.algorithm == "folded") is folds
