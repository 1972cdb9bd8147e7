"""Transposed convolution on the CPU, by the kernels of the convolution whose adjoint it is.

conv_transpose2d(x, w) is the input gradient of conv2d(·, w) for the output gradient x. So its own
input gradient is that convolution, and its weight gradient is that convolution's, with x and the
output's gradient in each other's place (Dumoulin and Visin 2016, A guide to convolution arithmetic
for deep learning, chapter 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import native, precision
from ..memory import fresh
from . import cpu_weights, filter_format
from .arguments import Conv2d, Pool2d, check_pool
from .conv_cost import Sizes, winograd_gain
from .cpu_conv import ConvLaunch
from .kernels import launch_for
from .memory_format import as_format, dense_strides

# In the order in which they are tried.
_ALGORITHMS = ("patches", "few_channels", "winograd")
_FORWARD_ALONE = ("patches",)  # whose gradients are PyTorch's
# What Winograd must save to be chosen: less than of convolutions, for PyTorch's transposed ones
# take longer. Measured on the Xeon, forward and backward of 8 layers of 49 to 1024 positions: at
# 1.03 to 1.05 ours take 0.7 to 0.96 of PyTorch's time, at 0.7 to 0.82 they take 0.95 to 1.5. Where
# the transformed weights are kept: 0.58 to 0.7 at 0.93 to 1.04, 0.88 to 1.08 at 0.72 to 0.73.
LEAST_GAIN = 1.0
_OF_KEPT = 0.8  # of it
NOTHING = check_pool("identity", None, "none", 2, None, 0, False, True)


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
        kept: bool = False,  # whether transformed weights stay, as they do without gradients
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
            NOTHING,
            channels_last,
            channels_last,
        )
        # what transformed weights depend on beside the weights
        self.weights_key = (
            *(x_shape[1:], w_shape, stride, padding, output_padding, channels_last),
        )
        self.y_strides = dense_strides(self.y_shape, channels_last)
        takes = [name for name in _ALGORITHMS if not self._refusal(name)]
        if not takes or takes[0] == "winograd":
            if precision.get_conv_precision() == "highest":
                raise NotImplementedError("conv_precision is 'highest': the transforms round")
            gain = winograd_gain(Sizes(self.y_shape, w_shape, x_shape, stride), 4, kept)
            if not takes or gain < LEAST_GAIN * (_OF_KEPT if kept else 1):
                raise NotImplementedError("Winograd's F(4×4) saves too little")
        if takes[0] == "patches" and not kept and channels_last and x_shape[2] * x_shape[3] > 1:
            # measured: the weights' way into their order takes what is saved
            raise NotImplementedError("of NHWC PyTorch's is as fast where the weights change")
        self.algorithm = takes[0]
        # whether it can write some channels of a larger tensor
        self.joins = self.algorithm == "patches" and channels_last
        self.prepared_size: int = native.module.conv_transposed2d_prepared_size(  # type: ignore[union-attr]
            self.algorithm, self.adjoint.native
        )

    def _refusal(self, algorithm: str) -> str:
        """Why `algorithm` can't take this; "" where it can, and its gradients have kernels."""
        why = native.module.conv_transposed2d_refusal(algorithm, self.adjoint.native)  # type: ignore[union-attr]
        if why or algorithm in _FORWARD_ALONE:
            return str(why)
        return self.adjoint.refusal(algorithm) or self.adjoint.refusal(algorithm, backward=True)

    def prepare(self, w: Tensor) -> Tensor:
        """The weights as the algorithm wants them; from the last call where they are the same."""

        def transform(target: Tensor) -> None:
            contiguous = filter_format.contiguous(w)
            native.module.conv_transposed2d_prepare(  # type: ignore[union-attr]
                self.algorithm,
                self.adjoint.native,
                contiguous.data_ptr(),
                target.data_ptr(),
                target.numel(),
                native.thread_count(),
            )

        key = ("transposed", self.algorithm, self.weights_key, self.prepared_size, w.stride())
        return cpu_weights.kept(w, key, self.prepared_size, transform)

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None = None,  # [K], contiguous
        activation: Pool2d = NOTHING,  # without a pooling
        keep: bool = False,  # whether the next call will probably see the same weights
    ) -> Tensor:
        """y [N, K, H', W'], dense in the launch's memory format."""
        x = as_format(x, self.channels_last)
        y = fresh(x, self.y_shape, self.y_strides)
        self.writer(w, bias, activation, keep)(x, y)
        return y

    def writer(
        self, w: Tensor, bias: Tensor | None, activation: Pool2d, keep: bool
    ) -> Callable[..., None]:
        """The operation for these weights, of x and y, dense in the launch's memory format; and the
        distance from a pixel of y to the next, where y is some channels of a larger tensor."""
        prepared = self.prepare(w) if keep else None
        dense = cpu_weights.contiguous(w, prepared)
        output: Any = launch_for("cpu", self.y_shape, torch.float32, self.channels_last, activation)
        weights = (
            dense.data_ptr(),
            0 if prepared is None else prepared.data_ptr(),
            self.prepared_size,
            0 if bias is None else bias.data_ptr(),
        )
        first = (self.algorithm, self.adjoint.native, output.native)
        forward = native.module.conv_transposed2d_forward  # type: ignore[union-attr]
        holds = (dense, prepared, bias)  # the pointers' memory

        def write(x: Tensor, y: Tensor, pixel: int = 0, holds: Any = holds) -> None:
            x_pointer, y_pointer = x.data_ptr(), y.data_ptr()
            forward(*first, x_pointer, *weights, y_pointer, native.thread_count(), pixel)

        return write

    def backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_dx: bool, need_dw: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """dx [N, C, H, W] and dw [C, K, R, S]."""
        if self.algorithm in _FORWARD_ALONE:
            return self._backward_by_pytorch(dy, x, w, need_dx, need_dw)
        dy = as_format(dy, self.channels_last)
        dx = dw = None
        w = filter_format.contiguous(w)
        if need_dx:
            # these weights will not be seen again: what they become is not kept
            dx, _, _ = self.adjoint.forward(self.algorithm, dy, w, None, False, keep=False)
        if need_dw:
            x = as_format(x, self.channels_last)
            _, dw, _ = self.adjoint.backward(
                self.algorithm, x, None, None, dy, w, None, False, True, False
            )
        return dx, dw

    def _backward_by_pytorch(
        self, dy: Tensor, x: Tensor, w: Tensor, need_dx: bool, need_dw: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        # of one pixel all is matrix products, of which PyTorch's convolution knows nothing; but
        # their precision may be set lower than a convolution's
        if x.shape[2:] == (1, 1) and torch.get_float32_matmul_precision() == "highest":
            patches, pixels = dy.reshape(dy.shape[0], -1), x.reshape(x.shape[:2])
            dx = (patches @ w.reshape(w.shape[0], -1).t()).reshape(x.shape) if need_dx else None
            return dx, (pixels.t() @ patches).reshape(w.shape) if need_dw else None
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy,
            x,
            w,
            None,
            self.stride,
            self.padding,
            (1, 1),
            True,
            self.output_padding,
            1,
            (need_dx, need_dw, False),
        )
        return dx, dw


class ConvTranspose2d(torch.autograd.Function):
    """conv_transpose2d(x, w, bias) of plain float32 tensors, outside of every torch.func transform.

    w and bias contiguous.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, launch: TransposedLaunch
    ) -> Tensor:
        ctx.save_for_backward(x, w, bias)
        ctx.launch = launch
        return launch.forward(x, w, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w, bias = ctx.saved_tensors
        launch, needs = ctx.launch, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(dy):
            with torch.enable_grad():  # a derivative of any order, or of several at once
                y = F.conv_transpose2d(
                    x, w, bias, launch.stride, launch.padding, launch.output_padding
                )
            wanted = [t for t, need in zip((x, w, bias), needs, strict=True) if need]
            gradients = iter(
                torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled())
            )
            return *(next(gradients) if need else None for need in needs), None
        dbias = dy.sum((0, 2, 3)) if needs[2] else None
        return *launch.backward(dy, x, w, *needs[:2]), dbias, None


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
