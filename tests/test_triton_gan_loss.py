"""The Triton kernels of the losses against the formulas in float64: values and gradients."""

from __future__ import annotations

import functools

import pytest
import torch

from crossmedia_fast.ops.gan_loss import formulas
from crossmedia_fast.ops.gan_loss.arguments import OPERANDS, Problem
from crossmedia_fast.ops.gan_loss.kernels import launch_for

from .gan_loss_cases import assert_near
from .gan_loss_launches import (
    check_infinities_and_nan,
    check_launch,
    check_outside_of_probabilities,
    operands_on,
)
from .triton_calls import DEVICE, runs_kernels

pytestmark = runs_kernels


operands_of = functools.partial(operands_on, DEVICE)
check = functools.partial(check_launch, "triton")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("function", OPERANDS)
def test_every_function(function: str, reduction: str) -> None:
    check(Problem(function, (0.9,), (1.5,), reduction), operands_of(function, [(5, 7)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("function", ["log_loss_logits", "relativistic", "hinge", "least_squares"])
def test_dtypes(function: str, dtype: torch.dtype) -> None:
    check(Problem(function, (0.9,), (1.0,), "mean"), operands_of(function, [(33,)], dtype))


@pytest.mark.parametrize("function", ["log_loss_logits", "relativistic"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_list_of_scales(function: str, reduction: str) -> None:
    # several programs a term, one, and part of one
    problem = Problem(function, (0.9, 0.0, 1.0), (1.0, 0.5, -0.25), reduction)
    check(problem, operands_of(function, [(2500,), (32, 32), (3,)]))


def test_unreduced_terms_are_added() -> None:
    problem = Problem("log_loss_logits", (1.0, 0.0), (0.5, 2.0), "none")
    check(problem, operands_of("log_loss_logits", [(4, 5), (4, 5)]))


def test_strides() -> None:
    problem = Problem("relativistic", (0.0,), (1.0,), "none")
    x, y = operands_of("relativistic", [(6, 4)])
    check(problem, [x.t(), y.t().clone(memory_format=torch.contiguous_format)])
    check(Problem("hinge", (1.0,), (1.0,), "mean"), [x[:, ::2]])


def test_more_blocks_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from crossmedia_fast.ops.gan_loss import triton

    monkeypatch.setattr(triton, "_PROGRAMS", 2)
    problem = Problem("linear", (0.0,), (1.0,), "mean")
    launch = triton.Launch(problem, (5000,), torch.float32, None)
    assert launch.blocks == 3
    assert launch.first_programs == (0, 2)
    x = torch.arange(5000.0, device=DEVICE)
    loss, (gradient,) = launch.forward([x], (True,))
    assert loss.item() == 2499.5
    torch.testing.assert_close(gradient, torch.full_like(x, 1 / 5000))


def test_an_incoming_gradient_of_one_leaves_what_is_stored() -> None:
    problem = Problem("linear", (0.0,), (1.0,), "sum")
    x = torch.randn(10, device=DEVICE)
    launch = launch_for("triton", problem, [x])
    marked = [torch.full_like(x, 7.0)]
    one = torch.ones((), device=DEVICE)
    assert launch.backward(one, [x], (True,), marked)[0] is marked[0]
    assert marked[0].eq(7.0).all()
    assert launch.backward(3 * one, [x], (True,), marked)[0] is marked[0]
    assert marked[0].eq(3.0).all()


def test_a_loss_scale_saves_small_gradients() -> None:
    # 1e-9 is 0 in float16, 65536 times as much is not
    problem = Problem("linear", (0.0,), (1e-9,), "sum")
    x = torch.randn(4, device=DEVICE, dtype=torch.float16)
    launch = launch_for("triton", problem, [x])
    _, stored = launch.forward([x], (True,))
    assert stored[0] is not None
    assert not stored[0].any()
    grad = torch.tensor(65504.0, device=DEVICE, dtype=torch.float16)
    gradient = launch.backward(grad, [x], (True,), stored)[0]
    assert gradient is not None
    assert_near(gradient, torch.full((4,), 65504e-9, dtype=torch.float64), 0.0, x.dtype)


def test_a_second_launch_only_where_there_is_something_to_add() -> None:
    from crossmedia_fast.ops.gan_loss import triton

    problem = Problem("hinge", (1.0,), (1.0,), "mean")
    assert triton.Launch(problem, (1024,), torch.float32, None).first_programs == (0, 1)
    assert triton.Launch(problem, (1025,), torch.float32, None).first_programs == (0, 2)


@pytest.mark.parametrize("function", OPERANDS)
def test_infinities_and_nan(function: str) -> None:
    check_infinities_and_nan("triton", DEVICE, function)


def test_outside_of_probabilities_the_loss_is_nan() -> None:
    check_outside_of_probabilities("triton", DEVICE)


def test_an_empty_tensor() -> None:
    x = torch.empty(0, device=DEVICE)
    for reduction, want in (("mean", float("nan")), ("sum", 0.0)):
        problem = Problem("hinge", (1.0,), (1.0,), reduction)
        loss, _ = launch_for("triton", problem, [x]).forward([x], (True,))
        torch.testing.assert_close(loss.cpu(), torch.tensor(want), equal_nan=True)


def test_the_same_bits_every_time() -> None:
    problem = Problem("log_loss_logits", (0.9,), (1.0,), "mean")
    (x,) = operands_of("log_loss_logits", [(4000,)])
    launch = launch_for("triton", problem, [x])
    assert torch.equal(launch.forward([x], None)[0], launch.forward([x], None)[0])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("function", OPERANDS)
def test_the_registered_op(function: str, reduction: str) -> None:
    """What torch.compile sees: the same kernels with eight pointers in place of tuples."""
    from crossmedia_fast.ops.gan_loss import triton_registration

    problem = Problem(function, (0.9, 0.2), (1.0, 0.5), reduction)
    operands = operands_of(function, [(1500,), (1500,)])
    step = OPERANDS[function]
    wanted = [index % step < 2 for index in range(len(operands))]
    inputs = [x.requires_grad_(want) for x, want in zip(operands, wanted, strict=True)]
    loss = triton_registration.gan_loss(problem, inputs, None)
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    expected = formulas.compose(problem, doubles)
    assert_near(loss, expected, 1.0, torch.float32)
    gradients = torch.autograd.grad(loss.sum(), [x for x in inputs if x.requires_grad])
    want = torch.autograd.grad(expected.sum(), [x for x in doubles if x.requires_grad])
    for gradient, expected_gradient in zip(gradients, want, strict=True):
        scale = expected_gradient.abs().mean()
        assert_near(gradient, expected_gradient, scale, torch.float32)
