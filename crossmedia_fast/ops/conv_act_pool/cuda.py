"""The CUDA backend's epilogue: allocates outputs and calls the kernels of csrc/cuda/act_pool2d_*.

Pointers leave Python here and nowhere else. Whatever reaches `data_ptr()` in this file has been
checked for dtype, shape, device and layout, or was allocated two lines above. The kernels run on
PyTorch's current stream, and nothing here waits for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import cuda_support
from ...cuda_support import device_and_stream
from .arguments import Pool2d
from .memory_format import as_format, dense_strides
from .native_problem import INDEX_DTYPES, native_problem


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Launch:
    """One problem, ready to call (kernels.ActPool2dLaunch): the native struct and the sizes."""

    __slots__ = (
        "channels_last",
        "dtype",
        "index_dtype",
        "native",
        "saved",
        "scratch",
        "x_shape",
        "x_strides",
        "y_shape",
        "y_strides",
    )

    def __init__(
        self, x_shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, pool: Pool2d
    ) -> None:
        if reason := cuda_support.why_unavailable():
            raise NotImplementedError(f"backend 'cuda' can't run here: {reason}")
        self.native: Any = native_problem(x_shape, dtype, channels_last, pool)
        cuda_support.kernels.check_act_pool2d(self.native)
        self.dtype = dtype
        self.channels_last = channels_last
        self.x_shape = x_shape
        self.y_shape = (*x_shape[:2], *pool.output_size(*x_shape[2:]))
        self.x_strides = dense_strides(self.x_shape, channels_last)
        self.y_strides = dense_strides(self.y_shape, channels_last)
        # what backward needs beside dy: "output" "preactivation" "input" "mask" "nothing"
        self.saved: str = self.native.saved
        self.index_dtype = INDEX_DTYPES[self.native.index_itemsize]
        # bytes that the bias gradient's partial sums take
        self.scratch: int = cuda_support.kernels.act_pool2d_backward_scratch(self.native)

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
        if self.x_shape[0]:
            cuda_support.kernels.act_pool2d_forward(
                self.native,
                x.data_ptr(),
                _address(bias),
                y.data_ptr(),
                _address(index),
                _address(preactivation),
                *device_and_stream(x),
            )
        return y, index, preactivation

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
        dx = dy.new_empty_strided(self.x_shape, self.x_strides) if need_dx else None
        dbias = dy.new_empty_strided((self.x_shape[1],), (1,)) if need_dbias else None
        if not self.x_shape[0]:
            return dx, None if dbias is None else dbias.zero_()
        scratch = None
        if need_dbias:
            scratch = dy.new_empty((self.scratch,), dtype=torch.uint8)
        cuda_support.kernels.act_pool2d_backward(
            self.native,
            dy.data_ptr(),
            _address(saved),
            _address(bias),
            _address(index),
            _address(dx),
            _address(dbias),
            _address(scratch),
            *device_and_stream(dy),
        )
        return dx, dbias
