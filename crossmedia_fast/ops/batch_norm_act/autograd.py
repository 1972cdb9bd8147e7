"""The autograd rule of batch normalization in training with the activation behind it.

First derivatives run natively. They start from x: its output is not kept, z is computed again where
act'(z) is wanted, and whoever takes the output may change it in place. Every further derivative is
PyTorch's own, of the operation computed again in PyTorch's functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cpu import Launch
from .reference import batch_norm_act as batch_norm_act_reference


class BatchNormAct(torch.autograd.Function):
    """act(batch_norm(x)) of plain float32 tensors, outside of every torch.func transform.

    Fused, in one native call each way:

    1. the mean and variance of each channel of the batch,
    2. the update of the running statistics, where there are any,
    3. the normalization, scaled and shifted,
    4. the activation.

    Equivalent to: ``act(F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum,
    eps))``, up to rounding. Ioffe and Szegedy 2015, Batch normalization.

    Shapes: x and the result [N, C, H, W], all else [C]. `x` is dense in the launch's memory format.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        launch: Launch,
    ) -> Tensor:
        y, statistics = launch.forward(x, weight, bias, running_mean, running_var, momentum)
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.launch = launch
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, bias, statistics = ctx.saved_tensors
        launch, needs = ctx.launch, ctx.needs_input_grad[:3]
        if (
            torch.is_grad_enabled()
            or torch._C._are_functorch_transforms_active()
            or torch._C._functorch.is_legacy_batchedtensor(dy)  # grad(is_grads_batched=True)
            or type(dy) is not Tensor
        ):
            gradients = differentiable_backward(launch, dy, x, weight, bias, needs)
        else:
            gradients = launch.backward(dy, x, statistics, weight, bias, needs)
        return *gradients, None, None, None, None


def differentiable_backward(
    launch: Launch,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """dx, dweight and dbias in PyTorch operations, for a derivative of any order, or of several."""
    with torch.enable_grad():
        y = batch_norm_act_reference(x, weight, bias, None, None, 0.0, *launch.norm)
    wanted = [t for t, need in zip((x, weight, bias), needs, strict=True) if need and t is not None]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled()))
    return tuple(next(gradients) if need else None for need in needs)
