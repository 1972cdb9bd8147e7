"""Filters [K, C, R, S] from one memory format to the other, by the native module, and images.

PyTorch's copies between them are element by element. Where an algorithm reads contiguous filters
alone, training takes three a step and layer whose weight is channels_last: for the forward, for the
gradients, and of the weight's gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import native


def contiguous(w: Tensor) -> Tensor:
    """`w` in contiguous format; itself where it is."""
    if w.is_contiguous():
        return w
    if not is_channels_last(w):
        return w.contiguous()
    filters, channels, height, width = w.shape
    dense = w.new_empty(w.shape)
    _transpose(w, dense, filters, height * width, channels)
    return dense


def channels_last(x: Tensor) -> Tensor:
    """`x` in channels_last format; itself where it is."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    batch, channels, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    if not x.is_contiguous() or not _transposable(x, strides):
        return x.contiguous(memory_format=torch.channels_last)
    target = x.new_empty_strided(x.shape, strides)
    _transpose(x, target, batch, channels, height * width)
    return target


def is_channels_last(w: Tensor) -> bool:
    """Whether the native module reads `w` as [K, R, S, C], which contiguous filters aren't."""
    return not w.is_contiguous() and _transposable(w, w.stride())


def in_format_of(w: Tensor, gradient: Tensor) -> Tensor:
    """The contiguous `gradient` of `w` with w's strides where those are dense, as PyTorch's
    gradients have them: autograd then accumulates without a copy."""
    if gradient.stride() == w.stride() or not _transposable(gradient, w.stride()):
        return gradient
    filters, channels, height, width = w.shape
    if channels == 1 or height * width == 1:  # the memory is the same
        return gradient.as_strided(w.shape, w.stride())
    target = gradient.new_empty_strided(w.shape, w.stride())
    _transpose(gradient, target, filters, channels, height * width)
    return target


def _transposable(w: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether `strides` are those of channels_last and `w` is one that the native module takes."""
    _, channels, height, width = w.shape
    return (
        native.module is not None
        and w.is_cpu
        and w.dtype is torch.float32
        and strides == (height * width * channels, 1, width * channels, channels)
    )


def _transpose(source: Tensor, target: Tensor, filters: int, rows: int, columns: int) -> None:
    native.module.transpose_matrices(  # type: ignore[union-attr]
        source.data_ptr(), target.data_ptr(), filters, rows, columns, native.thread_count()
    )
