"""One fused convolution as launches of the Triton kernels: sizes, strides, constants and grids."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...triton_launch import KernelCall, is_wide
from ...triton_tuning import Config, size_class
from . import triton
from .arguments import Conv2d, Pool2d
from .memory_format import dense_strides
from .registration import saved_kind
from .triton_tiles import precision, product_dtype, row_order

_LEAST_CHANNELS = 16  # of an input whose format is worth changing
_PROGRAMS_WANTED = 512  # of the weight's gradient: a few for each multiprocessor of a large GPU
_LEAST_STEPS = 8  # steps of the reduction that a split must have to be worth its partial sum


class ConvLaunch:
    """One convolution with what follows it, for tensors of one shape."""

    __slots__ = (
        "conv",
        "dtype",
        "g_strides",
        "padding",
        "pool",
        "pool_launch",
        "read_channels_last",
        "read_strides",
        "rows_apart",
        "saved",
        "w_shape",
        "x_channels_last",
        "x_shape",
        "x_strides",
        "z_shape",
    )

    def __init__(
        self,
        x_shape: tuple[int, ...],  # [N, C, H, W]
        w_shape: tuple[int, ...],  # [K, C / groups, R, S]
        z_shape: tuple[int, ...],  # [N, K, H', W']
        dtype: torch.dtype,
        conv: Conv2d,
        pool: Pool2d,
        x_channels_last: bool,
        y_channels_last: bool,
        rows_apart: bool = True,  # see row_order
    ) -> None:
        padding = conv.symmetric_padding(w_shape[2:])
        if padding is None:
            raise NotImplementedError("takes the same padding on both sides of an axis alone")
        self.conv = conv
        self.pool = pool
        self.dtype = dtype
        self.padding = padding
        self.x_shape = x_shape
        self.w_shape = w_shape
        self.z_shape = z_shape
        self.rows_apart = rows_apart
        self.x_channels_last = x_channels_last
        self.x_strides = dense_strides(x_shape, x_channels_last)
        # A tile of neighbouring channels is loaded 16 bytes at a time where they are neighbours in
        # memory too: one pass over x that changes its format pays for itself.
        self.read_channels_last = x_channels_last or w_shape[1] >= _LEAST_CHANNELS
        self.read_strides = dense_strides(x_shape, self.read_channels_last)
        self.pool_launch = triton.Launch(z_shape, dtype, y_channels_last, pool)
        # what only the kernels see lies as they read it best
        self.g_strides = dense_strides(self.pool_launch.y_shape, channels_last=True)
        # without pooling the convolution's output is no larger than y: kept where y doesn't tell
        kind = saved_kind(pool)
        self.saved = "preactivation" if kind == "input" and pool.pool == "none" else kind

    @property
    def filters(self) -> int:
        """Of a group."""
        return self.w_shape[0] // self.conv.groups

    def _sizes(self) -> dict[str, int]:
        launch = self.pool_launch
        return {
            "height": self.x_shape[2],
            "width": self.x_shape[3],
            "conv_height": self.z_shape[2],
            "conv_width": self.z_shape[3],
            "out_height": launch.y_shape[2],
            "out_width": launch.y_shape[3],
            "channels": self.w_shape[1],
            "filters": self.filters,
        }

    def _constants(self) -> dict[str, Any]:
        conv = self.conv
        counts = (math.prod(self.x_shape), math.prod(self.z_shape), math.prod(self.w_shape))
        return {
            "R": self.w_shape[2],
            "S": self.w_shape[3],
            "STRIDE_H": conv.stride[0],
            "STRIDE_W": conv.stride[1],
            "PAD_H": self.padding[0],
            "PAD_W": self.padding[1],
            "DILATION_H": conv.dilation[0],
            "DILATION_W": conv.dilation[1],
            "PRODUCT": product_dtype(self.dtype),
            "PRECISION": precision(self.dtype),
            "WIDE": is_wide(*counts),
        }

    def key(self, kernel: str) -> str:
        """The class of shapes in which one configuration is the best, about."""
        conv, pool = self.conv, self.pool
        pixels = self.z_shape[0] * self.z_shape[2] * self.z_shape[3]
        parts = (
            kernel,
            str(self.dtype).removeprefix("torch."),
            precision(self.dtype),
            "nhwc" if self.x_channels_last else "nchw",
            f"{self.w_shape[2]}x{self.w_shape[3]}",
            f"stride {conv.stride[0]}x{conv.stride[1]}",
            f"{pool.pool} {pool.size[0]}x{pool.size[1]}/{pool.stride[0]}x{pool.stride[1]}",
            f"pixels 2^{size_class(pixels)}",
            f"channels 2^{size_class(self.w_shape[1])}",
            f"filters 2^{size_class(self.filters)}",
        )
        return " · ".join(parts)

    def forward_call(
        self,
        config: Config,
        x: Tensor,
        w: Tensor,  # [K, R, S, C / groups], dense
        bias: Tensor | None,
        y: Tensor,
        index: Tensor | None,
        preactivation: Tensor | None,
    ) -> KernelCall:
        """The launch that fills y, index and pre-activation."""
        from .triton_kernels import forward

        pool, channels = self.pool, self.w_shape[1]
        positions = pool.size[0] * pool.size[1]
        chunk = positions if positions in (1, 2, 4) else 1
        launch = self.pool_launch
        windows = launch.y_shape[0] * launch.y_shape[2] * launch.y_shape[3]
        # rather than steps that are mostly padding, decode each element of the reduction
        padded = -(-channels // config.reduced) * config.reduced
        constants = self._constants()
        whole_taps = padded <= 1.25 * channels
        # what else is kept for a row leaves registers for 64 of them
        few_rows = not whole_taps or chunk != positions or constants["WIDE"]
        windows_a_tile = (min(config.rows, 64) if few_rows else config.rows) // chunk
        return KernelCall(
            forward.conv_act_pool2d_forward,
            (
                -(-windows // windows_a_tile) * -(-self.filters // config.columns),
                self.conv.groups,
            ),
            {
                "x_ptr": x,
                "w_ptr": w,
                "bias_ptr": w if bias is None else bias,
                "y_ptr": y,
                "index_ptr": y if index is None else index,
                "preactivation_ptr": y if preactivation is None else preactivation,
                "windows": windows,
                **self._sizes(),
                **triton.strides("x", "nchw", self.read_strides),
                **triton.strides("y", "nkpq", launch.y_strides),
                **triton.strides("index", "nkpq", self.g_strides),
            },
            {
                **constants,
                **triton.geometry(pool),
                "ACTIVATION": pool.activation,
                "PARAM": pool.activation_param,
                "MONOTONE": triton.is_monotone(pool.activation, pool.activation_param),
                "HAS_BIAS": bias is not None,
                "SAVE_INDEX": index is not None,
                "SAVE_PREACTIVATION": preactivation is not None,
                "WHOLE_TAPS": whole_taps,
                "WINDOWS": windows_a_tile,
                "CHUNK": chunk,
                **row_order(chunk, self.rows_apart),
                "BLOCK_N": config.columns,
                "BLOCK_R": config.reduced,
            },
            config.num_warps,
            config.num_stages,
        )

    def input_gradient_call(
        self, config: Config, g: Tensor, index: Tensor | None, w: Tensor, dx: Tensor
    ) -> KernelCall:
        """The launch that fills dx."""
        from .triton_kernels import input_gradient

        batch, _, height, width = self.x_shape
        stride, dilation = self.conv.stride, self.conv.dilation
        # of the largest phase, the first
        pixels = batch * -(-height // stride[0]) * -(-width // stride[1])
        return KernelCall(
            input_gradient.conv_act_pool2d_input_gradient,
            (
                -(-pixels // config.rows) * -(-self.w_shape[1] // config.columns),
                stride[0] * stride[1],
                self.conv.groups,
            ),
            {
                "g_ptr": g,
                "index_ptr": g if index is None else index,
                "w_ptr": w,
                "dx_ptr": dx,
                "batch": batch,
                **self._sizes(),
                **triton.strides("x", "nchw", self.x_strides),
                **triton.strides("g", "nkpq", self.g_strides),
            },
            {
                **self._constants(),
                **triton.expansion(self.pool),
                "STEP_H": stride[0] // math.gcd(stride[0], dilation[0]),
                "STEP_W": stride[1] // math.gcd(stride[1], dilation[1]),
                "BLOCK_M": config.rows,
                "BLOCK_N": config.columns,
                "BLOCK_R": config.reduced,
            },
            config.num_warps,
            config.num_stages,
        )

    def splits(self, config: Config) -> tuple[int, int]:
        """Into how many parts the pixels are split, and how many pixels each has.

        From shapes alone, so that the order of the sums, and with it every bit, is the same on
        every run.
        """
        pixels = self.z_shape[0] * self.z_shape[2] * self.z_shape[3]
        columns = math.prod(self.w_shape[1:])
        tiles = -(-self.filters // config.rows) * -(-columns // config.columns) * self.conv.groups
        wanted = max(1, _PROGRAMS_WANTED // tiles)
        steps = -(-pixels // config.reduced)
        steps_a_split = max(-(-steps // wanted), min(_LEAST_STEPS, steps))
        return -(-steps // steps_a_split), steps_a_split * config.reduced

    def weight_gradient_call(
        self, config: Config, g: Tensor, index: Tensor | None, x: Tensor, partial: Tensor
    ) -> KernelCall:
        """The launch that fills the partial sums of dw."""
        from .triton_kernels import weight_gradient

        splits, pixels_a_split = self.splits(config)
        columns = math.prod(self.w_shape[1:])
        return KernelCall(
            weight_gradient.conv_act_pool2d_weight_gradient,
            (
                -(-self.filters // config.rows) * -(-columns // config.columns),
                self.conv.groups,
                splits,
            ),
            {
                "g_ptr": g,
                "index_ptr": g if index is None else index,
                "x_ptr": x,
                "partial_ptr": partial,
                "pixels": self.z_shape[0] * self.z_shape[2] * self.z_shape[3],
                "pixels_a_split": pixels_a_split,
                "groups": self.conv.groups,
                **self._sizes(),
                **triton.strides("x", "nchw", self.read_strides),
                **triton.strides("g", "nkpq", self.g_strides),
            },
            {
                **self._constants(),
                **triton.expansion(self.pool),
                "BLOCK_M": config.rows,
                "BLOCK_N": config.columns,
                "BLOCK_R": config.reduced,
            },
            config.num_warps,
            config.num_stages,
        )
