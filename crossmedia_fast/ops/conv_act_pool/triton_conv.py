"""The Triton backend's own convolution, fused with what follows it (algorithm "implicit_gemm").

Allocates outputs, says what the kernels take, and launches them. Gradients come in three launches
or four: the pooled gradient with dbias, dx, and dw in two steps; the dense gradient of the
convolution's output is never in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import triton_support
from ...triton_launch import KernelCall
from ...triton_tuning import Config, can_measure, choose
from . import triton
from .arguments import Conv2d, Pool2d
from .memory_format import as_format, is_channels_last
from .registration import index_dtype
from .triton_conv_launch import ConvLaunch
from .triton_refusals import why_no_gain, why_not
from .triton_tiles import configs

__all__ = ["FusedConv2d", "fused", "why_no_gain", "why_not"]


class FusedConv2d(ConvLaunch):
    """One convolution with what follows it, ready to call (autograd_conv.NativeConv)."""

    __slots__ = ("chosen",)
    backend = "triton"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.chosen: dict[str, Config] = {}  # by kernel, once measured

    def _config(
        self, kernel: str, device: torch.device, call: Callable[[Config], KernelCall]
    ) -> Config:
        config = self.chosen.get(kernel)
        if config is None:
            config = choose(self.key(kernel), device, configs(kernel, self.dtype), call)
            if device.type == "cuda" and can_measure():
                self.chosen[kernel] = config
        return config

    def _launch(
        self, kernel: str, device: torch.device, call: Callable[[Config], KernelCall]
    ) -> None:
        call(self._config(kernel, device, call))()

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y [N, K, P, Q] of any x [N, C, H, W] and w [K, C / groups, R, S]; as NativeConv."""
        launch = self.pool_launch
        # a call under autocast comes in other dtypes
        x, w = x.to(self.dtype), w.to(self.dtype)
        bias = None if bias is None else bias.to(self.dtype)
        y = x.new_empty_strided(launch.y_shape, launch.y_strides)
        index = preactivation = None
        dtype = index_dtype(self.pool)
        if save and dtype is not None:
            index = x.new_empty_strided(launch.y_shape, self.g_strides, dtype=dtype)
        if save and self.saved == "preactivation":
            preactivation = x.new_empty_strided(launch.y_shape, launch.y_strides)
        if y.numel():
            x = as_format(x, self.read_channels_last)
            w = _channels_fastest(w)
            self._launch(
                "forward",
                x.device,
                lambda config: self.forward_call(config, x, w, bias, y, index, preactivation),
            )
        return y, y if self.saved == "output" and save else preactivation, index

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
        if self.saved == "input":
            raise NotImplementedError(
                "keeps no convolution output for the backward of this activation's average"
            )
        launch = self.pool_launch
        dy = as_format(dy, launch.channels_last)
        if self.saved == "nothing":
            saved = None
        if index is not None:
            index = as_format(index, channels_last=True)
        g, dbias = launch.pooled_gradient(
            dy,
            None if self.saved == "mask" else saved,
            index,
            need_dx or need_dw,
            need_dbias,
            g_channels_last=True,
        )
        dx = self.input_gradient(g, index, w.to(self.dtype)).to(x.dtype) if need_dx else None
        dw = None
        if need_dw:
            dw = self.weight_gradient(g, index, x.to(self.dtype), w.to(self.dtype)).to(w.dtype)
        if dbias is not None and bias is not None:
            dbias = dbias.to(bias.dtype)
        return dx, dw, dbias

    def input_gradient(self, g: Tensor, index: Tensor | None, w: Tensor) -> Tensor:
        """dx [N, C, H, W] from the pooled gradient g [N, K, P, Q]."""
        dx = g.new_empty_strided(self.x_shape, self.x_strides)
        if dx.numel():
            w = _channels_fastest(w)
            self._launch(
                "input_gradient",
                g.device,
                lambda config: self.input_gradient_call(config, g, index, w, dx),
            )
        return dx

    def weight_gradient(self, g: Tensor, index: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
        """dw [K, C / groups, R, S], strides as w's, from the pooled gradient g [N, K, P, Q]."""
        dw = torch.empty_like(w)
        if not g.numel():
            return dw.zero_()
        x = as_format(x, self.read_channels_last)
        filters, channels, height, width = self.w_shape

        # room for the most splits that any configuration takes
        kernel = "weight_gradient"
        splits = max(self.splits(config)[0] for config in configs(kernel, self.dtype))
        partial = g.new_empty((splits, filters, height * width, channels), dtype=torch.float32)
        config = self._config(
            kernel,
            g.device,
            lambda config: self.weight_gradient_call(config, g, index, x, partial),
        )
        self.weight_gradient_call(config, g, index, x, partial)()
        if not dw.is_contiguous() and not dw.is_contiguous(memory_format=torch.channels_last):
            dw = dw.contiguous()
        tap_stride = dw.stride(3) if width > 1 else dw.stride(2)
        triton.sum_partials_call(
            partial[: self.splits(config)[0]],
            dw,
            filters,
            height * width,
            channels,
            (dw.stride(0), dw.stride(1), tap_stride),
        )()
        return dw


def _channels_fastest(w: Tensor) -> Tensor:  # [K, C / groups, R, S]
    """The weight with its channels side by side in memory, as the kernels read it."""
    return as_format(w, channels_last=True)


def fused(
    x: Tensor, w: Tensor, z_shape: tuple[int, ...], conv: Conv2d, pool: Pool2d
) -> FusedConv2d:
    """The `FusedConv2d` of these tensors; y in the memory format that PyTorch would give it."""
    x_channels_last = is_channels_last(x)
    return FusedConv2d(
        tuple(x.shape),
        tuple(w.shape),
        z_shape,
        x.dtype,
        conv,
        pool,
        x_channels_last,
        x_channels_last or is_channels_last(w),
        triton_support.rows_apart(x.device),
    )
