"""The Triton backend's epilogue: allocates outputs and launches bias + activation + pooling.

Other modules of the Triton backend take the parts from here that a problem's pooling decides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...triton_launch import KernelCall, is_wide
from .arguments import NOTHING_FOLLOWS, Pool2d
from .memory_format import as_format, dense_strides
from .registration import index_dtype, saved_kind

_BLOCK_BYTES = 2048  # of outputs a program of the epilogue: 16 bytes a thread of 4 warps
_ROWS, _CHANNELS = 32, 32  # the tile of the pooled gradient
_SPLITS = 512  # programs that share the rows of the pooled gradient, at most


def is_monotone(activation: str, param: float) -> bool:
    """Whether act never decreases: the twin of csrc/common/activation.h's function."""
    if activation == "elu":
        return param >= 0
    if activation in ("leaky_relu", "softplus"):
        return param > 0
    return activation in ("identity", "relu", "relu6", "tanh", "sigmoid")


def geometry(pool: Pool2d) -> dict[str, Any]:
    """The constants that describe the windows."""
    return {
        "POOL": pool.pool,
        "POOL_H": pool.size[0],
        "POOL_W": pool.size[1],
        "POOL_STRIDE_H": pool.stride[0],
        "POOL_STRIDE_W": pool.stride[1],
        "POOL_PAD_H": pool.padding[0],
        "POOL_PAD_W": pool.padding[1],
        "COUNT_PAD": pool.count_include_pad,
    }


def expansion(pool: Pool2d) -> dict[str, Any]:
    """The constants of window.expand_gradient."""
    return {
        **geometry(pool),
        "MASKED": saved_kind(pool) == "mask",
        "SLOPE": pool.activation_param if pool.activation == "leaky_relu" else 0.0,
    }


