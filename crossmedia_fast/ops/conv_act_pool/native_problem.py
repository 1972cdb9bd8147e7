"""The native structs of a problem, which the kernels of every device take."""

from __future__ import annotations

from typing import Any

import torch

from ... import native
from .arguments import Conv2d, Pool2d

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
INDEX_DTYPES = {0: None, 1: torch.uint8, 4: torch.int32}


def native_problem(
    x_shape: tuple[int, ...],  # [N, K, H, W]
    dtype: torch.dtype,
    channels_last: bool,
    pool: Pool2d,
) -> Any:
    """A checked `ActPool2dProblem`."""
    batch, channels, height, width = x_shape
    out_height, out_width = pool.output_size(height, width)
    return native.module.ActPool2dProblem(  # type: ignore[union-attr]
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        pool_height=pool.size[0],
        pool_width=pool.size[1],
        pool_stride_height=pool.stride[0],
        pool_stride_width=pool.stride[1],
        pool_pad_height=pool.padding[0],
        pool_pad_width=pool.padding[1],
        count_include_pad=pool.count_include_pad,
        pool=pool.pool,
        activation=pool.activation,
        activation_param=pool.activation_param,
        dtype=DTYPE_NAMES[dtype],
        channels_last=channels_last,
    )


def native_conv_problem(
    pool_problem: Any,  # of the convolution's output
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C / groups, R, S]
    conv: Conv2d,
    padding: tuple[int, int],
    x_channels_last: bool,
) -> Any:
    """A checked `ConvActPool2dProblem`."""
    return native.module.ConvActPool2dProblem(  # type: ignore[union-attr]
        pool=pool_problem,
        in_channels=x_shape[1],
        height=x_shape[2],
        width=x_shape[3],
        kernel_height=w_shape[2],
        kernel_width=w_shape[3],
        stride_height=conv.stride[0],
        stride_width=conv.stride[1],
        pad_height=padding[0],
        pad_width=padding[1],
        dilation_height=conv.dilation[0],
        dilation_width=conv.dilation[1],
        groups=conv.groups,
        x_channels_last=x_channels_last,
    )
