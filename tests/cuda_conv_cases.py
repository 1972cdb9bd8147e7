"""Problems for the fused CUDA convolution, and what it makes of them beside the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS
from crossmedia_fast.ops.conv_act_pool.arguments import conv_output_size
from crossmedia_fast.ops.conv_act_pool.memory_format import is_channels_last

from . import tolerances
from .cuda_calls import Guards
from .triton_calls import Case

LAST = Case(channels=8, filters=8, height=9, width=11, channels_last=True)

# chunks of 4 channels (float32) and of 8 (the half types); single elements; more filters than a
# tile has columns; a step with parts of several taps; strided phases with taps and without
CASES = {
    "chunks": LAST,
    "one_chunk_of_tf32": LAST._replace(channels=4, kernel=(5, 5), padding=2, filters=3),
    "many_channels": LAST._replace(channels=72, height=4, width=4),
    "many_filters": LAST._replace(filters=77),
    "elements": Case(channels=3, filters=9, height=9, width=11),
    "elements_channels_last": Case(channels=3, filters=9, height=9, width=11, channels_last=True),
    "one_channel": Case(channels=1, filters=70, height=8, width=8),
    "aligned_elements": Case(channels=8, filters=5),
    "channels_no_multiple": LAST._replace(channels=13),
    "format_changed": Case(channels=24, filters=7),
    "1x1": LAST._replace(kernel=(1, 1), padding=0),
    "7x7_stride_2": LAST._replace(kernel=(7, 7), stride=2, padding=3, height=17, width=22),
    "7x7_stride_2_elements": Case(
        channels=3, kernel=(7, 7), stride=2, padding=3, height=17, width=22
    ),
    "stride_2_of_1x1": LAST._replace(kernel=(1, 1), padding=0, stride=2),
    "stride_3_kernel_2": LAST._replace(stride=3, kernel=(2, 2), padding=0, height=14, width=8),
    "stride_2_dilation_2": LAST._replace(stride=2, dilation=2, padding=2),
    "mixed": LAST._replace(stride=(1, 2), padding=(2, 0), dilation=(2, 1), kernel=(3, 2)),
    "same": LAST._replace(padding="same", kernel=(3, 5)),
    "no_bias": LAST._replace(bias=False, padding=0),
    "batch_of_windows": LAST._replace(batch=40, height=2, width=3),
    "filters_no_multiple": LAST._replace(filters=6),
    "avg": LAST._replace(pool="avg"),
    "avg_identity": LAST._replace(pool="avg", activation="identity"),
    "avg_leaky": LAST._replace(pool="avg", activation="leaky_relu", param=0.3),
    "avg_relu6_elements": Case(pool="avg", activation="relu6"),
    "none": LAST._replace(pool="none"),
    "none_contiguous": Case(pool="none", filters=4),
}
for _name in ACTIVATIONS:
    CASES[f"max_{_name}"] = LAST._replace(activation=_name, batch=1, filters=3)
    CASES[f"none_{_name}"] = LAST._replace(activation=_name, batch=1, pool="none", filters=8)
CASES["max_elu_negative"] = LAST._replace(activation="elu", param=-0.5)
CASES["max_leaky_negative"] = LAST._replace(activation="leaky_relu", param=-0.2)
CASES["max_softplus_beta"] = LAST._replace(activation="softplus", param=3.0)

SOME = (
    "chunks", "many_channels", "many_filters", "elements", "aligned_elements", "7x7_stride_2",
    "format_changed", "avg_leaky", "none",
)  # fmt: skip


def fused(case: Case, x: Tensor, w: Tensor, tile_rows: int = 0) -> Any:
    from crossmedia_fast.ops.conv_act_pool.cuda_conv import FusedConv2d

    conv = case.conv()
    z_shape = (case.batch, case.filters, *conv_output_size(x, w, conv))
    last = is_channels_last(x)
    kernels = FusedConv2d(
        tuple(x.shape), tuple(w.shape), z_shape, x.dtype, conv, case.pooling(), last,
        last or is_channels_last(w),
    )  # fmt: skip
    kernels.tile_rows = tile_rows
    return kernels


def run(case: Case, tile_rows: int = 0) -> tuple[list[Tensor], Any]:
    """y and the gradients of x, w and bias, everything written between guards; and dy."""
    x, w, bias = case.tensors()
    kernels = fused(case, x, w, tile_rows)
    with Guards():
        y, saved, index = kernels.forward(x, w, bias, save=True)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y)
    with Guards():
        gradients = kernels.backward(dy, saved, index, x, w, bias, (True, True, bias is not None))
    return [y, *(g for g in gradients if g is not None)], dy


def expected(case: Case, dy: Tensor) -> list[Tensor]:
    inputs = [t.double().requires_grad_() for t in case.tensors() if t is not None]
    y = case.reference(*inputs, *([] if case.bias else [None]))
    return [y, *torch.autograd.grad(y, inputs, dy.double())]


def check(case: Case, values: float, gradients: float, tile_rows: int = 0) -> None:
    actual, dy = run(case, tile_rows)
    bounds = (values, *[gradients] * 3)
    for tensor, want, bound in zip(actual, expected(case, dy), bounds, strict=False):
        assert tensor.dtype == case.dtype
        tolerances.assert_within(tensor, want, bound)
