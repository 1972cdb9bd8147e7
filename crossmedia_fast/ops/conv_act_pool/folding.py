"""Average pooling without an activation before it, folded into the convolution's weights.

The average of p × p outputs of an R × S filter is one output of its (R + p - 1) × (S + p - 1) taps
box-filtered, at stride p: for 3×3 and 2×2 16 multiplications where there were 36.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_weights
from .arguments import Conv2d, Pool2d

# Outputs of a filter from which on they pay for folding it at every call.
_LEAST_OUTPUTS = 256
# Channels of a group from which Winograd's kernels are faster than the folded layer.
_WINOGRAD_GROUP = 32


def why_not(
    y_shape: tuple[int, ...],  # [N, K, P, Q]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    w_shape: tuple[int, ...],  # [K, C / groups, R, S]
    conv: Conv2d,
    pool: Pool2d,
    dtype: torch.dtype,
    needs_grad: bool,
    x_channels_last: bool,
) -> str:
    """Why the pooling is not folded into the weights; "" where it is."""
    if pool.pool != "avg" or pool.activation != "identity":
        return "is for average pooling with nothing between it and the convolution"
    if pool.size != pool.stride or pool.padding != (0, 0) or pool.size == (1, 1):
        return "takes windows side by side, without padding"
    if pool.ceil_mode and any(
        length % size for length, size in zip(z_shape[2:], pool.size, strict=True)
    ):
        return "takes no window over the edge"
    if conv.stride != (1, 1) or conv.dilation != (1, 1) or isinstance(conv.padding, str):
        return "takes stride and dilation 1 and padding in numbers"
    if dtype not in (torch.float32, torch.float64):
        return "would round the weights to half precision"
    if conv.groups > 1 and dtype == torch.float32:
        # measured on a Zen 4: 1.1 to 1.5 times as fast; other groups, larger filters and contiguous
        # tensors in training are faster folded
        if w_shape[1] == 1 and (not needs_grad or (x_channels_last and max(w_shape[2:]) <= 3)):
            return "groups of one channel are bound by memory, and have a kernel of their own"
        if w_shape[1] >= _WINOGRAD_GROUP and not needs_grad:
            return "groups of many channels have Winograd's kernels"
    outputs = y_shape[0] * y_shape[2] * y_shape[3]
    if outputs < _LEAST_OUTPUTS:
        return f"is for at least {_LEAST_OUTPUTS} outputs of a filter, these are {outputs}"
    return ""


def fold(w: Tensor, size: tuple[int, int]) -> Tensor:  # [K, C, R, S] -> [K, C, R+p-1, S+q-1]
    """The filters that give averages over windows of `size`."""
    p, q = size
    return F.avg_pool2d(F.pad(w, (q - 1, q - 1, p - 1, p - 1)), size, stride=1)


def fold_kept(w: Tensor, size: tuple[int, int]) -> Tensor:
    """`fold`, remembered for as long as the weights are the same."""
    if not w.is_contiguous():
        return fold(w, size)
    filters, channels, height, width = w.shape
    shape = (filters, channels, height + size[0] - 1, width + size[1] - 1)

    def transform(target: Tensor) -> None:
        target.view(shape).copy_(fold(w, size))

    return cpu_weights.kept(w, ("fold", size), math.prod(shape), transform).view(shape)


def run(
    convolve: Callable[[Tensor], Tensor],  # a weight -> the convolution at the windows' stride
    w: Tensor,
    pool: Pool2d,
    needs_grad: bool,
) -> Tensor | None:
    """The pooled convolution; None where it is not finite.

    Opposite infinities meet in an average and not in a folded weight, so the caller then takes the
    long way.
    """
    y = convolve(fold(w, pool.size) if needs_grad else fold_kept(w, pool.size))
    return y if math.isfinite(y.detach().sum().item()) else None
