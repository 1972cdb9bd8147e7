"""The autograd rule of a small convolution with its activation and pooling: one node for all of it.

At batch 1 the nodes of a graph cost more than their arithmetic; this one takes the place of two.
Every derivative beyond the first is PyTorch's own differentiation of the same call, made of
operations that can be taken apart.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu
from .arguments import Pool2d
from .autograd import act_pool2d_transformable
from .cpu_direct import SmallConv2d


class DirectConvActPool2d(torch.autograd.Function):
    """pool(act(x * w + bias)) for contiguous x [N, C, H, W] and w [K, C, R, S]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        conv: SmallConv2d,
        launch: cpu.Launch,
        pool: Pool2d,
    ) -> Tensor:
        z = conv.forward(x, w)
        y, index, preactivation = cpu.act_pool2d_forward(launch, z, bias, save=True)
        kind = launch.saved
        saved = preactivation
        if kind == "output":
            saved = y
        elif kind == "input":
            saved = z
        ctx.save_for_backward(x, w, bias, saved, index)
        ctx.call = conv, launch, pool
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        conv, launch, pool = ctx.call
        x, w, bias, saved, index = ctx.saved_tensors
        need_dx, need_dw, need_dbias, _, _, _ = ctx.needs_input_grad
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(dy):
            with torch.enable_grad():
                y = act_pool2d_transformable(F.conv2d(x, w, None, 1, conv.padding), bias, pool)
            needed = zip((x, w, bias), (need_dx, need_dw, need_dbias), strict=True)
            wanted = [tensor for tensor, need in needed if need]
            gradients = iter(
                torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled())
            )
            return (
                *(next(gradients) if need else None for need in (need_dx, need_dw, need_dbias)),
                None,
                None,
                None,
            )
        dz, dbias = cpu.act_pool2d_backward(
            launch, dy, saved, bias, index, need_dx or need_dw, need_dbias
        )
        dx = dw = None
        if dz is not None:
            dx, dw = conv.backward(dz, x, w, need_dx, need_dw)
        return dx, dw, dbias, None, None, None
