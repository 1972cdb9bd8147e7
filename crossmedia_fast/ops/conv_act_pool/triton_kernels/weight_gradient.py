"""The weight's gradient: an implicit matrix product over the pixels of the whole batch.

    rows     M: the filters of a group
    columns  N: taps (r, s) times the channels of a group, channels fastest
    reduced   : pixels (n, h, w) of the convolution's output, split over programs

Each split writes a partial sum of its own, and `sum_partials` adds them in order: no atomics, the
same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .window import expand_gradient


@triton.jit
def conv_act_pool2d_weight_gradient(
    g_ptr,  # [N, K, P, Q] by strides, as the index: the pooled gradient
    index_ptr,
    x_ptr,  # [N, C, H, W] by strides
    partial_ptr,  # [splits, K, R, S, C / groups], dense, float32
    pixels,  # N · H' · W'
    pixels_a_split,  # a multiple of BLOCK_R
    height,  # H, W
    width,
    conv_height,  # H', W'
    conv_width,
    out_height,  # P, Q
    out_width,
    channels,  # C / groups
    filters,  # K / groups
    groups,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    g_stride_n,
    g_stride_k,
    g_stride_p,
    g_stride_q,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    POOL: tl.constexpr,
    POOL_H: tl.constexpr,
    POOL_W: tl.constexpr,
    POOL_STRIDE_H: tl.constexpr,
    POOL_STRIDE_W: tl.constexpr,
    POOL_PAD_H: tl.constexpr,
    POOL_PAD_W: tl.constexpr,
    COUNT_PAD: tl.constexpr,
    MASKED: tl.constexpr,
    SLOPE: tl.constexpr,
    PRODUCT: tl.constexpr,  # the dtype that is multiplied
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    # 1. Which filters and which columns (r, s, c): decoded once, outside the loop.
    reduced = R * S * channels
    column_blocks = tl.cdiv(reduced, BLOCK_N)
    k = (tl.program_id(0) // column_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    column = (tl.program_id(0) % column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    group = tl.program_id(1)
    split = tl.program_id(2)
    if WIDE:
        split = split.to(tl.int64)
        group = group.to(tl.int64)
    c = column % channels
    tap = column // channels
    down = tap // S * DILATION_H - PAD_H
    right = tap % S * DILATION_W - PAD_W
    x_columns = x_ptr + (group * channels + c) * x_stride_c

    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    first = split * pixels_a_split
    for start in range(first, tl.minimum(first + pixels_a_split, pixels), BLOCK_R):
        pixel = start + tl.arange(0, BLOCK_R)
        w = pixel % conv_width
        h = pixel // conv_width % conv_height
        n = pixel // (conv_width * conv_height)
        pixel_inside = pixel < pixels
        # 2. The gradient of these pixels [pixels, M], expanded from the pooled one.
        plane = (n * g_stride_n)[:, None] + ((group * filters + k) * g_stride_k)[None, :]
        dz = expand_gradient(
            g_ptr,
            index_ptr,
            plane,
            h[:, None],
            w[:, None],
            pixel_inside[:, None] & (k < filters)[None, :],
            conv_height,
            conv_width,
            out_height,
            out_width,
            g_stride_p,
            g_stride_q,
            POOL,
            POOL_H,
            POOL_W,
            POOL_STRIDE_H,
            POOL_STRIDE_W,
            POOL_PAD_H,
            POOL_PAD_W,
            COUNT_PAD,
            MASKED,
            SLOPE,
            tl.float32,
        )
        # 3. The input that each tap saw there [pixels, N].
        x_h = h[:, None] * STRIDE_H + down[None, :]
        x_w = w[:, None] * STRIDE_W + right[None, :]
        mask = pixel_inside[:, None] & (column < reduced)[None, :]
        mask = mask & (x_h >= 0) & (x_h < height) & (x_w >= 0) & (x_w < width)
        b = tl.load(
            x_columns[None, :] + (n * x_stride_n)[:, None] + x_h * x_stride_h + x_w * x_stride_w,
            mask=mask,
            other=0.0,
        )
        dz = dz.to(b.dtype).to(PRODUCT)
        dw = tl.dot(tl.trans(dz), b.to(PRODUCT), dw, input_precision=PRECISION)

    partial_rows = partial_ptr + ((split * groups + group) * filters + k) * reduced
    mask = (k < filters)[:, None] & (column < reduced)[None, :]
    tl.store(partial_rows[:, None] + column[None, :], dw, mask=mask)


@triton.jit
def sum_partials(
    partial_ptr,  # [splits, rows, taps, channels], dense, float32 or float64
    out_ptr,  # [rows, channels, taps] by strides
    splits,
    count,  # rows · taps · channels
    taps,
    channels,
    out_stride_row,
    out_stride_channel,
    out_stride_tap,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = sum over the splits, the first one first."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        element = element.to(tl.int64)
    mask = element < count
    total = tl.zeros((BLOCK,), partial_ptr.dtype.element_ty)
    for _ in range(splits):
        total += tl.load(partial_ptr + element, mask=mask, other=0.0)
        partial_ptr += count
    channel = element % channels
    tap = element // channels % taps
    row = element // (channels * taps)
    offset = row * out_stride_row + channel * out_stride_channel + tap * out_stride_tap
    tl.store(out_ptr + offset, total.to(out_ptr.dtype.element_ty), mask=mask)
