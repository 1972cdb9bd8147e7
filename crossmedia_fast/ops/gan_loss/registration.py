"""The GAN losses as a torch.library op: what torch.compile, torch.export and FakeTensor see.

The eager path does not come through here: a dispatched op costs several microseconds more than the
plain autograd.Function of autograd.py, whose rule both share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backends import resolve
from .arguments import OPERANDS, Problem
from .autograd import vmap
from .dense import as_dense
from .formulas import differentiable_backward
from .kernels import launch_for

_PROBLEM = (
    "str function, float[] parameters, float[] scales, str reduction, ScalarType? dtype, "
    "str backend"
)

_library = torch.library.Library("crossmedia_fast", "FRAGMENT")
_library.define(f"gan_loss(Tensor[] operands, {_PROBLEM}) -> Tensor")
_library.define(f"gan_loss_backward(Tensor grad, Tensor[] operands, {_PROBLEM}) -> Tensor[]")


def _problem(function: str, parameters: Any, scales: Any, reduction: str) -> Problem:
    return Problem(function, tuple(parameters), tuple(scales), reduction)


def _as_args(problem: Problem, dtype: torch.dtype | None, backend: str) -> tuple[Any, ...]:
    return (
        problem.function,
        list(problem.parameters),
        list(problem.scales),
        problem.reduction,
        dtype,
        backend,
    )


def differentiable(problem: Problem) -> int:
    """How many operands of a term have a gradient: all but a weight."""
    return min(OPERANDS[problem.function], 2)


def _wanted(problem: Problem, count: int) -> tuple[bool, ...]:
    step = OPERANDS[problem.function]
    return tuple([index % step < differentiable(problem) for index in range(count)])


def _check_operands(problem: Problem, operands: list[Tensor]) -> None:
    """A pointer may reach the kernel only with the count, shape and dtype that it expects."""
    step = OPERANDS.get(problem.function)
    if step is None:
        raise ValueError(f"function must be one of {', '.join(OPERANDS)}, got {problem.function!r}")
    terms = len(problem.parameters)
    if not terms or len(operands) != step * terms or len(problem.scales) != terms:
        raise ValueError(
            f"operands must hold {step} tensors for each of the parameters and scales, got "
            f"{len(operands)} for {terms} parameters and {len(problem.scales)} scales"
        )
    for start in range(0, len(operands), step):
        first = operands[0 if problem.reduction == "none" else start]
        for x in operands[start : start + step]:
            if x.shape != first.shape or x.dtype != operands[0].dtype:
                raise ValueError(
                    f"the operands of a term must have one shape and dtype, got "
                    f"{tuple(first.shape)} {first.dtype} and {tuple(x.shape)} {x.dtype}"
                )


def _gan_loss(operands: list[Tensor], *args: Any) -> Tensor:
    *problem_args, dtype, backend = args
    problem = _problem(*problem_args)
    _check_operands(problem, operands)
    resolve(backend, operands[0].device, operands[0].dtype)  # raises where it can't read these
    return launch_for(backend, problem, operands, dtype).forward(operands, None)[0]


def _gan_loss_fake(operands: list[Tensor], *args: Any) -> Tensor:
    *problem_args, dtype, _ = args
    problem = _problem(*problem_args)
    _check_operands(problem, operands)
    first = operands[0]
    if problem.reduction != "none":
        return first.new_empty((), dtype=dtype or first.dtype)
    return torch.empty_like(as_dense(operands, len(operands))[0], dtype=dtype or first.dtype)


def _gan_loss_backward(grad: Tensor, operands: list[Tensor], *args: Any) -> list[Tensor]:
    *problem_args, dtype, backend = args
    problem = _problem(*problem_args)
    _check_operands(problem, operands)
    shape = operands[0].shape if problem.reduction == "none" else ()
    if grad.shape != shape or grad.dtype != (dtype or operands[0].dtype):
        raise ValueError(
            f"grad must have shape {tuple(shape)} and dtype {dtype or operands[0].dtype}, "
            f"got {tuple(grad.shape)} and {grad.dtype}"
        )
    resolve(backend, grad.device, operands[0].dtype)
    launch = launch_for(backend, problem, operands, dtype)
    wanted = _wanted(problem, len(operands))
    gradients = launch.backward(grad, operands, wanted)
    return [x for x in gradients if x is not None]


def _gan_loss_backward_fake(grad: Tensor, operands: list[Tensor], *args: Any) -> list[Tensor]:
    problem = _problem(*args[:-2])
    wanted = _wanted(problem, len(operands))
    alike = len(operands) if problem.reduction == "none" else OPERANDS[problem.function]
    dense = as_dense(operands, alike)
    if problem.reduction == "none" and any(x.stride() != dense[0].stride() for x in (*dense, grad)):
        dense = [x.contiguous() for x in dense]
    return [torch.empty_like(x) for x, want in zip(dense, wanted, strict=True) if want]


for _name, _kernel, _fake in (
    ("gan_loss", _gan_loss, _gan_loss_fake),
    ("gan_loss_backward", _gan_loss_backward, _gan_loss_backward_fake),
):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _kernel, _key)
    torch.library.register_fake(f"crossmedia_fast::{_name}", _fake, lib=_library)


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    operands, *problem_args, ctx.dtype, ctx.backend = inputs
    ctx.problem = _problem(*problem_args)
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, grad: Tensor) -> Any:
    operands, problem = ctx.saved_tensors, ctx.problem
    if torch.is_grad_enabled():
        gradients = differentiable_backward(problem, operands, grad, ctx.dtype)
    else:
        wanted = _wanted(problem, len(operands))
        given = iter(
            torch.ops.crossmedia_fast.gan_loss_backward(
                grad, list(operands), *_as_args(problem, ctx.dtype, ctx.backend)
            )
        )
        gradients = [next(given) if want else None for want in wanted]
    return gradients, None, None, None, None, None, None


def _vmap(info: Any, in_dims: Any, operands: list[Tensor], *args: Any) -> tuple[Tensor, int]:
    *problem_args, dtype, backend = args
    return vmap(info.batch_size, in_dims[0], backend, _problem(*problem_args), dtype, operands)


torch.library.register_autograd(
    "crossmedia_fast::gan_loss", _backward, setup_context=_setup_context, lib=_library
)
torch.library.register_vmap("crossmedia_fast::gan_loss", _vmap, lib=_library)


def gan_loss(
    problem: Problem, operands: list[Tensor], dtype: torch.dtype | None, backend: str
) -> Tensor:
    """The registered op, called the way the public functions do."""
    return torch.ops.crossmedia_fast.gan_loss(operands, *_as_args(problem, dtype, backend))
