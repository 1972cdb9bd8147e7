"""The CPU backend's direct convolution: allocates outputs and calls csrc/cpu/conv2d_small.

For problems so small that what a library does before it computes costs more than the arithmetic.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ... import native
from . import cpu
from .arguments import Conv2d, Pool2d
from .kernels import launch_for
from .memory_format import dense_strides
from .native_problem import DTYPE_NAMES

# Multiply-adds up to which one thread of this kernel beats the library: a few microseconds. Its
# vectors run along rows: narrow ones leave their lanes idle. Of 1×1 filters the library is our own
# matrix product, which costs less.
MOST_MULTIPLY_ADDS = 200_000
MOST_OF_1X1 = 50_000
_LANES = 16
MOST_TAPS = 7  # along one axis


def why_not(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C / groups, R, S]
    z_shape: tuple[int, ...],  # [N, K, P, Q]
    conv: Conv2d,
    dtype: torch.dtype,
    contiguous: bool,
    autocast: bool,
) -> str:
    """Why the direct convolution does not run; "" where it does."""
    if native.module is None:
        return native.reason
    if autocast or dtype not in (torch.float32, torch.float64):
        return "computes in float32 and float64 alone"
    if not contiguous:
        return "reads contiguous tensors alone"
    if conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
        return "has stride, dilation and groups 1 alone"
    if isinstance(conv.padding, str) or max(w_shape[2:]) > MOST_TAPS:
        return f"takes padding in numbers and at most {MOST_TAPS} taps along an axis"
    if any(pad >= taps for pad, taps in zip(conv.padding, w_shape[2:], strict=True)):
        return "takes padding below the kernel's size alone"
    batch, filters, height, width = z_shape
    lanes = max(width, _LANES)
    work = batch * filters * height * lanes * x_shape[1] * w_shape[2] * w_shape[3]
    limit = MOST_OF_1X1 if max(w_shape[2:]) == 1 else MOST_MULTIPLY_ADDS
    if work > limit:
        return f"is for at most {limit:,} multiply-adds, with idle lanes these are {work:,}"
    return ""


class SmallConv2d:
    """One small convolution with what follows it, ready to call (kernels.NativeConv)."""

    backend = "cpu"
    __slots__ = (
        "conv",
        "native",
        "native_backward",
        "native_forward",
        "pool",
        "pool_launch",
        "z_shape",
        "z_strides",
    )

    def __init__(
        self,
        x_shape: tuple[int, ...],
        w_shape: tuple[int, ...],
        dtype: torch.dtype,
        conv: Conv2d,
        pool: Pool2d,
    ) -> None:
        assert native.module is not None
        assert not isinstance(conv.padding, str)
        self.native: Any = native.module.Conv2dProblem(
            batch=x_shape[0],
            in_channels=x_shape[1],
            height=x_shape[2],
            width=x_shape[3],
            out_channels=w_shape[0],
            kernel_height=w_shape[2],
            kernel_width=w_shape[3],
            pad_height=conv.padding[0],
            pad_width=conv.padding[1],
            dtype=DTYPE_NAMES[dtype],
        )
        self.native_forward = native.module.conv2d_small_forward
        self.native_backward = native.module.conv2d_small_backward
        self.conv = conv
        self.pool = pool
        self.z_shape = (x_shape[0], w_shape[0], self.native.out_height, self.native.out_width)
        self.z_strides = dense_strides(self.z_shape, channels_last=False)
        self.pool_launch = cast(cpu.Launch, launch_for("cpu", self.z_shape, dtype, False, pool))

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y [N, K, P, Q] of contiguous x [N, C, H, W] and w [K, C, R, S]; as NativeConv."""
        launch = self.pool_launch
        y = x.new_empty_strided(launch.y_shape, launch.y_strides)
        index = saved = None
        z_ptr = index_ptr = preactivation_ptr = 0
        if save:
            if launch.index_dtype is not None:
                index = x.new_empty_strided(
                    launch.y_shape, launch.y_strides, dtype=launch.index_dtype
                )
                index_ptr = index.data_ptr()
            if launch.saved == "output":
                saved = y
            elif launch.saved == "preactivation":
                saved = x.new_empty_strided(launch.y_shape, launch.y_strides)
                preactivation_ptr = saved.data_ptr()
            elif launch.saved == "input":
                saved = x.new_empty_strided(self.z_shape, self.z_strides)
                z_ptr = saved.data_ptr()
        self.native_forward(
            self.native,
            launch.native,
            x.data_ptr(),
            w.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            z_ptr,
            y.data_ptr(),
            index_ptr,
            preactivation_ptr,
            native.thread_count(),
        )
        return y, saved, index

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
        """dx [N, C, H, W], dw [K, C, R, S] and dbias [K]."""
        need_dx, need_dw, need_dbias = needs
        dy = dy.contiguous()
        dx = torch.empty_like(x) if need_dx else None
        dw = torch.empty_like(w) if need_dw else None
        dbias = w.new_empty_strided((self.z_shape[1],), (1,)) if need_dbias else None
        self.native_backward(
            self.native,
            self.pool_launch.native,
            dy.data_ptr(),
            0 if saved is None else saved.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if index is None else index.data_ptr(),
            x.data_ptr(),
            w.data_ptr(),
            0 if dx is None else dx.data_ptr(),
            0 if dw is None else dw.data_ptr(),
            0 if dbias is None else dbias.data_ptr(),
            native.thread_count(),
        )
        return dx, dw, dbias
