"""The autograd rule of the GAN losses.

The forward pass computes the loss and, in the same pass, the gradients for an incoming gradient of
1, which is what `loss.backward()` sends. Backward hands those over; any other incoming gradient,
and a second backward through a retained graph, take one native pass over the logits, which are
saved. Every further derivative is PyTorch's own differentiation of the formulas in formulas.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .arguments import OPERANDS, Problem
from .formulas import differentiable_backward, directional
from .kernels import GanLossLaunch, launch_for

# On a small problem looking up a module's attributes costs as much as the kernel.
_functorch_active = torch._C._are_functorch_transforms_active
_is_grad_enabled = torch.is_grad_enabled
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead


class GanLoss(torch.autograd.Function):
    """The hot path: one native pass each way, as few Python lines as autograd allows."""

    @staticmethod
    def forward(ctx: Any, launch: GanLossLaunch, *operands: Tensor) -> Tensor:
        ctx.save_for_backward(*operands)
        ctx.launch = launch
        wanted = None if launch.unreduced else ctx.needs_input_grad[1:]
        loss, ctx.gradients = launch.forward(operands, wanted)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        operands = ctx.saved_tensors
        if _is_grad_enabled() or type(grad) is not Tensor:
            return None, *_differentiable_backward(ctx, operands, grad)
        gradients = ctx.gradients
        # Whoever gets the stored gradients may accumulate into them: they are handed out once.
        ctx.gradients = ()
        try:
            wanted = ctx.needs_input_grad[1:]
            return None, *ctx.launch.backward(grad, operands, wanted, gradients)
        except RuntimeError:
            # a gradient without memory of its own: torch.autograd.grad(is_grads_batched=True)
            if not torch._C._functorch.is_legacy_batchedtensor(grad):
                raise
            return None, *_differentiable_backward(ctx, operands, grad)


def _differentiable_backward(ctx: Any, operands: Sequence[Tensor], grad: Tensor) -> Any:
    launch = ctx.launch
    return differentiable_backward(launch.problem, operands, grad, launch.dtype)


# Function.apply binds default arguments and asks for functorch on every call; the callers of this
# module have asked already.
_apply = super(torch.autograd.Function, GanLoss).apply


class GanLossTransformable(torch.autograd.Function):
    """The same rule for torch.func transforms and forward-mode AD."""

    @staticmethod
    def forward(
        backend: str, problem: Problem, dtype: torch.dtype | None, *operands: Tensor
    ) -> Tensor:
        launch = launch_for(backend, problem, operands, dtype)
        return launch.forward(operands, None)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.problem, ctx.dtype, *operands = inputs
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradients = differentiable_backward(ctx.problem, ctx.saved_tensors, grad, ctx.dtype)
        return None, None, None, *gradients

    @staticmethod
    def jvp(
        ctx: Any, _backend: Any, _problem: Any, _dtype: Any, *tangents: Tensor | None
    ) -> Tensor:
        return directional(ctx.problem, ctx.saved_tensors, tangents, ctx.dtype)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        backend: str,
        problem: Problem,
        dtype: torch.dtype | None,
        *operands: Tensor,
    ) -> tuple[Tensor, int]:
        return vmap(info.batch_size, in_dims[3:], backend, problem, dtype, operands)


def vmap(
    batch_size: int,
    in_dims: Any,
    backend: str,
    problem: Problem,
    dtype: torch.dtype | None,
    operands: Any,
) -> tuple[Tensor, int]:
    """A loss an example: the elements in native passes, reduced by PyTorch."""
    examples = [
        x.expand(batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(operands, in_dims, strict=True)
    ]
    step = OPERANDS[problem.function]
    total: Tensor | None = None
    for index, (parameter, scale) in enumerate(
        zip(problem.parameters, problem.scales, strict=True)
    ):
        elements = GanLossTransformable.apply(
            backend,
            Problem(problem.function, (parameter,), (scale,), "none"),
            dtype,
            *examples[index * step : (index + 1) * step],
        )
        if problem.reduction != "none":
            elements = reduce_examples(elements, problem.reduction)
        total = elements if total is None else total + elements
    assert total is not None
    return total, 0


def reduce_examples(elements: Tensor, reduction: str) -> Tensor:  # [B, *] -> [B]
    """Each example's elements reduced to one."""
    flat = elements.reshape(elements.shape[0], -1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)


def gan_loss(launch: GanLossLaunch, operands: Sequence[Tensor]) -> Tensor:
    """The loss of plain tensors, differentiable where a gradient is asked for.

    RuntimeError for a tensor that has no memory of its own: another layout than the launch was made
    for, or one left over from a torch.func transform (`unwrapped`).
    """
    if forward_ad._current_level >= 0 or _functorch_active():
        return GanLossTransformable.apply(launch.backend, launch.problem, launch.dtype, *operands)
    if _is_grad_enabled():
        for x in operands:
            if x.requires_grad:
                return _apply(launch, *operands)
    return launch.forward(operands, None)[0]


def unwrapped(operands: list[Tensor]) -> list[Tensor]:
    """The operands without the wrappers that a finished torch.func transform left on them."""
    return operands if _functorch_active() else list(map(_unwrap_if_dead, operands))
