"""The CUDA backend's own convolution, fused with what follows it (algorithm "implicit_gemm").

Allocates outputs and scratch memory, and calls csrc/cuda/conv_*. Gradients come in three steps: the
pooled gradient with dbias, dx, and dw; the dense gradient of the convolution's output is never in
memory. Whether the kernels can take a problem is the native module's word (`why_not`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import cuda_support
from ...cuda_support import device_and_stream
from ...precision import conv_allows_tf32
from .arguments import Conv2d, Pool2d
from .memory_format import as_format, dense_strides
from .native_problem import native_conv_problem, native_problem
from .registration import index_dtype, saved_kind

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LEAST_CHANNELS = 16  # of an input whose format is worth changing
_ALIGNMENT = 16  # bytes: what is read at a time


class FusedConv2d:
    """One convolution with what follows it, for tensors of one shape (kernels.NativeConv)."""

    __slots__ = (
        "channels_last",
        "chunks",
        "conv",
        "dtype",
        "filters_row",
        "kind",
        "pool",
        "problem",
        "problem_dx",
        "read_channels_last",
        "tile_rows",
        "w_shape",
        "x_channels_last",
        "x_shape",
        "x_strides",
        "y_shape",
        "y_strides",
    )
    backend = "cuda"

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
    ) -> None:
        if reason := cuda_support.why_unavailable():
            raise NotImplementedError(f"backend 'cuda' can't run here: {reason}")
        if dtype not in _DTYPES:
            raise NotImplementedError("multiplies float32, float16 and bfloat16")
        padding = conv.symmetric_padding(w_shape[2:])
        if padding is None:
            raise NotImplementedError("takes the same padding on both sides of an axis alone")
        vector = _ALIGNMENT // dtype.itemsize
        # Neighbouring channels are read 16 bytes at a time where they are neighbours in memory too:
        # one pass over x that changes its format pays for itself.
        self.read_channels_last = x_channels_last or (
            x_shape[1] >= _LEAST_CHANNELS and x_shape[1] % vector == 0
        )
        self.y_shape = (*z_shape[:2], *pool.output_size(*z_shape[2:]))

        pool_problem = native_problem(z_shape, dtype, y_channels_last, pool)

        def problem(channels_last: bool) -> Any:
            return native_conv_problem(pool_problem, x_shape, w_shape, conv, padding, channels_last)

        self.problem = problem(self.read_channels_last)
        self.problem_dx = problem(x_channels_last)  # where dx lies as x does
        kernels = cuda_support.kernels
        refusal = kernels.conv_refusal(self.problem, False)
        if refusal:
            raise NotImplementedError(refusal)
        self.chunks: bool = kernels.conv_reads_chunks(self.problem)
        self.filters_row: int = kernels.conv_filters_row(self.problem)
        self.conv = conv
        self.pool = pool
        self.dtype = dtype
        self.x_shape = x_shape
        self.w_shape = w_shape
        self.x_channels_last = x_channels_last
        self.channels_last = y_channels_last
        self.x_strides = dense_strides(x_shape, x_channels_last)
        self.y_strides = dense_strides(self.y_shape, y_channels_last)
        # without pooling the convolution's output is no larger than y: kept where y doesn't tell
        kind = saved_kind(pool)
        self.kind = "preactivation" if kind == "input" and pool.pool == "none" else kind
        self.tile_rows = 0  # the kernels choose

    def why_no_backward(self) -> str:
        """Why the kernels can't give this problem's gradients; "" where they can."""
        reason: str = cuda_support.kernels.conv_refusal(self.problem, True)
        return reason

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y [N, K, P, Q] of any x [N, C, H, W] and w [K, C, R, S]; as NativeConv.

        The index is [N, P, Q, filters rounded up], as only the kernels see it.
        """
        # a call under autocast comes in other dtypes
        x, w = x.to(self.dtype), w.to(self.dtype)
        bias = None if bias is None else bias.to(self.dtype).contiguous()
        y = x.new_empty_strided(self.y_shape, self.y_strides)
        index = preactivation = None
        if save and index_dtype(self.pool) is not None:
            batch, _, height, width = self.y_shape
            index = x.new_empty((batch, height, width, self.filters_row), dtype=torch.uint8)
        if save and self.kind == "preactivation":
            preactivation = x.new_empty_strided(self.y_shape, self.y_strides)
        if y.numel():
            x = _aligned(as_format(x, self.read_channels_last))
            w = _aligned(as_format(w, self.chunks))
            cuda_support.kernels.conv_forward(
                self.problem,
                x.data_ptr(),
                w.data_ptr(),
                _pointer(bias),
                y.data_ptr(),
                _pointer(index),
                _pointer(preactivation),
                conv_allows_tf32(),
                self.tile_rows,
                *device_and_stream(x),
            )
        return y, y if self.kind == "output" and save else preactivation, index

    def backward(
        self,
        dy: Tensor,  # [N, K, P, Q], any strides
        saved: Tensor | None,  # y or the pre-activation
        index: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx, dw and dbias, each where `needs` says so."""
        need_dx, need_dw, need_dbias = needs
        g, dbias = self.pooled_gradient(dy, saved, index, need_dx or need_dw, need_dbias)
        dx = dw = None
        if need_dx:
            dx = self.input_gradient(g, index, w.to(self.dtype)).to(x.dtype)
        if need_dw:
            dw = self.weight_gradient(g, index, x.to(self.dtype), w.to(self.dtype)).to(w.dtype)
        if dbias is not None and bias is not None:
            dbias = dbias.to(bias.dtype)
        return dx, dw, dbias

    def pooled_gradient(
        self,
        dy: Tensor,
        saved: Tensor | None,
        index: Tensor | None,
        need_g: bool,
        need_dbias: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """g [N, P, Q, filters rounded up] = dy · act', and dbias [K]."""
        batch, filters, height, width = self.y_shape
        dy = as_format(dy.to(self.dtype), self.channels_last)
        g = dy.permute(0, 2, 3, 1)
        kernels = cuda_support.kernels
        store = need_g and (
            self.kind in ("output", "preactivation")
            or not self.channels_last
            or filters != self.filters_row
        )
        if store:
            g = dy.new_empty((batch, height, width, self.filters_row))
        elif need_g:
            g = _aligned(g)
        dbias = dy.new_empty((filters,)) if need_dbias else None
        if store or need_dbias:
            rows = kernels.conv_bias_rows(self.problem) if need_dbias else 0
            partial = dy.new_empty((rows, filters), dtype=torch.float32)
            if saved is not None:
                saved = as_format(saved, self.channels_last)
            kernels.conv_pooled_gradient(
                self.problem,
                dy.data_ptr(),
                _pointer(saved),
                _pointer(index),
                g.data_ptr() if store else 0,
                partial.data_ptr(),
                _pointer(dbias),
                *device_and_stream(dy),
            )
        return g, dbias

    def input_gradient(self, g: Tensor, index: Tensor | None, w: Tensor) -> Tensor:
        """dx [N, C, H, W] from the pooled gradient."""
        dx = g.new_empty_strided(self.x_shape, self.x_strides)
        if not dx.numel():
            return dx
        filters, channels, height, width = self.w_shape
        if filters == self.filters_row:
            weights = w.permute(1, 2, 3, 0).contiguous()
        else:
            weights = w.new_zeros((channels, height, width, self.filters_row))
            weights[..., :filters] = w.permute(1, 2, 3, 0)
        cuda_support.kernels.conv_input_gradient(
            self.problem_dx,
            g.data_ptr(),
            _pointer(index),
            _aligned(weights).data_ptr(),
            dx.data_ptr(),
            conv_allows_tf32(),
            self.tile_rows,
            *device_and_stream(dx),
        )
        return dx

    def weight_gradient(self, g: Tensor, index: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
        """dw [K, C, R, S], strides as w's where that is dense, from the pooled gradient."""
        last = w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous()
        dw = w.new_empty_strided(self.w_shape, dense_strides(self.w_shape, last))
        if not g.numel():
            return dw.zero_()
        x = _aligned(as_format(x, self.read_channels_last))
        kernels = cuda_support.kernels
        splits = kernels.conv_weight_splits(self.problem)
        partial = g.new_empty((splits, *self.w_shape), dtype=torch.float32)
        kernels.conv_weight_gradient(
            self.problem,
            g.data_ptr(),
            _pointer(index),
            x.data_ptr(),
            partial.data_ptr(),
            dw.data_ptr(),
            dw.stride(0),
            dw.stride(1),
            dw.stride(3) if self.w_shape[3] > 1 else dw.stride(2),
            conv_allows_tf32(),
            *device_and_stream(x),
        )
        return dw


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _aligned(tensor: Tensor) -> Tensor:
    """`tensor`, where 16 bytes can be read at a time (itself, unless it is a view's middle)."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()
