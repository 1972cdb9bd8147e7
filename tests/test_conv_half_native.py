"""float16 and bfloat16 through the float32 kernels: rounding, chunks of images, autocast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import cpu_half, prepared

from .tolerances import VALUES, assert_within

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

# one of each kernel family: (x, w, arguments)
CASES = {
    "few_channels": ((5, 3, 20, 18), (17, 3, 3, 3), {"padding": 1}),
    "winograd": ((5, 24, 15, 18), (33, 24, 3, 3), {"padding": 1}),
    "pointwise": ((5, 40, 9, 11), (24, 40, 1, 1), {"pool": "none"}),
    "patches": ((5, 20, 14, 13), (24, 20, 1, 7), {"padding": (0, 3)}),
    "depthwise": ((5, 16, 15, 13), (16, 1, 3, 3), {"padding": 1, "groups": 16, "pool": "none"}),
}
DTYPES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _no_unit_for_half_types(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a processor that computes in float32 alone, whichever this is."""
    monkeypatch.setattr(cpu_half, "library_peak", lambda dtype: 1.0)
    prepared.prepared_calls.clear()
    yield
    prepared.prepared_calls.clear()


def operands(
    case: tuple[Any, ...], dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_shape, w_shape, _ = case
    x = torch.randn(x_shape, generator=generator)
    w = torch.randn(w_shape, generator=generator) / torch.Size(w_shape[1:]).numel() ** 0.5
    b = torch.randn(w_shape[0], generator=generator)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.to(dtype), w.to(dtype), b.to(dtype)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_values_and_gradients(
    name: str, dtype: torch.dtype, channels_last: bool, activation: str
) -> None:
    case = CASES[name]
    arguments = {**case[2], "activation": activation}
    leaves = [t.requires_grad_() for t in operands(case, dtype, channels_last)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    want = cmf.conv_act_pool2d_reference(*exact, **arguments)
    algorithm = cmf.explain(*leaves, **arguments).algorithm
    # some keep the convolution's output for the derivatives that follow from nothing else
    assert algorithm == name or (activation == "silu" and algorithm == "epilogue")
    y = cmf.conv_act_pool2d(*leaves, **arguments)
    assert y.dtype == dtype
    assert y.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    assert_within(y.detach(), want.detach(), VALUES[dtype])
    with torch.no_grad():
        assert cmf.explain(*leaves, **arguments).algorithm == name
        assert_within(cmf.conv_act_pool2d(*leaves, **arguments), want.detach(), VALUES[dtype])
    if algorithm == "epilogue":
        return
    dy = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(y, leaves, dy)
    wanted = torch.autograd.grad(want, exact, dy.double())
    for ours, theirs, leaf in zip(gradients, wanted, leaves, strict=True):
        assert ours.dtype == leaf.dtype
        # an output's rounding moves the derivative by as much, a sum by no more than its terms
        distance = (ours.double() - theirs).norm() / theirs.norm()
        assert distance <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_chunks_of_images_give_the_same_bits(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images at a time and one left over: the outputs of one call for all."""
    case = CASES[name]
    x_shape, _, arguments = case
    leaves = [t.requires_grad_() for t in operands(case, dtype, True)]
    together = cmf.conv_act_pool2d(*leaves, **arguments)
    dy = torch.randn(together.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(together, leaves, dy)
    an_image = 4 * (torch.Size(x_shape[1:]).numel() + together[0].numel())
    monkeypatch.setattr(cpu_half, "_WIDENED_BYTES", 2 * an_image)
    prepared.prepared_calls.clear()
    y = cmf.conv_act_pool2d(*leaves, **arguments)
    conv = next(iter(prepared.prepared_calls.values())).native
    assert conv.fused.launch.x_shape[0] == 2
    assert conv.rest.launch.x_shape[0] == 1
    assert torch.equal(y, together)
    dx, dw, db = torch.autograd.grad(y, leaves, dy)
    assert torch.equal(dx, gradients[0])
    for ours, theirs in ((dw, gradients[1]), (db, gradients[2])):
        # another order of the sums, then one rounding
        assert (ours.double() - theirs.double()).norm() <= 1e-2 * theirs.double().norm()


def test_kept_weights_follow_the_weight() -> None:
    x, w, b = operands(CASES["winograd"], torch.float16, False)
    with torch.no_grad():
        before = cmf.conv_act_pool2d(x, w, b, padding=1)
        assert torch.equal(cmf.conv_act_pool2d(x, w, b, padding=1), before)
        w.data.mul_(2)
        want = cmf.conv_act_pool2d_reference(x.double(), w.double(), b.double(), padding=1)
        assert_within(cmf.conv_act_pool2d(x, w, b, padding=1), want, VALUES[torch.float16])


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_takes_operands_of_two_dtypes(x_dtype: torch.dtype) -> None:
    x, w, b = operands(CASES["winograd"], torch.float32, True)
    leaves = [x.to(x_dtype).requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    want = cmf.conv_act_pool2d_reference(*exact, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cmf.explain(*leaves, padding=1).algorithm == "winograd"
        y = cmf.conv_act_pool2d(*leaves, padding=1)
    assert y.dtype == torch.bfloat16
    assert_within(y.detach(), want.detach(), VALUES[torch.bfloat16])
    gradients = torch.autograd.grad(y.float().square().sum(), leaves, create_graph=True)
    for ours, leaf in zip(gradients, leaves, strict=True):
        assert ours.dtype == leaf.dtype
    # a second derivative runs through PyTorch's own operations
    (second,) = torch.autograd.grad(gradients[1].float().square().sum(), leaves[2])
    assert second.isfinite().all()


def test_an_empty_batch() -> None:
    x, w, b = operands(CASES["winograd"], torch.float16, False)
    leaves = [x[:0].clone().requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    y = cmf.conv_act_pool2d(*leaves, padding=1)
    assert y.shape == (0, 33, 7, 9)
    assert all(g.eq(0).all() for g in torch.autograd.grad(y.sum(), leaves))


def test_matrix_units_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = operands(CASES["winograd"], torch.bfloat16, False)
    monkeypatch.setattr(cpu_half, "library_peak", lambda dtype: float("inf"))
    plan = cmf.explain(x, w, b, padding=1)
    assert plan.algorithm == "epilogue"
    assert "matrix units" in str(plan)
