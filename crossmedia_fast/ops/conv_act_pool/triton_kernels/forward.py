"""The fused forward: convolution as an implicit matrix product, and all that follows in registers.

    rows     M: pooling windows times the positions in a window
    columns  N: the filters of a group
    reduced   : taps (r, s) times the channels of a group, channels fastest

Because whole windows lie in a tile, pooling is a reduction over axes of the reshaped accumulator
[M, N], and only what is pooled is written. Where in M the position stands is chosen so that a
thread holds all of a window (`window_rows`): then nothing moves between threads either.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate, passes_gradient
from .window import OUTSIDE, divisor, maximum_of_two, maximum_with_z


@triton.jit
def window_rows(row, WINDOWS: tl.constexpr, LOW: tl.constexpr, INNER: tl.constexpr):
    """Row of a tile -> (window, position): the rows are [outer, WINDOWS / INNER, LOW, INNER].

    position = outer · LOW + low, window = middle · INNER + inner. LOW = CHUNK and INNER = 1 put a
    window's positions side by side.
    """
    inner = row % INNER
    low = row // INNER % LOW
    middle = row // (INNER * LOW) % (WINDOWS // INNER)
    outer = row // (WINDOWS * LOW)
    return middle * INNER + inner, outer * LOW + low


@triton.jit
def by_window(
    tile, WINDOWS: tl.constexpr, CHUNK: tl.constexpr, LOW: tl.constexpr, INNER: tl.constexpr
):
    """[M, N] -> [outer, WINDOWS / INNER, LOW, INNER, N]; axes 2 and 0 are a window's positions."""
    N: tl.constexpr = tile.shape[1]
    return tl.reshape(tile, (CHUNK // LOW, WINDOWS // INNER, LOW, INNER, N))


@triton.jit
def conv_act_pool2d_forward(
    x_ptr,  # [N, C, H, W] by strides
    w_ptr,  # [K, R, S, C / groups], dense
    bias_ptr,  # [K]
    y_ptr,  # [N, K, P, Q] by strides
    index_ptr,  # the same by its own: the position of each maximum, or a bit a position (average)
    preactivation_ptr,  # the same by y's strides: z at that position
    windows,  # N · P · Q
    height,  # H, W
    width,
    conv_height,  # H', W': the convolution's output
    conv_width,
    out_height,  # P, Q
    out_width,
    channels,  # C / groups
    filters,  # K / groups
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_k,
    y_stride_p,
    y_stride_q,
    index_stride_n,
    index_stride_k,
    index_stride_p,
    index_stride_q,
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
    ACTIVATION: tl.constexpr,
    PARAM: tl.constexpr,
    MONOTONE: tl.constexpr,  # max(act(z)) = act(max(z))
    HAS_BIAS: tl.constexpr,
    SAVE_INDEX: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    WHOLE_TAPS: tl.constexpr,  # a step reduces channels of one tap; else taps and channels mixed
    PRODUCT: tl.constexpr,  # the dtype that is multiplied
    PRECISION: tl.constexpr,  # of float32 products: "ieee" or "tf32"
    WIDE: tl.constexpr,  # offsets in 64 bits
    WINDOWS: tl.constexpr,  # a tile's windows, positions at a time, filters, reduced elements
    CHUNK: tl.constexpr,
    LOW: tl.constexpr,  # see window_rows
    INNER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    # 1. Which windows and filters. Neighbouring programs share windows: the input stays in L2.
    filter_blocks = tl.cdiv(filters, BLOCK_N)
    window_block = tl.program_id(0) // filter_blocks
    group = tl.program_id(1)
    if WIDE:
        window_block = window_block.to(tl.int64)
        group = group.to(tl.int64)
    k = (tl.program_id(0) % filter_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    k_inside = k < filters
    reduced = R * S * channels

    window = window_block * WINDOWS + tl.arange(0, WINDOWS)  # [WINDOWS]
    row = tl.arange(0, WINDOWS * CHUNK)  # [M]
    local_window, local_position = window_rows(row, WINDOWS, LOW, INNER)
    row_window = window_block * WINDOWS + local_window
    row_q = row_window % out_width
    row_p = row_window // out_width % out_height
    row_n = row_window // (out_width * out_height)
    x_rows = x_ptr + row_n * x_stride_n + group * channels * x_stride_c
    w_columns = w_ptr + (group * filters + k).to(row_n.dtype) * reduced

    if HAS_BIAS:
        bias = tl.load(bias_ptr + group * filters + k, mask=k_inside, other=0.0).to(tl.float32)

    best = tl.full((WINDOWS, BLOCK_N), float("-inf") if POOL == "max" else 0.0, tl.float32)
    best_z = best
    best_position = tl.full((WINDOWS, BLOCK_N), 2 * OUTSIDE if POOL == "max" else 0, tl.int32)

    # 2. CHUNK positions of every window at a time: all of 2×2; one by one where a window's size is
    #    no power of two, for a padded row costs as much as any.
    for first in range(0, POOL_H * POOL_W, CHUNK):
        position = first + local_position
        h = row_p * POOL_STRIDE_H - POOL_PAD_H + position // POOL_W
        w = row_q * POOL_STRIDE_W - POOL_PAD_W + position % POOL_W
        inside = (row_window < windows) & (position < POOL_H * POOL_W)
        inside = inside & (h >= 0) & (h < conv_height) & (w >= 0) & (w < conv_width)
        x_h = h * STRIDE_H - PAD_H
        x_w = w * STRIDE_W - PAD_W

        # 3. The matrix product of the input under the windows and the filters.
        z = tl.zeros((WINDOWS * CHUNK, BLOCK_N), tl.float32)
        if WHOLE_TAPS:
            steps_a_tap = tl.cdiv(channels, BLOCK_R)
            x_tile = x_rows + x_h * x_stride_h + x_w * x_stride_w
            for step in range(R * S * steps_a_tap):
                tap = step // steps_a_tap
                c = (step % steps_a_tap) * BLOCK_R + tl.arange(0, BLOCK_R)
                down = (tap // S) * DILATION_H
                right = (tap % S) * DILATION_W
                rows = inside & (x_h + down >= 0) & (x_h + down < height)
                rows = rows & (x_w + right >= 0) & (x_w + right < width)
                offset = down * x_stride_h + right * x_stride_w + c.to(row_n.dtype) * x_stride_c
                a = tl.load(
                    x_tile[:, None] + offset[None, :],
                    mask=rows[:, None] & (c < channels)[None, :],
                    other=0.0,
                )
                b = tl.load(
                    w_columns[None, :] + (tap * channels + c)[:, None],
                    mask=k_inside[None, :] & (c < channels)[:, None],
                    other=0.0,
                )
                z = tl.dot(a.to(PRODUCT), b.to(PRODUCT), z, input_precision=PRECISION)
        else:
            for start in range(0, reduced, BLOCK_R):
                index = start + tl.arange(0, BLOCK_R)  # (r, s, c), c fastest
                c = index % channels
                tap = index // channels
                a_h = x_h[:, None] + ((tap // S) * DILATION_H)[None, :]
                a_w = x_w[:, None] + ((tap % S) * DILATION_W)[None, :]
                mask = inside[:, None] & (index < reduced)[None, :]
                mask = mask & (a_h >= 0) & (a_h < height) & (a_w >= 0) & (a_w < width)
                a = tl.load(
                    x_rows[:, None]
                    + a_h * x_stride_h
                    + a_w * x_stride_w
                    + (c.to(row_n.dtype) * x_stride_c)[None, :],
                    mask=mask,
                    other=0.0,
                )
                b = tl.load(
                    w_columns[None, :] + index[:, None],
                    mask=k_inside[None, :] & (index < reduced)[:, None],
                    other=0.0,
                )
                z = tl.dot(a.to(PRODUCT), b.to(PRODUCT), z, input_precision=PRECISION)

        # 4. Bias, activation, and the pooling of these positions: [M, N] -> [WINDOWS, N].
        if HAS_BIAS:
            z += bias[None, :]
        if POOL == "max":
            value = z if MONOTONE else activate(z, ACTIVATION, PARAM)
            value = tl.where(inside[:, None], value, float("-inf"))
            where = tl.where(inside, position, position + OUTSIDE)
            where = tl.broadcast_to(where[:, None], (WINDOWS * CHUNK, BLOCK_N)).to(tl.int32)
            value = by_window(value, WINDOWS, CHUNK, LOW, INNER)
            where = by_window(where, WINDOWS, CHUNK, LOW, INNER)
            if MONOTONE:
                value, where = tl.reduce((value, where), 2, maximum_of_two)
                value, where = tl.reduce((value, where), 0, maximum_of_two)
                value = tl.reshape(value, (WINDOWS, BLOCK_N))
                where = tl.reshape(where, (WINDOWS, BLOCK_N))
                best, best_position = maximum_of_two(best, best_position, value, where)
            else:
                z = by_window(z, WINDOWS, CHUNK, LOW, INNER)
                value, where, z = tl.reduce((value, where, z), 2, maximum_with_z)
                value, where, z = tl.reduce((value, where, z), 0, maximum_with_z)
                value = tl.reshape(value, (WINDOWS, BLOCK_N))
                where = tl.reshape(where, (WINDOWS, BLOCK_N))
                z = tl.reshape(z, (WINDOWS, BLOCK_N))
                best, best_position, best_z = maximum_with_z(
                    best, best_position, best_z, value, where, z
                )
        elif POOL == "avg":
            value = tl.where(inside[:, None], activate(z, ACTIVATION, PARAM), 0.0)
            value = tl.sum(tl.sum(by_window(value, WINDOWS, CHUNK, LOW, INNER), 2), 0)
            best += tl.reshape(value, (WINDOWS, BLOCK_N))
            if SAVE_INDEX:
                bits = passes_gradient(z, ACTIVATION).to(tl.int32) << position[:, None]
                bits = tl.where(inside[:, None], bits, 0)
                bits = tl.sum(tl.sum(by_window(bits, WINDOWS, CHUNK, LOW, INNER), 2), 0)
                best_position += tl.reshape(bits, (WINDOWS, BLOCK_N))
        else:
            best_z = tl.reshape(z, (WINDOWS, BLOCK_N))
            best = activate(best_z, ACTIVATION, PARAM)

    q = window % out_width
    p = window // out_width % out_height
    n = window // (out_width * out_height)
    if POOL == "max" and MONOTONE:
        best_z = best
        best = activate(best, ACTIVATION, PARAM)
    if POOL == "avg":
        count = divisor(
            p,
            q,
            conv_height,
            conv_width,
            POOL_H,
            POOL_W,
            POOL_STRIDE_H,
            POOL_STRIDE_W,
            POOL_PAD_H,
            POOL_PAD_W,
            COUNT_PAD,
        )
        best = best / tl.where(window < windows, count, 1).to(tl.float32)[:, None]

    # 5. The pooled output; for backward a byte an element, and z where y doesn't tell act'(z).
    y_rows = n * y_stride_n + p * y_stride_p + q * y_stride_q
    y_offset = y_rows[:, None] + ((group * filters + k) * y_stride_k)[None, :]
    mask = (window < windows)[:, None] & k_inside[None, :]
    tl.store(y_ptr + y_offset, best.to(y_ptr.dtype.element_ty), mask=mask)
    if SAVE_INDEX:
        index_rows = n * index_stride_n + p * index_stride_p + q * index_stride_q
        index_offset = index_rows[:, None] + ((group * filters + k) * index_stride_k)[None, :]
        tl.store(index_ptr + index_offset, best_position.to(index_ptr.dtype.element_ty), mask=mask)
    if SAVE_PREACTIVATION:
        z_dtype = preactivation_ptr.dtype.element_ty
        tl.store(preactivation_ptr + y_offset, best_z.to(z_dtype), mask=mask)
