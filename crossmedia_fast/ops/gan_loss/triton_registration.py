"""The losses' Triton kernels as torch.library ops: torch.compile sees the launches themselves.

Importing this imports Triton, and defines the ops once. The eager path does not come through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import triton
from .arguments import OPERANDS, Problem
from .formulas import compose, differentiable_backward
from .registration import _as_args, _check_operands, _problem, _wanted


def _launch(
    problem: Problem, operands: Sequence[Tensor], dtype: torch.dtype | None
) -> triton.Launch:
    counts = tuple(int(x.numel()) for x in operands[:: OPERANDS[problem.function]])
    return triton.Launch(problem, counts, operands[0].dtype, dtype)


def _arguments(problem: Problem, dtype: torch.dtype | None) -> tuple[Any, ...]:
    *arguments, _ = _as_args(problem, dtype, "triton")  # the ops are that backend's
    return tuple(arguments)


@torch.library.triton_op("crossmedia_fast::triton_gan_loss", mutates_args={})
def triton_gan_loss(
    operands: Sequence[Tensor],
    function: str,
    parameters: Sequence[float],
    scales: Sequence[float],
    reduction: str,
    dtype: torch.dtype | None,
) -> Tensor:
    """The loss of one problem (arguments.Problem)."""
    problem = _problem(function, parameters, scales, reduction)
    _check_operands(problem, list(operands))
    launch = _launch(problem, operands, dtype)
    return launch.forward(operands, None, traced=True)[0]


@torch.library.triton_op("crossmedia_fast::triton_gan_loss_backward", mutates_args={})
def triton_gan_loss_backward(
    grad: Tensor,
    operands: Sequence[Tensor],
    function: str,
    parameters: Sequence[float],
    scales: Sequence[float],
    reduction: str,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """The gradient of each operand that has one."""
    problem = _problem(function, parameters, scales, reduction)
    _check_operands(problem, list(operands))
    launch = _launch(problem, operands, dtype)
    wanted = _wanted(problem, len(operands))
    gradients = launch.backward(grad, operands, wanted, traced=True)
    return [x for x in gradients if x is not None]


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    operands, *problem_args, ctx.dtype = inputs
    ctx.problem = _problem(*problem_args)
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, grad: Tensor) -> Any:
    operands, problem = ctx.saved_tensors, ctx.problem
    if torch.is_grad_enabled():
        gradients = differentiable_backward(problem, operands, grad, ctx.dtype)
    else:
        given = iter(
            triton_gan_loss_backward(
                grad, list(operands), *_as_args(problem, ctx.dtype, "triton")[:-1]
            )
        )
        wanted = _wanted(problem, len(operands))
        gradients = [next(given) if want else None for want in wanted]
    return gradients, None, None, None, None, None


triton_gan_loss.register_autograd(_backward, setup_context=_setup_context)


def gan_loss(problem: Problem, operands: list[Tensor], dtype: torch.dtype | None) -> Tensor:
    """The registered op; of more tensors than a graph's launch takes, formulas for the compiler."""
    if len(operands) > triton.MOST_TRACED:
        loss = compose(problem, operands, torch.float32 if dtype is not None else None)
        return loss if dtype is None else loss.to(dtype)
    return triton_gan_loss(operands, *_arguments(problem, dtype))