def accumulator(dtype: torch.dtype) -> Any:
    """The dtype of the arithmetic: half types are storage alone."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


class Launch:
    """One problem, ready to call."""

    __slots__ = (
        "channels_last",
        "dtype",
        "index_dtype",
        "pool",
        "saved",
        "x_shape",
        "x_strides",
        "y_shape",
        "y_strides",
    )

    def __init__(
        self, x_shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, pool: Pool2d
    ) -> None:
        self.pool = pool
        self.dtype = dtype
        self.channels_last = channels_last
        self.x_shape = x_shape
        self.y_shape = (*x_shape[:2], *pool.output_size(*x_shape[2:]))
        self.x_strides = dense_strides(self.x_shape, channels_last)
        self.y_strides = dense_strides(self.y_shape, channels_last)
        self.saved = saved_kind(pool)  # what backward needs beside dy
        self.index_dtype = index_dtype(pool)

    def forward(
        self,
        x: Tensor,  # [N, K, H, W], dense in this launch's format
        bias: Tensor | None,  # [K], contiguous
        save: bool,  # whether backward will need the index and the pre-activation
        in_place: bool = False,  # write y over x; pool "none" alone
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, and where `save`: the index (or mask) and the pre-activation that backward needs."""
        y = x if in_place else x.new_empty_strided(self.y_shape, self.y_strides)
        index = preactivation = None
        if save and self.index_dtype is not None:
            index = x.new_empty_strided(self.y_shape, self.y_strides, dtype=self.index_dtype)
        if save and self.saved == "preactivation":
            preactivation = x.new_empty_strided(self.y_shape, self.y_strides)
        if y.numel():
            self.forward_call(x, bias, y, index, preactivation)()
        return y, index, preactivation

    def forward_call(
        self,
        x: Tensor,
        bias: Tensor | None,
        y: Tensor,
        index: Tensor | None,
        preactivation: Tensor | None,
    ) -> KernelCall:
        """The launch that fills y, index and pre-activation."""
        from .triton_kernels import epilogue

        pool = self.pool
        _, channels, height, width = self.x_shape
        count, block = y.numel(), _BLOCK_BYTES // self.dtype.itemsize
        return KernelCall(
            epilogue.act_pool2d_forward,
            (-(-count // block),),
            {
                "x_ptr": x,
                "bias_ptr": x if bias is None else bias,
                "y_ptr": y,
                "index_ptr": y if index is None else index,
                "preactivation_ptr": y if preactivation is None else preactivation,
                "count": count,
                "channels": channels,
                "height": height,
                "width": width,
                "out_height": self.y_shape[2],
                "out_width": self.y_shape[3],
                **strides("x", "nkhw", self.x_strides),
            },
            {
                **geometry(pool),
                "ACTIVATION": pool.activation,
                "PARAM": pool.activation_param,
                "MONOTONE": is_monotone(pool.activation, pool.activation_param),
                "HAS_BIAS": bias is not None,
                "SAVE_INDEX": index is not None,
                "SAVE_PREACTIVATION": preactivation is not None,
                "CHANNELS_LAST": self.channels_last,
                "ACC": accumulator(self.dtype),
                "WIDE": is_wide(x.numel(), count),
                "BLOCK": block,
            },
        )

    def backward(
        self,
        dy: Tensor,  # [N, K, P, Q], any strides
        saved: Tensor | None,  # what self.saved names: y, pre-activation or x
        bias: Tensor | None,  # [K]
        index: Tensor | None,  # [N, K, P, Q]
        need_dx: bool,
        need_dbias: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """dx [N, K, H, W] and dbias [K]."""
        dy = as_format(dy, self.channels_last)
        differentiate = self.saved == "input"
        pooled_dbias = need_dbias and not differentiate
        g, dbias = self.pooled_gradient(
            dy, None if differentiate else saved, index, need_dx, pooled_dbias
        )
        if not (need_dx or (need_dbias and differentiate)):
            return None, dbias
        if self.pool.pool == "none" and not differentiate:
            return g, dbias  # each window is its element
        dx = dy.new_empty_strided(self.x_shape, self.x_strides)
        if dx.numel():
            self.backward_call(g, index, saved if differentiate else None, bias, dx)()
        if need_dbias and differentiate:
            # each element has its own derivative: add up what was written
            dense = Launch(self.x_shape, self.dtype, self.channels_last, NOTHING_FOLLOWS)
            _, dbias = dense.pooled_gradient(dx, None, None, False, True)
        return dx if need_dx else None, dbias

    def backward_call(
        self,
        g: Tensor,
        index: Tensor | None,
        x: Tensor | None,  # where the derivative is taken per element
        bias: Tensor | None,
        dx: Tensor,
    ) -> KernelCall:
        """The launch that expands the pooled gradient into dx."""
        from .triton_kernels import epilogue

        pool = self.pool
        _, channels, height, width = self.x_shape
        count, block = dx.numel(), _BLOCK_BYTES // self.dtype.itemsize
        return KernelCall(
            epilogue.act_pool2d_backward,
            (-(-count // block),),
            {
                "g_ptr": g,
                "index_ptr": g if index is None else index,
                "x_ptr": g if x is None else x,
                "bias_ptr": g if bias is None else bias,
                "dx_ptr": dx,
                "count": count,
                "channels": channels,
                "height": height,
                "width": width,
                "out_height": self.y_shape[2],
                "out_width": self.y_shape[3],
                **strides("g", "nkpq", self.y_strides),
            },
            {
                **expansion(pool),
                "ACTIVATION": pool.activation,
                "PARAM": pool.activation_param,
                "DIFFERENTIATE": x is not None,
                "HAS_BIAS": x is not None and bias is not None,
                "CHANNELS_LAST": self.channels_last,
                "ACC": accumulator(self.dtype),
                "WIDE": is_wide(count, g.numel()),
                "BLOCK": block,
            },
        )

    def pooled_gradient(
        self,
        dy: Tensor,  # [N, K, P, Q], dense in this launch's format
        saved: Tensor | None,  # y or pre-activation [N, K, P, Q], dense in the same format
        index: Tensor | None,  # dense in g's format
        need_g: bool,
        need_dbias: bool,
        g_channels_last: bool | None = None,  # g's format; None = this launch's
    ) -> tuple[Tensor, Tensor | None]:
        """g = dy · act' at the pooled positions (dy itself where that is 1), and dbias [K]."""
        if g_channels_last is None:
            g_channels_last = self.channels_last
        channels = self.y_shape[1]
        if not dy.numel():
            return dy, dy.new_zeros((channels,)) if need_dbias else None
        store = need_g and (saved is not None or g_channels_last != self.channels_last)
        if not (store or need_dbias):
            return dy, None
        g = dy
        if store:
            g = dy.new_empty_strided(self.y_shape, dense_strides(self.y_shape, g_channels_last))
        rows = dy.numel() // channels
        splits = min(_SPLITS, -(-rows // _ROWS))
        rows_a_split = -(-rows // (splits * _ROWS)) * _ROWS
        splits = -(-rows // rows_a_split)
        sums = torch.float64 if self.dtype == torch.float64 else torch.float32
        partial = dy.new_empty((splits, channels) if need_dbias else (1,), dtype=sums)
        self.pooled_gradient_call(
            dy, saved, index, g, partial, rows, rows_a_split, store, need_dbias, g_channels_last
        )()
        if not need_dbias:
            return g, None
        dbias = dy.new_empty((channels,))
        sum_partials_call(partial, dbias, channels, 1, 1, (1, 1, 1))()
        return g, dbias

    def pooled_gradient_call(
        self,
        dy: Tensor,
        saved: Tensor | None,
        index: Tensor | None,
        g: Tensor,
        partial: Tensor,  # [splits, K]
        rows: int,
        rows_a_split: int,
        store: bool,
        need_dbias: bool,
        g_channels_last: bool,
    ) -> KernelCall:
        """The launch that fills g and the partial sums of dbias."""
        from .triton_kernels import epilogue

        pool = self.pool
        _, channels, height, width = self.x_shape
        kind = self.saved if self.saved in ("output", "preactivation") else "preactivation"
        return KernelCall(
            epilogue.pooled_gradient,
            (-(-channels // _CHANNELS), -(-rows // rows_a_split)),
            {
                "dy_ptr": dy,
                "saved_ptr": dy if saved is None else saved,
                "index_ptr": dy if index is None else index,
                "g_ptr": g,
                "partial_ptr": partial,
                "rows": rows,
                "rows_a_split": rows_a_split,
                "channels": channels,
                "height": height,
                "width": width,
                "out_height": self.y_shape[2],
                "out_width": self.y_shape[3],
                **strides("y", "nkpq", self.y_strides),
                **strides("g", "nkpq", dense_strides(self.y_shape, g_channels_last)),
            },
            {
                **expansion(pool),
                "ACTIVATION": pool.activation,
                "PARAM": pool.activation_param,
                "SAVED": "nothing" if saved is None else kind,
                "STORE": store,
                "NEED_DBIAS": need_dbias,
                "ACC": accumulator(self.dtype),
                "WIDE": is_wide(dy.numel()),
                "BLOCK_ROWS": _ROWS,
                "BLOCK_K": _CHANNELS,
            },
        )


def strides(tensor: str, axes: str, values: tuple[int, ...]) -> dict[str, int]:
    """The kernel's stride arguments of one tensor."""
    return {f"{tensor}_stride_{axis}": value for axis, value in zip(axes, values, strict=True)}


def sum_partials_call(
    partial: Tensor,  # [splits, rows, taps, channels]
    out: Tensor,
    rows: int,
    taps: int,
    channels: int,
    out_strides: tuple[int, int, int],  # of a row, a channel, a tap
) -> KernelCall:
    """The launch that adds the partial sums in order."""
    from .triton_kernels import weight_gradient

    count, block = rows * taps * channels, 256
    return KernelCall(
        weight_gradient.sum_partials,
        (-(-count // block),),
        {
            "partial_ptr": partial,
            "out_ptr": out,
            "splits": partial.numel() // count,
            "count": count,
            "taps": taps,
            "channels": channels,
            "out_stride_row": out_strides[0],
            "out_stride_channel": out_strides[1],
            "out_stride_tap": out_strides[2],
        },
        {"WIDE": is_wide(partial.numel()), "BLOCK": block},
    )
