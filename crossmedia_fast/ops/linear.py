"""Fully connected layers of few rows: the weights are read once, and their gradient written once.

A network's classifier is larger than all its convolutions: VGG's first has 103 million weights. On
a few images it is bound by memory, and its weight gradient by the system: blocks of that size are
returned to it at every step, and the next step's takes a page fault for every 4 KiB.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from .memory import LARGE_BYTES, fresh

# Below as many weights PyTorch's call takes as long.
LEAST_WEIGHTS = 1 << 19
# Above as many rows PyTorch's product is as fast as writing its result past the caches.
_MOST_GRADIENT_ROWS = 8
_is_legacy_batchedtensor = torch._C._functorch.is_legacy_batchedtensor


def why_not_linear(x: Tensor, weight: Tensor, learns: bool) -> str:
    """Why PyTorch's call is as fast for float32 x [N, C] and weight [K, C]; "" where ours is
    faster. `learns`: whether the weight's gradient will be asked for."""
    if learns and weight.nbytes > LARGE_BYTES:
        return ""
    if not 1 <= x.shape[0] <= native.module.most_linear_rows:  # type: ignore[union-attr]
        return "is for few rows"
    if weight.numel() < LEAST_WEIGHTS:
        return "is for more weights"
    return ""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x w^T + b, of plain, dense float32 tensors on the CPU, as one pass over the weights.

    Equivalent to: ``F.linear(x, weight, bias)`` up to rounding (sums are shorter), its derivatives
    of every order.

    Args:
        x: [N, C], any N; the kernel takes up to 16 rows, PyTorch's runs on more.
        weight: [K, C].
        bias: [K] or None.

    Returns:
        [N, K].
    """
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return Linear.apply(x, weight, bias)
    return _forward(x, weight, bias)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if why_not_linear(x, weight, False):
        return F.linear(x, weight, bias)
    y = x.new_empty((x.shape[0], weight.shape[0]))
    native.module.linear_forward(  # type: ignore[union-attr]
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        *x.shape,
        weight.shape[0],
        native.thread_count(),
    )
    return y


class Linear(torch.autograd.Function):
    """`linear` with gradients: of the weight past the caches into memory of huge pages."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        need_dx, need_dw, need_db = ctx.needs_input_grad
        dx = dy.mm(weight) if need_dx else None
        dw = None
        if need_dw and (torch.is_grad_enabled() or _is_legacy_batchedtensor(dy)):
            dw = dy.t().mm(x)
        elif need_dw:
            dw = _weight_gradient(dy.contiguous(), x, weight)
        return dx, dw, dy.sum(0) if need_db else None


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    dw = fresh(weight, weight.shape, weight.stride())
    if not 1 <= x.shape[0] <= _MOST_GRADIENT_ROWS:
        return torch.mm(dy.t(), x, out=dw)
    native.module.linear_weight_gradient(  # type: ignore[union-attr]
        dy.data_ptr(),
        x.data_ptr(),
        dw.data_ptr(),
        *x.shape,
        weight.shape[0],
        native.thread_count(),
    )
    return dw
