"""Transposed convolution on the CPU, by the kernels of the convolution whose adjoint it is.

conv_transpose2d(x, w) is the input gradient of conv2d(·, w) for the output gradient x. So its own
input gradient is that convolution, and its weight gradient is that convolution's, with x and the
output's gradient in each other's place (Dumoulin and Visin 2016, A guide to convolution arithmetic
for deep learning, chapter 4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import native, precision
from .arguments import Conv2d, check_pool
from .cpu_conv import ConvLaunch
from .memory_format import as_format
from .plan import LEAST_GAIN, winograd_gain

_NOTHING = check_pool("identity", None, "none", 2, None, 0, False, True)


class TransposedLaunch:
    """The transposed convolution of tensors of one shape, where a kernel is faster than PyTorch's.

    Raises NotImplementedError, with the reason, where none is.
    """

    def __init__(
        self,
        x_shape: tuple[int, ...],  # [N, C, H, W]
        w_shape: tuple[int, ...],  # [C, K, R, S]
        stride: tuple[int, int],
        padding: tuple[int, int],
        output_padding: tuple[int, int],
        channels_last: bool,
    ) -> None:
        sizes = [
            (x_shape[2 + i] - 1) * stride[i] - 2 * padding[i] + w_shape[2 + i] + output_padding[i]
            for i in (0, 1)
        ]
        if not x_shape[0] or min(sizes) < 1:
            raise NotImplementedError("has no output")
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.channels_last = channels_last
        self.y_shape = (x_shape[0], w_shape[1], *sizes)
        self.adjoint = ConvLaunch(
            self.y_shape,
            w_shape,
            x_shape,
            torch.float32,
            Conv2d(stride, padding, (1, 1), 1),
            _NOTHING,
            channels_last,
            channels_last,
        )
        takes = [
            name
            for name in ("few_channels", "winograd")
            if not self.adjoint.refusal(name, backward=True) and not self.adjoint.refusal(name)
        ]
        if "few_channels" not in takes:
            if precision.get_conv_precision() == "highest":
                raise NotImplementedError("conv_precision is 'highest': the transforms round")
            gain = winograd_gain(self.y_shape, w_shape, x_shape, stride, 4)
            if "winograd" not in takes or gain < LEAST_GAIN:
                raise NotImplementedError("Winograd's F(4×4) saves too little")
        self.algorithm = takes[0]

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """y [N, K, H', W'], dense in the launch's memory format."""
        x = as_format(x, self.channels_last)
        y, _, _ = self.adjoint.backward(
            self.algorithm, x, None, None, x, w, None, True, False, False
        )
        assert y is not None
        return y

    def backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_dx: bool, need_dw: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """dx [N, C, H, W] and dw [C, K, R, S]."""
        dy = as_format(dy, self.channels_last)
        dx = dw = None
        w = w.contiguous()
        if need_dx:
            # these weights will not be seen again: what they become is not kept
            transformed = self.adjoint.prepare(self.algorithm, w, keep=False)
            dx, _, _ = self.adjoint.forward(self.algorithm, dy, w, None, False, transformed)
        if need_dw:
            x = as_format(x, self.channels_last)
            _, dw, _ = self.adjoint.backward(
                self.algorithm, x, None, None, dy, w, None, False, True, False
            )
        return dx, dw


class ConvTranspose2d(torch.autograd.Function):
    """conv_transpose2d(x, w) of plain float32 tensors, outside of every torch.func transform."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, launch: TransposedLaunch) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.launch = launch
        return launch.forward(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        launch, needs = ctx.launch, ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(dy):
            with torch.enable_grad():  # a derivative of any order, or of several at once
                y = F.conv_transpose2d(
                    x, w, None, launch.stride, launch.padding, launch.output_padding
                )
            wanted = [t for t, need in zip((x, w), needs, strict=True) if need]
            gradients = iter(
                torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled())
            )
            return *(next(gradients) if need else None for need in needs), None
        return *launch.backward(dy, x, w, *needs), None


def why_not_transposed(conv: Any, x: Tensor) -> str:
    """Why a module's transposed convolution of `x` is PyTorch's affair; "" where it may be ours."""
    weight = conv._parameters["weight"]
    if native.module is None:
        return native.reason
    if not x.is_cpu or x.dim() != 4 or x.shape[1] != weight.shape[0]:
        return "takes batches of images on the CPU alone"
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return "takes float32 alone"
    if conv.groups != 1 or tuple(conv.dilation) != (1, 1):
        return "takes one group without dilation alone"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return "takes padding with zeros alone"
    if any(extra >= step for extra, step in zip(conv.output_padding, conv.stride, strict=True)):
        return "takes an output_padding below the stride alone"
    return ""
