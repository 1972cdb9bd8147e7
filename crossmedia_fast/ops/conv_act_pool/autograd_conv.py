"""The autograd rule of a convolution with its activation and pooling: one node for all of it.

First derivatives are the algorithm's own. Every derivative beyond is PyTorch's differentiation of
the same call, made of operations that can be taken apart.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import act_pool2d_transformable
from .kernels import NativeConv

# On a small problem looking up a module's attributes costs as much as the kernel.
_is_grad_enabled = torch.is_grad_enabled
_is_legacy_batchedtensor = torch._C._functorch.is_legacy_batchedtensor


class ConvActPool2d(torch.autograd.Function):
    """pool(act(x * w + bias)) for dense x [N, C, H, W] and w [K, C / groups, R, S]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, kernels: NativeConv) -> Tensor:
        y, saved, index = kernels.forward(x, w, bias, save=True)
        ctx.save_for_backward(x, w, bias, saved, index)
        ctx.kernels = kernels
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        kernels = ctx.kernels
        x, w, bias, saved, index = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if _is_grad_enabled() or _is_legacy_batchedtensor(dy):
            conv = kernels.conv
            dtype = torch.promote_types(x.dtype, w.dtype)  # two under autocast
            with torch.enable_grad():
                z = F.conv2d(
                    x.to(dtype),
                    w.to(dtype),
                    None,
                    conv.stride,
                    conv.padding,
                    conv.dilation,
                    conv.groups,
                )
                b = None if bias is None else bias.to(dtype)
                y = act_pool2d_transformable(z, b, kernels.pool, kernels.backend)
            dy = dy.to(dtype)
            wanted = [t for t, need in zip((x, w, bias), needs, strict=True) if need]
            gradients = iter(
                torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled())
            )
            return *(next(gradients) if need else None for need in needs), None
        return *kernels.backward(dy, saved, index, x, w, bias, needs), None


# Function.apply binds default arguments and asks for functorch on every call; the caller of this
# one has asked already.
_apply = super(torch.autograd.Function, ConvActPool2d).apply


def conv_act_pool2d_native(
    x: Tensor, w: Tensor, bias: Tensor | None, kernels: NativeConv
) -> Tensor:
    """`ConvActPool2d` of plain tensors, outside of every torch.func transform."""
    return _apply(x, w, bias, kernels)
