"""The CPU backend: allocates outputs and calls the native kernels of csrc/cpu/act_pool2d_*.

Pointers leave Python here and nowhere else. Whatever reaches `data_ptr()` in this file has been
checked for dtype, shape, device and layout, or was allocated two lines above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import native
from ..memory import fresh
from .arguments import Pool2d
from .memory_format import as_format, dense_strides
from .native_problem import INDEX_DTYPES, native_problem


class Launch:
    """One problem, ready to call (kernels.ActPool2dLaunch): the native struct and the sizes."""

    __slots__ = (
        "channels_last",
        "dtype",
        "index_dtype",
        "native",
        "saved",
        "x_shape",
        "x_strides",
        "y_shape",
        "y_strides",
    )

    def __init__(
        self, x_shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, pool: Pool2d
    ) -> None:
        if native.module is None:
            raise NotImplementedError(f"backend 'cpu' can't run here: {native.reason}")
        self.native: Any = native_problem(x_shape, dtype, channels_last, pool)
        self.dtype = dtype
        self.channels_last = channels_last
        self.x_shape = x_shape
        self.y_shape = (*x_shape[:2], *pool.output_size(*x_shape[2:]))
        self.x_strides = dense_strides(self.x_shape, channels_last)
        self.y_strides = dense_strides(self.y_shape, channels_last)
        # what backward needs beside dy: "output" "preactivation" "input" "mask" "nothing"
        self.saved: str = self.native.saved
        self.index_dtype = INDEX_DTYPES[self.native.index_itemsize]

    def forward(
        self,
        x: Tensor,  # [N, K, H, W], dense in launch's format
        bias: Tensor | None,  # [K], contiguous
        save: bool,  # whether backward will need the index and the pre-activation
        in_place: bool = False,  # write y over x; pool "none" alone
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, and where `save`: the index (or mask) and the pre-activation that backward needs."""
        y = x if in_place else fresh(x, self.y_shape, self.y_strides)
        index = preactivation = None
        index_ptr = preactivation_ptr = 0
        if save:
            if self.index_dtype is not None:
                index = fresh(x, self.y_shape, self.y_strides, self.index_dtype)
                index_ptr = index.data_ptr()
            if self.saved == "preactivation":
                preactivation = fresh(x, self.y_shape, self.y_strides)
                preactivation_ptr = preactivation.data_ptr()
        if self.x_shape[0]:
            native.module.act_pool2d_forward(  # type: ignore[union-attr]
                self.native,
                x.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                y.data_ptr(),
                index_ptr,
                preactivation_ptr,
                native.thread_count(),
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
        dx = fresh(dy, self.x_shape, self.x_strides) if need_dx else None
        dbias = dy.new_empty_strided((self.x_shape[1],), (1,)) if need_dbias else None
        if not self.x_shape[0]:
            return dx, None if dbias is None else dbias.zero_()
        native.module.act_pool2d_backward(  # type: ignore[union-attr]
            self.native,
            dy.data_ptr(),
            0 if saved is None else saved.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if index is None else index.data_ptr(),
            0 if dx is None else dx.data_ptr(),
            0 if dbias is None else dbias.data_ptr(),
            native.thread_count(),
        )
        return dx, dbias
