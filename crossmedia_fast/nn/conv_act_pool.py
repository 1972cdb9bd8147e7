"""ConvActPool2d: an nn.Conv2d whose activation and pooling are part of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.conv_act_pool import conv_act_pool2d
from ..ops.conv_act_pool.arguments import check_pool


class ConvActPool2d(torch.nn.Conv2d):
    r"""Convolution, activation and pooling in one layer.

    Fused, in this order: convolution, bias, activation, pooling; see
    :func:`crossmedia_fast.conv_act_pool2d`.

    Equivalent to: ``nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size, ...), act,
    pool)``. It *is* an ``nn.Conv2d``: the same parameters, the same initialisation, the same
    ``state_dict`` keys, so that checkpoints of the unfused layer load and ``isinstance(m,
    nn.Conv2d)`` code works.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as
            :class:`torch.nn.Conv2d`.
        padding_mode, device, dtype: likewise.
        activation, activation_param, pool, pool_size, pool_stride, pool_padding: as
            :func:`crossmedia_fast.conv_act_pool2d`.
        ceil_mode, count_include_pad, backend: likewise.

    Shape:
        [N, in_channels, H, W] or [in_channels, H, W] -> [N, out_channels, P, Q] or
        [out_channels, P, Q].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "relu",
        activation_param: float | None = None,
        pool: str = "max",
        pool_size: int | tuple[int, int] = 2,
        pool_stride: int | tuple[int, int] | None = None,
        pool_padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        check_pool(
            activation,
            activation_param,
            pool,
            pool_size,
            pool_stride,
            pool_padding,
            ceil_mode,
            count_include_pad,
        )
        self.activation = activation
        self.activation_param = activation_param
        self.pool = pool
        self.pool_size = _hashable(pool_size)
        self.pool_stride = _hashable(pool_stride)
        self.pool_padding = _hashable(pool_padding)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:  # [N, C, H, W] -> [N, K, P, Q]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv_act_pool2d(
            input,
            self.weight,
            self.bias,
            self.stride,  # type: ignore[arg-type]
            padding,
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            activation=self.activation,
            activation_param=self.activation_param,
            pool=self.pool,
            pool_size=self.pool_size,
            pool_stride=self.pool_stride,
            pool_padding=self.pool_padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, activation={self.activation!r}"
        if self.activation_param is not None:
            text += f", activation_param={self.activation_param}"
        text += f", pool={self.pool!r}"
        if self.pool == "none":
            return text
        text += f", pool_size={self.pool_size}"
        if self.pool_stride is not None:
            text += f", pool_stride={self.pool_stride}"
        if self.pool_padding not in (0, (0, 0)):
            text += f", pool_padding={self.pool_padding}"
        if self.ceil_mode:
            text += ", ceil_mode=True"
        if self.pool == "avg" and not self.count_include_pad:
            text += ", count_include_pad=False"
        return text


def _hashable(value: Any) -> Any:
    """A list as a tuple: the arguments are part of a cache's key."""
    return tuple(value) if isinstance(value, list) else value
