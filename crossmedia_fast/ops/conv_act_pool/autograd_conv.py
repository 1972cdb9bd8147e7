"""The autograd rule of a convolution with its activation and pooling: one node for all of it.

First derivatives are the algorithm's own. Every derivative beyond is PyTorch's differentiation of
the same call, made of operations that can be taken apart.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Conv2d, Pool2d
from .autograd import act_pool2d_transformable


class NativeConv(Protocol):
    """A native convolution with what follows it, for tensors of one shape."""

    conv: Conv2d
    pool: Pool2d

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y; and where `save`, what backward wants of it: the saved tensor and the index."""

    def backward(
        self,
        dy: Tensor,
        saved: Tensor | None,
        index: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx, dw and dbias, each where `needs` says so."""


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
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(dy):
            conv = kernels.conv
            with torch.enable_grad():
                z = F.conv2d(x, w, None, conv.stride, conv.padding, conv.dilation, conv.groups)
                y = act_pool2d_transformable(z, bias, kernels.pool)
            wanted = [t for t, need in zip((x, w, bias), needs, strict=True) if need]
            gradients = iter(
                torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled())
            )
            return *(next(gradients) if need else None for need in needs), None
        return *kernels.backward(dy, saved, index, x, w, bias, needs), None
