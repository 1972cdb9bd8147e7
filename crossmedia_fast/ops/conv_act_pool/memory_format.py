"""The two memory formats of a dense [N, K, H, W] tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Strides of a dense [N, K, H, W] tensor in either memory format."""
    _, channels, height, width = shape
    if channels_last:
        return (height * width * channels, 1, width * channels, channels)
    return (channels * height * width, height * width, width, 1)


def is_channels_last(x: Tensor) -> bool:
    """Whether the kernels should read `x` [N, K, H, W] as NHWC.

    A channel alone lies in memory in the same way in both formats: its stride says which it is, as
    in PyTorch's convolution, whose output then has that format.
    """
    if not x.is_contiguous():
        if torch._C._functorch.is_batchedtensor(x):  # of vmap, in which PyTorch doesn't say
            return x.dim() == 4 and x.stride() == dense_strides(x.shape, True)
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.shape[1] == 1 and x.stride(1) == 1 and x.shape[2] * x.shape[3] > 1


def as_format(x: Tensor, channels_last: bool) -> Tensor:
    """`x`, dense in that memory format (itself where it is)."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return (
        x
        if x.is_contiguous(memory_format=memory_format)
        else x.contiguous(memory_format=memory_format)
    )
