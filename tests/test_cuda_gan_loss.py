"""The CUDA kernels of the losses against the formulas in float64: values and gradients."""

from __future__ import annotations

import functools

import pytest
import torch

from crossmedia_fast.ops.gan_loss import formulas
from crossmedia_fast.ops.gan_loss.arguments import OPERANDS, Problem
from crossmedia_fast.ops.gan_loss.kernels import launch_for

from .cuda_calls import DEVICE, ORDERS, Guards, misaligned, runs_kernels, set_order
from .gan_loss_cases import assert_near
from .gan_loss_launches import (
    check_infinities_and_nan,
    check_launch,
    check_outside_of_probabilities,
    operands_on,
)

pytestmark = runs_kernels

operands_of = functools.partial(operands_on, DEVICE)
check = functools.partial(check_launch, "cuda")


@pytest.fixture(autouse=True)
def _forward_afterwards():
    yield
    set_order(("forward", 0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("function", OPERANDS)
def test_every_function(function: str, reduction: str) -> None:
    # a run and part of one, whole runs, several steps of a block
    for count, order in ((35, ORDERS[0]), (64, ORDERS[-1]), (5000, ORDERS[-2])):
        set_order(order)
        check(Problem(function, (0.9,), (1.5,), reduction), operands_of(function, [(count,)]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("function", OPERANDS)
def test_dtypes(function: str, dtype: torch.dtype, reduction: str) -> None:
    check(Problem(function, (0.9,), (1.0,), reduction), operands_of(function, [(33,)], dtype))


@pytest.mark.parametrize("function", ["log_loss_logits", "relativistic"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_list_of_scales(function: str, reduction: str) -> None:
    problem = Problem(function, (0.9, 0.0, 1.0), (1.0, 0.5, -0.25), reduction)
    check(problem, operands_of(function, [(2500,), (32, 32), (3,)]))  # one block
    check(problem, operands_of(function, [(9001,), (32, 32), (3,)]))  # and several


def test_more_terms_than_a_launch_takes() -> None:
    count = 37
    for reduction, size in (("mean", 5), ("mean", 900), ("none", 9)):
        problem = Problem("least_squares", (0.5,) * count, (1.0,) * count, reduction)
        check(problem, operands_of("least_squares", [(size,)] * count))


def test_unreduced_terms_are_added() -> None:
    problem = Problem("log_loss_logits", (1.0, 0.0), (0.5, 2.0), "none")
    check(problem, operands_of("log_loss_logits", [(4, 5), (4, 5)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_float32_loss_over_half_types(reduction: str, dtype: torch.dtype) -> None:
    """What autocast asks for."""
    problem = Problem("log_loss_logits", (0.9,), (1.0,), reduction)
    operands = operands_of("log_loss_logits", [(70,)], dtype)
    launch = launch_for("cuda", problem, operands, torch.float32)
    loss, _ = launch.forward(operands, None)
    assert loss.dtype == torch.float32
    expected = formulas.compose(problem, [x.double() for x in operands])
    assert_near(loss, expected, 1.0, torch.float32)
    grad = torch.full_like(loss, 2.0)
    (gradient,) = launch.backward(grad, operands, (True,))
    assert gradient is not None
    x = operands[0].double().requires_grad_()
    (want,) = torch.autograd.grad(formulas.compose(problem, [x]), x, grad.double())
    assert_near(gradient, want, want.abs().mean(), dtype)


def test_strides() -> None:
    problem = Problem("relativistic", (0.0,), (1.0,), "none")
    x, y = operands_of("relativistic", [(6, 4)])
    check(problem, [x.t(), y.t().clone(memory_format=torch.contiguous_format)])
    check(Problem("hinge", (1.0,), (1.0,), "mean"), [x[:, ::2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_alignment(reduction: str, dtype: torch.dtype) -> None:
    problem = Problem("relativistic", (0.0,), (1.0,), reduction)
    operands = operands_of("relativistic", [(100,)], dtype)
    check(problem, [misaligned(x) for x in operands])
    check(problem, [operands[0], misaligned(operands[1])])


def test_nothing_is_written_beside_the_results() -> None:
    from crossmedia_fast.ops.gan_loss import cuda

    for count in (77, 20_011):
        (x,) = operands_of("log_loss_logits", [(count,)])
        launch = cuda.Launch(
            Problem("log_loss_logits", (0.9,), (1.0,), "mean"), (count,), x.dtype, None
        )
        with Guards():  # the loss and the scratch memory
            launch.forward([x], None)
        # the gradients: a view into what must stay as it is
        buffer = torch.full((count + 64,), 7.0, device=DEVICE)
        stored = buffer[32 : 32 + count]
        launch.backward(torch.full((), 2.0, device=DEVICE), [x], (True,), [stored])
        assert buffer[:32].eq(7.0).all()
        assert buffer[32 + count :].eq(7.0).all()
        assert not stored.eq(7.0).any()


def test_an_incoming_gradient_of_one_leaves_what_is_stored() -> None:
    problem = Problem("linear", (0.0,), (1.0,), "sum")
    x = torch.randn(10, device=DEVICE)
    launch = launch_for("cuda", problem, [x])
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
    launch = launch_for("cuda", problem, [x])
    _, stored = launch.forward([x], (True,))
    assert stored[0] is not None
    assert not stored[0].any()
    grad = torch.tensor(65504.0, device=DEVICE, dtype=torch.float16)
    gradient = launch.backward(grad, [x], (True,), stored)[0]
    assert gradient is not None
    assert_near(gradient, torch.full((4,), 65504e-9, dtype=torch.float64), 0.0, x.dtype)


@pytest.mark.parametrize("function", OPERANDS)
def test_infinities_and_nan(function: str) -> None:
    check_infinities_and_nan("cuda", DEVICE, function)


def test_outside_of_probabilities_the_loss_is_nan() -> None:
    check_outside_of_probabilities("cuda", DEVICE)


def test_an_empty_tensor() -> None:
    x = torch.empty(0, device=DEVICE)
    for reduction, want in (("mean", float("nan")), ("sum", 0.0)):
        problem = Problem("hinge", (1.0,), (1.0,), reduction)
        loss, _ = launch_for("cuda", problem, [x]).forward([x], (True,))
        torch.testing.assert_close(loss.cpu(), torch.tensor(want), equal_nan=True)
        # beside a term of several blocks
        y = torch.zeros(9000, device=DEVICE)
        problem = Problem("hinge", (1.0, 1.0), (1.0, 1.0), reduction)
        loss, _ = launch_for("cuda", problem, [x, y]).forward([x, y], None)
        filled = 9000.0 if reduction == "sum" else want
        torch.testing.assert_close(loss.cpu(), torch.tensor(filled), equal_nan=True)


def test_the_same_bits_in_every_order() -> None:
    problem = Problem("log_loss_logits", (0.9,), (1.0,), "mean")
    (x,) = operands_of("log_loss_logits", [(40_000,)])
    launch = launch_for("cuda", problem, [x])
    results = []
    for order in ORDERS * 2:
        set_order(order)
        results.append(launch.forward([x], None)[0])
    assert all(torch.equal(results[0], other) for other in results)
