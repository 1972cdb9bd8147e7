"""conv_act_pool2d in pure PyTorch: the definition of correct."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .activation import activate
from .arguments import (
    Conv2d,
    Pool2d,
    check_conv,
    check_numel,
    check_pool,
    check_pool_fits,
    check_tensors,
    conv_output_size,
)


def pool2d(a: Tensor, pool: Pool2d) -> Tensor:  # [N, K, H, W] -> [N, K, P, Q]
    """The pooling alone, by PyTorch's own function."""
    if pool.pool == "max":
        return F.max_pool2d(a, pool.size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
    if pool.pool == "avg":
        return F.avg_pool2d(
            a, pool.size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad
        )
    return a


def act_pool2d(z: Tensor, pool: Pool2d) -> Tensor:  # [N, K, H, W] -> [N, K, P, Q]
    """Activation and pooling, by PyTorch's own functions."""
    return pool2d(activate(z, pool.activation, pool.activation_param), pool)


def check_all(
    input: Tensor, weight: Tensor, bias: Tensor | None, conv: Conv2d, pool: Pool2d
) -> tuple[int, int, int, int]:
    """Everything that depends on the tensors; returns the convolution's output shape."""
    check_tensors(input, weight, bias, conv.groups)
    height, width = conv_output_size(input, weight, conv)
    check_pool_fits(pool, height, width)
    batch = input.shape[0] if input.dim() == 4 else 1
    shape = (batch, weight.shape[0], height, width)
    check_numel(shape, input.element_size())
    return shape


def conv_act_pool2d_reference(
    input: Tensor,  # [N, C, H, W] or [C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None = None,  # [K]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    activation_param: float | None = None,
    pool: str = "max",
    pool_size: int | tuple[int, int] = 2,
    pool_stride: int | tuple[int, int] | None = None,
    pool_padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # [N, K, P, Q] or [K, P, Q]
    """:func:`conv_act_pool2d` in pure PyTorch: what every backend must compute.

    Equivalent to: ``pool(act(F.conv2d(input, weight, bias, stride, padding, dilation, groups)))``,
    which is also how it is written. Arguments, shapes and errors as :func:`conv_act_pool2d`.
    """
    conv = check_conv(stride, padding, dilation, groups)
    fused = check_pool(
        activation,
        activation_param,
        pool,
        pool_size,
        pool_stride,
        pool_padding,
        ceil_mode,
        count_include_pad,
    )
    check_all(input, weight, bias, conv, fused)
    z = F.conv2d(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return act_pool2d(z, fused)
