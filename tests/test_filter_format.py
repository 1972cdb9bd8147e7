"""Filters between the memory formats, and gradients in the format of their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import filter_format

from .conv_act_pool_cases import algorithm
from .conv_native_launch import threads

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

SHAPES = [(5, 3, 3, 3), (40, 33, 3, 3), (2, 16, 1, 17), (1, 1, 4, 4), (7, 20, 1, 1), (0, 4, 3, 3)]


@pytest.mark.parametrize("shape", [*SHAPES, (130, 67, 5, 3)], ids=str)
def test_both_ways(shape: Any) -> None:
    w = torch.randn(shape)
    there = w.to(memory_format=torch.channels_last)
    for count in (1, 2):
        with threads(count):
            back = filter_format.contiguous(there)
            again = filter_format.in_format_of(there, w)
        assert back.is_contiguous()
        assert torch.equal(back, w)
        assert again.stride() == there.stride()
        assert torch.equal(again, w)


def test_other_strides_and_types_are_pytorchs() -> None:
    for w in (
        torch.randn(6, 4, 6, 3)[:, :, ::2],
        torch.randn(3, 3, 4, 6).permute(3, 2, 1, 0),
        torch.randn(4, 5, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last),
    ):
        assert torch.equal(filter_format.contiguous(w), w)
        assert filter_format.contiguous(w).is_contiguous()
        gradient = torch.randn(w.shape, dtype=w.dtype)
        assert filter_format.in_format_of(w, gradient) is gradient


def test_sizes_are_checked() -> None:
    w = torch.randn(4, 4)
    pointer = w.data_ptr()
    for sizes in ((-1, 2, 2), (1, -2, 2), (1 << 40, 1 << 20, 1 << 10), (1 << 62, 1, 1)):
        with pytest.raises(ValueError, match="matrices that can exist"):
            native.module.transpose_matrices(pointer, pointer, *sizes, 1)
    with pytest.raises(ValueError, match="source"):
        native.module.transpose_matrices(0, pointer, 1, 4, 4, 1)
    with pytest.raises(ValueError, match="target"):
        native.module.transpose_matrices(pointer, 0, 1, 4, 4, 1)
    with pytest.raises(ValueError, match="threads"):
        native.module.transpose_matrices(pointer, pointer, 1, 4, 4, 0)


@pytest.mark.parametrize(("name", "size"), [("winograd", 3), ("pointwise", 1), ("epilogue", 3)])
def test_gradients_have_their_weights_strides(name: str, size: int) -> None:
    """Else autograd copies each of them, in every step."""
    layer = nn.Conv2d(20, 24, size, padding=size // 2).to(memory_format=torch.channels_last)
    x = torch.randn(2, 20, 12, 12).to(memory_format=torch.channels_last)
    with algorithm(name):
        y = cmf.conv_act_pool2d(x, layer.weight, layer.bias, padding=size // 2, pool="none")
        (dw,) = torch.autograd.grad(y.square().sum(), layer.weight)
    assert dw.stride() == layer.weight.stride()
    want = torch.relu(layer.double()(x.double())).square().sum()
    torch.testing.assert_close(
        dw.double(), torch.autograd.grad(want, layer.weight)[0], rtol=1e-4, atol=1e-4
    )
