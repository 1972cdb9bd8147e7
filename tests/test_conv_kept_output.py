"""Our own convolutions in training where backward needs their output: SiLU and GELU without a pool,
and what is no kink before an average."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native

from .conv_act_pool_cases import (
    algorithm,
    assert_like_reference,
    assert_second_derivatives_like_reference,
    gradients,
    make,
)
from .tolerances import GRADIENTS, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "winograd": {"kernel": 3, "padding": 1, "in_channels": 16},
    "winograd_strided": {"kernel": 4, "padding": 1, "stride": 2, "in_channels": 16},
    "few_channels": {"kernel": 5, "padding": 2, "in_channels": 3},
    "pointwise": {"kernel": 1, "in_channels": 16},
    "depthwise": {"kernel": 3, "padding": 1, "in_channels": 24, "groups": 24},
    "patches": {"kernel": 2, "stride": 2, "in_channels": 16},
}


def problem(name: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """The tensors of a case, and its arguments."""
    arguments = dict(CONVOLUTIONS[name])
    shape = {key: arguments.pop(key) for key in ("kernel", "in_channels")}
    groups = arguments.get("groups", 1)
    tensors = make(**shape, size=(19, 22), out_channels=24, groups=groups, **more)
    return tensors, arguments


def kept(name: str, tensors: Any, arguments: Any) -> bool:
    """Whether the algorithm takes the call, and keeps the convolution's output."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    with algorithm(name):
        plan = cmf.explain(*leaves, **arguments)
    assert plan.algorithm == name
    return "kept for backward" in plan.reason


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "follows",
    [
        {"activation": "silu", "pool": "none"},
        {"activation": "gelu", "pool": "none"},
        {"activation": "tanh", "pool": "avg", "pool_size": 3, "pool_stride": 2, "pool_padding": 1},
        {"activation": "gelu_tanh", "pool": "avg"},
    ],
    ids=lambda follows: "_".join(str(value) for value in follows.values()),
)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_values_and_gradients(case: str, follows: dict[str, Any], channels_last: bool) -> None:
    name = case.removesuffix("_strided")
    tensors, arguments = problem(case, channels_last=channels_last)
    arguments |= follows
    # depthwise convolutions are computed again where nothing overlaps
    assert kept(name, tensors, arguments) or name == "depthwise"
    with algorithm(name):
        assert_like_reference(tensors, **arguments)


@pytest.mark.parametrize("needed", range(3), ids=["input", "weight", "bias"])
def test_one_gradient_alone(needed: int) -> None:
    tensors, arguments = problem("winograd")
    arguments |= {"activation": "silu", "pool": "none"}

    def gradient(function: Any, tensors: Any) -> Any:
        leaves = [t.clone().requires_grad_(place == needed) for place, t in enumerate(tensors)]
        y = function(*leaves, **arguments)
        return torch.autograd.grad(y.square().sum(), leaves[needed])[0]

    with algorithm("winograd"):
        ours = gradient(cmf.conv_act_pool2d, tensors)
    wanted = gradient(cmf.conv_act_pool2d_reference, [t.double() for t in tensors])
    assert_within(ours, wanted, GRADIENTS[torch.float32])


def test_second_derivatives_and_no_bias() -> None:
    (x, w, _), arguments = problem("winograd")
    arguments |= {"activation": "gelu", "pool": "none"}

    with algorithm("winograd"):
        assert_second_derivatives_like_reference(x, w, **arguments)


def test_nothing_is_kept_without_need() -> None:
    tensors, arguments = problem("winograd")
    for follows in ({"activation": "relu", "pool": "none"}, {"activation": "silu", "pool": "max"}):
        assert not kept("winograd", tensors, arguments | follows)
    with algorithm("winograd"):  # without gradients
        plan = cmf.explain(*tensors, **arguments, activation="silu", pool="none")
    assert plan.algorithm == "winograd"
    assert "kept for backward" not in plan.reason


def test_an_empty_batch() -> None:
    (_, w, b), arguments = problem("winograd")
    arguments |= {"activation": "silu", "pool": "none"}
    leaves = [torch.empty(0, 16, 19, 22), w, b]
    with algorithm("winograd"):
        y, grads = gradients(cmf.conv_act_pool2d, leaves, torch.empty(0, 24, 19, 22), **arguments)
    assert y.shape == (0, 24, 19, 22)
    assert [grad.shape for grad in grads] == [t.shape for t in leaves]
    assert not any(grad.any() for grad in grads)
