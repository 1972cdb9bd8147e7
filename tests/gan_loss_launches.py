"""What the tests of the losses on any backend share: operands, and the checks of a launch."""

from __future__ import annotations

import torch
from torch import Tensor

from crossmedia_fast.ops.gan_loss import formulas
from crossmedia_fast.ops.gan_loss.arguments import OPERANDS, Problem
from crossmedia_fast.ops.gan_loss.kernels import launch_for

from .gan_loss_cases import assert_near


def operands_on(
    device: str,
    function: str,
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    operands = []
    for shape in shapes:
        for which in range(OPERANDS[function]):
            if which or "probabilities" in function:
                x = torch.rand(shape, generator=generator, dtype=torch.float64)
            else:
                x = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
            operands.append(x.to(dtype).to(device))
    return operands


def check_launch(
    backend: str, problem: Problem, operands: list[Tensor], incoming: float = -1.5
) -> None:
    """Forward with its gradients for 1, and backward for another incoming gradient."""
    dtype = operands[0].dtype
    step = OPERANDS[problem.function]
    wanted = tuple(index % step < 2 for index in range(len(operands)))
    launch = launch_for(backend, problem, operands)
    loss, gradients = launch.forward(operands, None if launch.unreduced else wanted)

    doubles = [x.double().requires_grad_(want) for x, want in zip(operands, wanted, strict=True)]
    expected = formulas.compose(problem, doubles)
    # what was summed: the mean or sum of the sizes of the elements
    size = sum(
        abs(scale)
        * formulas.reduce(formulas.value(problem.function, term, p).abs(), "mean")
        * (max(term[0].numel(), 1) if problem.reduction == "sum" else 1)
        for term, p, scale in zip(
            formulas.terms(problem, doubles), problem.parameters, problem.scales, strict=True
        )
    )
    assert_near(loss, expected, float(torch.as_tensor(size).detach()), dtype)

    inputs = [x for x in doubles if x.requires_grad]
    for grad, actual in (
        (torch.ones_like(expected), gradients),
        (torch.full_like(expected, incoming), None),
    ):
        if actual is None:
            actual = launch.backward(grad.to(loss.dtype), operands, wanted)
        if not actual:
            continue
        want = iter(torch.autograd.grad(expected, inputs, grad, retain_graph=True))
        for index, gradient in enumerate(actual):
            if not wanted[index]:
                assert gradient is None
                continue
            expected_gradient = next(want)
            assert gradient.dtype == dtype
            assert_near(gradient, expected_gradient, expected_gradient.abs().mean(), dtype)


def check_infinities_and_nan(backend: str, device: str, function: str) -> None:
    """The formulas' values at infinities, NaN and the ends of probabilities."""
    problem = Problem(function, (1.0,), (1.0,), "none")
    operands = operands_on(device, function, [(6,)])
    if "probabilities" in function:
        operands[0] = torch.tensor([0.0, 1.0, 1e-30, 0.5, 1.0, 0.0], device=device)
    else:
        special = [float("inf"), float("-inf"), float("nan"), 200.0, -200.0, 0.0]
        operands[0] = torch.tensor(special, device=device)
    loss, _ = launch_for(backend, problem, operands).forward(operands, None)
    expected = formulas.compose(problem, [x.double() for x in operands])
    assert_near(loss, expected, 1.0, torch.float32)


def check_outside_of_probabilities(backend: str, device: str) -> None:
    """The loss of what is no probability is NaN."""
    problem = Problem("log_loss_probabilities", (1.0,), (1.0,), "mean")
    for bad in (-0.1, 1.1):
        x = torch.tensor([0.5, bad], device=device)
        assert launch_for(backend, problem, [x]).forward([x], None)[0].isnan()
