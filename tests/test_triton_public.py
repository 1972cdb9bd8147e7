"""The public functions on backend "triton": the plan, autograd and its transforms, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast.ops.conv_act_pool import prepared

from . import tolerances
from .triton_calls import DEVICE, runs_kernels

pytestmark = runs_kernels


@pytest.fixture(autouse=True)
def _ieee_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU too, so that one tolerance holds."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def tensors(dtype: torch.dtype = torch.float32, channels: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, channels, 6, 5), (3, channels, 3, 3), (3,))
    made = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes]
    return tuple(x.requires_grad_() for x in made)


@pytest.mark.parametrize("algorithm", ["implicit_gemm", "epilogue"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_derivatives_of_first_and_second_order(
    algorithm: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "forced_algorithm", algorithm)
    prepared.prepared_calls.clear()
    inputs = tensors()
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    y = cmf.conv_act_pool2d(*inputs, padding=1, activation=activation, backend="triton")
    want = cmf.conv_act_pool2d_reference(*doubles, padding=1, activation=activation)
    tolerances.assert_within(y, want, tolerances.VALUES[torch.float32])
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    expected = torch.autograd.grad(want.square().sum(), doubles, create_graph=True)
    for gradient, expected_gradient in zip(first, expected, strict=True):
        tolerances.assert_within(gradient, expected_gradient, tolerances.GRADIENTS[torch.float32])
    (second,) = torch.autograd.grad(first[0].square().sum(), inputs[1])
    (expected_second,) = torch.autograd.grad(expected[0].square().sum(), doubles[1])
    tolerances.assert_within(second, expected_second, 1e-4)
    prepared.prepared_calls.clear()


def test_forward_mode_and_vmap() -> None:
    x, w, bias = (t.detach() for t in tensors())

    def loss(weight: Tensor) -> Tensor:
        return cmf.conv_act_pool2d(x, weight, bias, padding=1, backend="triton").square().sum()

    def expected(weight: Tensor) -> Tensor:
        return cmf.conv_act_pool2d_reference(x, weight, bias, padding=1).square().sum()

    tangent = torch.ones_like(w)
    for transform in (
        lambda f: torch.func.jvp(f, (w,), (tangent,))[1],
        lambda f: torch.func.vmap(torch.func.grad(f))(torch.stack([w, 2 * w])),
    ):
        torch.testing.assert_close(transform(loss), transform(expected), rtol=1e-4, atol=1e-4)


def test_autocast() -> None:
    inputs = tensors()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = cmf.conv_act_pool2d(*inputs, padding=1, backend="triton")
    assert y.dtype == torch.bfloat16
    rounded = [x.detach().to(torch.bfloat16).double().requires_grad_() for x in inputs]
    want = cmf.conv_act_pool2d_reference(*rounded, padding=1)
    tolerances.assert_within(y, want, tolerances.VALUES[torch.bfloat16])
    gradients = torch.autograd.grad(y.float().sum(), inputs)
    expected = torch.autograd.grad(want.sum(), rounded)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        tolerances.assert_within(gradient, expected_gradient, tolerances.VALUES[torch.bfloat16])


def test_float64_takes_the_epilogue() -> None:
    inputs = tensors(torch.float64)
    plan = cmf.explain(*inputs, backend="triton")
    assert (plan.backend, plan.algorithm) == ("triton", "epilogue")
    y = cmf.conv_act_pool2d(*inputs, activation="gelu", backend="triton")
    want = cmf.conv_act_pool2d_reference(*inputs, activation="gelu")
    tolerances.assert_within(y, want, tolerances.VALUES[torch.float64])


def test_the_plan_says_why() -> None:
    inputs = tensors()
    assert cmf.explain(*inputs, backend="triton").algorithm == "implicit_gemm"
    plan = cmf.explain(*inputs, pool_size=3, pool_stride=1, backend="triton")
    assert plan.algorithm == "epilogue"
    assert "windows overlap" in dict(plan.rejected_algorithms)["implicit_gemm"]


@pytest.mark.parametrize("loss", ["minimax", "least_squares", "hinge", "relativistic"])
def test_losses(loss: str) -> None:
    generator = torch.Generator().manual_seed(6)
    real, fake = (
        [torch.randn(size, generator=generator).to(DEVICE).requires_grad_() for size in (40, 7)]
        for _ in range(2)
    )
    for scale in (1.0, 3.0):  # the incoming gradient: stored gradients, and computed again
        actual = cmf.gan_discriminator_loss(real, fake, loss=loss, backend="triton")
        want = cmf.gan_discriminator_loss_reference(real, fake, loss=loss)
        torch.testing.assert_close(actual, want)
        gradients = torch.autograd.grad(scale * actual, real + fake)
        expected = torch.autograd.grad(scale * want, real + fake)
        torch.testing.assert_close(gradients, expected)


def test_a_retained_graph_gives_the_same_again() -> None:
    x = torch.randn(9).to(DEVICE).requires_grad_()
    loss = cmf.log_loss(x, torch.rand(9).to(DEVICE), backend="triton")
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (again,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, again)
    assert first is not again
