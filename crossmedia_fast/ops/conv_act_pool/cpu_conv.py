"""The CPU backend's own convolutions, fused with what follows: allocates, and calls csrc/cpu.

An algorithm is named as in csrc/common/conv_act_pool2d_kernels.h. Whether one can take a problem is
the native module's word (`refusal`); whether it should is the plan's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import native
from . import cpu
from .arguments import Conv2d, Pool2d


class ConvLaunch:
    """One problem, ready to call: the native struct and the sizes of what it writes."""

    __slots__ = ("native", "pool_launch", "w_shape", "x_channels_last", "x_shape", "x_strides")

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
        if native.module is None:
            raise NotImplementedError(f"backend 'cpu' can't run here: {native.reason}")
        self.pool_launch = cpu.launch_for(z_shape, dtype, y_channels_last, pool)
        padding = conv.symmetric_padding(w_shape[2:])
        if padding is None:
            raise NotImplementedError("takes the same padding on both sides of an axis alone")
        self.native: Any = native.module.ConvActPool2dProblem(
            pool=self.pool_launch.native,
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
        self.x_channels_last = x_channels_last
        self.x_shape = x_shape
        self.x_strides = cpu.dense_strides(x_shape, x_channels_last)
        self.w_shape = w_shape

    def refusal(self, algorithm: str, backward: bool = False) -> str:
        """Why `algorithm` can't take this problem; "" where it can."""
        return native.module.conv_act_pool2d_refusal(algorithm, self.native, backward)  # type: ignore[union-attr,no-any-return]

    def prepare(self, algorithm: str, w: Tensor) -> Tensor | None:
        """The weights as `algorithm` wants them; None where it reads them as they are."""
        count = native.module.conv_act_pool2d_prepared_size(algorithm, self.native)  # type: ignore[union-attr]
        if not count:
            return None
        prepared = w.new_empty(count)
        native.module.conv_act_pool2d_prepare(  # type: ignore[union-attr]
            algorithm, self.native, w.data_ptr(), prepared.data_ptr(), native.thread_count()
        )
        return prepared

    def forward(
        self,
        algorithm: str,
        x: Tensor,  # [N, C, H, W], dense in x_channels_last's format
        w: Tensor,  # [K, C / groups, R, S], contiguous
        bias: Tensor | None,  # [K], contiguous
        save: bool,  # whether backward will need the index and the pre-activation
        prepared: Tensor | None = None,  # the weights as the algorithm wants them
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, and where `save`: the index (or mask) and the pre-activation that backward needs."""
        launch = self.pool_launch
        y = x.new_empty_strided(launch.y_shape, launch.y_strides)
        index = preactivation = None
        if save and launch.index_dtype is not None:
            index = x.new_empty_strided(launch.y_shape, launch.y_strides, dtype=launch.index_dtype)
        if save and launch.saved == "preactivation":
            preactivation = x.new_empty_strided(launch.y_shape, launch.y_strides)
        native.module.conv_act_pool2d_forward(  # type: ignore[union-attr]
            algorithm,
            self.native,
            x.data_ptr(),
            w.data_ptr(),
            0 if prepared is None else prepared.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            0 if index is None else index.data_ptr(),
            0 if preactivation is None else preactivation.data_ptr(),
            native.thread_count(),
        )
        return y, index, preactivation

    def backward(
        self,
        algorithm: str,
        dy: Tensor,  # [N, K, P, Q], any strides
        saved: Tensor | None,  # what pool_launch.saved names: y or the pre-activation
        index: Tensor | None,  # [N, K, P, Q]
        x: Tensor,  # [N, C, H, W], dense in x_channels_last's format
        w: Tensor,  # [K, C / groups, R, S], contiguous
        bias: Tensor | None,  # [K], contiguous
        need_dx: bool,
        need_dw: bool,
        need_dbias: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx [N, C, H, W], dw [K, C / groups, R, S] and dbias [K]."""
        dy = cpu.as_format(dy, self.pool_launch.channels_last)
        dx = dy.new_empty_strided(self.x_shape, self.x_strides) if need_dx else None
        dw = dy.new_empty(self.w_shape) if need_dw else None
        dbias = dy.new_empty((self.w_shape[0],)) if need_dbias else None
        native.module.conv_act_pool2d_backward(  # type: ignore[union-attr]
            algorithm,
            self.native,
            dy.data_ptr(),
            0 if saved is None else saved.data_ptr(),
            0 if index is None else index.data_ptr(),
            x.data_ptr(),
            w.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if dx is None else dx.data_ptr(),
            0 if dw is None else dw.data_ptr(),
            0 if dbias is None else dbias.data_ptr(),
            native.thread_count(),
        )
        return dx, dw, dbias
