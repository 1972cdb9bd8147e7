"""Dilated convolutions as batches of images of every d-th pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import space_to_batch

from .conv_act_pool_cases import (
    POOLS,
    assert_like_reference,
    assert_second_derivatives_like_reference,
    make,
)
from .tolerances import VALUES, assert_within

pytestmark = pytest.mark.skipif(
    native.module is None or native.has_matrix_unit(),
    reason=native.reason or "a matrix unit takes dilation",
)

SHAPE: dict[str, Any] = {"in_channels": 64, "out_channels": 64}


def problem(size: tuple[int, int], **more: Any) -> Any:
    x, w, b = make(**{**SHAPE, **more}, size=size)
    return x, w / (w[0].numel() ** 0.5), b


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dilation", [(2, 2), (3, 3), (2, 5), (1, 4)], ids=str)
def test_phases_and_back(dilation: tuple[int, int], channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 5, 6 * dilation[0], 7 * dilation[1]).contiguous(memory_format=memory_format)
    phases = space_to_batch.to_phases(x, dilation)
    count = dilation[0] * dilation[1]
    assert phases.shape == (2 * count, 5, 6, 7)
    assert phases.is_contiguous(memory_format=memory_format)
    for n in range(2):
        for a in range(dilation[0]):
            for b in range(dilation[1]):
                image = phases[n * count + a * dilation[1] + b]
                assert torch.equal(image, x[n, :, a :: dilation[0], b :: dilation[1]])
    back = space_to_batch.from_phases(phases, dilation)
    assert torch.equal(back, x)
    assert back.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"dilation": 2, "padding": 2},
        {"dilation": 2, "padding": 1},  # of no whole phase
        {"dilation": 3, "padding": 0},
        {"dilation": (2, 3), "padding": (4, 3)},
        {"dilation": (1, 4), "padding": (1, 6)},
        {"dilation": 2, "padding": "same"},
    ],
    ids=str,
)
def test_values_and_gradients(arguments: dict[str, Any], channels_last: bool) -> None:
    for pool, activation in (("none", "silu"), ("max2", "relu")):
        tensors = problem((61, 54), batch=1, channels_last=channels_last)
        every = {**arguments, **POOLS[pool], "activation": activation}
        for grad in (False, True):
            leaves = [t.detach().requires_grad_(grad) for t in tensors]
            assert cmf.explain(*leaves, **every).algorithm == "space_to_batch"
        with torch.inference_mode():
            inferred = cmf.conv_act_pool2d(*tensors, **every)
        expected = assert_like_reference(tensors, **every)
        assert_within(inferred, expected, VALUES[torch.float32])
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert inferred.is_contiguous(memory_format=memory_format)


def test_parameters_of_activations_and_one_image() -> None:
    x, w, b = problem((61, 54), batch=1)
    for activation, param in (("leaky_relu", 0.3), ("elu", 2.0), ("gelu", None)):
        arguments = {"dilation": 2, "pool": "none", "activation": activation}
        arguments["activation_param"] = param
        assert cmf.explain(x[0], w, b, **arguments).algorithm == "space_to_batch"
        y = cmf.conv_act_pool2d(x[0], w, b, **arguments)
        expected = cmf.conv_act_pool2d_reference(x[0].double(), w.double(), b.double(), **arguments)
        assert_within(y, expected, VALUES[torch.float32])


def test_second_derivatives() -> None:
    x, w, _ = problem((41, 40), batch=1)
    arguments = {"dilation": 2, "padding": 2, "pool": "none", "activation": "gelu"}

    assert_second_derivatives_like_reference(x, w, **arguments)


def test_what_is_not_finite_reaches_what_it_reaches() -> None:
    x, w, b = problem((61, 54))
    x[0, 3, 20, 20] = torch.nan
    x[1, 4, 0, 53] = torch.inf
    arguments = {"dilation": 2, "padding": 2, "pool": "none", "activation": "identity"}
    expected = cmf.conv_act_pool2d_reference(x.double(), w.double(), b.double(), **arguments)
    assert_within(cmf.conv_act_pool2d(x, w, b, **arguments), expected, VALUES[torch.float32])


def test_refusals_say_why() -> None:
    def reason(**arguments: Any) -> str:
        dtype = arguments.pop("dtype", torch.float32)
        size, kernel = arguments.pop("size", (61, 54)), arguments.pop("kernel", 3)
        batch, groups = arguments.pop("batch", 2), arguments.get("groups", 1)
        tensors = problem(size, batch=batch, dtype=dtype, kernel=kernel, groups=groups)
        plan = cmf.explain(*tensors, **{"dilation": 2, **arguments})
        return dict(plan.rejected_algorithms)["space_to_batch"]

    assert "dilation" in reason(dilation=1)
    assert "stride" in reason(stride=2)
    assert "groups" in reason(groups=2)
    assert "float32" in reason(dtype=torch.float64)
    assert "taps" in reason(kernel=1)
    assert "empty" in reason(batch=0)
    assert "too little" in reason(size=(12, 12))
    with cmf.conv_precision("highest"):
        assert "conv_precision" in reason()
