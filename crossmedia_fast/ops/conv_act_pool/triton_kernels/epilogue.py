"""Bias, activation and pooling of a convolution's output in one pass; and the pass back.

Bound by memory: a thread an output, neighbouring threads neighbouring addresses in either format.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate, backward_from_input, backward_from_output, passes_gradient
from .window import OUTSIDE, divisor, expand_gradient, maximum_of_two, maximum_with_z, overlap


@triton.jit
def decode(element, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """The place in memory of a dense tensor -> (n, k, h, w)."""
    if CHANNELS_LAST:
        k = element % channels
        w = element // channels % width
        h = element // (channels * width) % height
    else:
        w = element % width
        h = element // width % height
        k = element // (width * height) % channels
    return element // (channels * height * width), k, h, w


@triton.jit
def act_pool2d_forward(
    x_ptr,  # [N, K, H, W], dense
    bias_ptr,  # [K]
    y_ptr,  # [N, K, P, Q], dense in the same format, as the next two
    index_ptr,
    preactivation_ptr,
    count,  # N · K · P · Q
    channels,
    height,
    width,
    out_height,
    out_width,
    x_stride_n,
    x_stride_k,
    x_stride_h,
    x_stride_w,
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
    MONOTONE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_INDEX: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,  # the dtype of the arithmetic
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    element = program * BLOCK + tl.arange(0, BLOCK)
    mask = element < count
    n, k, p, q = decode(element, channels, out_height, out_width, CHANNELS_LAST)
    plane = x_ptr + n * x_stride_n + k * x_stride_k
    if HAS_BIAS:
        bias = tl.load(bias_ptr + k, mask=mask, other=0.0).to(ACC)

    best = tl.full((BLOCK,), float("-inf") if POOL == "max" else 0.0, ACC)
    best_z = best
    best_position = tl.full((BLOCK,), 2 * OUTSIDE if POOL == "max" else 0, tl.int32)
    for position in range(POOL_H * POOL_W):
        h = p * POOL_STRIDE_H - POOL_PAD_H + position // POOL_W
        w = q * POOL_STRIDE_W - POOL_PAD_W + position % POOL_W
        inside = mask & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        z = tl.load(plane + h * x_stride_h + w * x_stride_w, mask=inside, other=0.0).to(ACC)
        if HAS_BIAS:
            z += bias
        if POOL == "max":
            value = z if MONOTONE else activate(z, ACTIVATION, PARAM)
            value = tl.where(inside, value, float("-inf"))
            where = tl.where(inside, position, position + OUTSIDE)
            if MONOTONE:
                best, best_position = maximum_of_two(best, best_position, value, where)
            else:
                best, best_position, best_z = maximum_with_z(
                    best, best_position, best_z, value, where, z
                )
        elif POOL == "avg":
            best += tl.where(inside, activate(z, ACTIVATION, PARAM), 0.0)
            if SAVE_INDEX:
                bit = passes_gradient(z, ACTIVATION).to(tl.int32) << position
                best_position += tl.where(inside, bit, 0)
        else:
            best = activate(z, ACTIVATION, PARAM)
            best_z = z

    if POOL == "max" and MONOTONE:
        best_z = best
        best = activate(best, ACTIVATION, PARAM)
    if POOL == "avg":
        size = divisor(
            p,
            q,
            height,
            width,
            POOL_H,
            POOL_W,
            POOL_STRIDE_H,
            POOL_STRIDE_W,
            POOL_PAD_H,
            POOL_PAD_W,
            COUNT_PAD,
        )
        best = best / tl.where(mask, size, 1).to(ACC)
    tl.store(y_ptr + element, best.to(y_ptr.dtype.element_ty), mask=mask)
    if SAVE_INDEX:
        tl.store(index_ptr + element, best_position.to(index_ptr.dtype.element_ty), mask=mask)
    if SAVE_PREACTIVATION:
        z_dtype = preactivation_ptr.dtype.element_ty
        tl.store(preactivation_ptr + element, best_z.to(z_dtype), mask=mask)


@triton.jit
def pooled_gradient(
    dy_ptr,  # [N, K, P, Q] by strides, as the next
    saved_ptr,  # y or z, as SAVED says
    index_ptr,  # [N, K, P, Q] by g's strides, as the next
    g_ptr,  # dy times the derivative, where that is pooled too
    partial_ptr,  # [splits, K], dense: what each split adds to dbias
    rows,  # N · P · Q
    rows_a_split,  # a multiple of BLOCK_ROWS
    channels,
    height,  # of what was pooled
    width,
    out_height,
    out_width,
    y_stride_n,
    y_stride_k,
    y_stride_p,
    y_stride_q,
    g_stride_n,
    g_stride_k,
    g_stride_p,
    g_stride_q,
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
    ACTIVATION: tl.constexpr,
    PARAM: tl.constexpr,
    SAVED: tl.constexpr,  # "output" "preactivation" "nothing"
    STORE: tl.constexpr,  # whether g is wanted
    NEED_DBIAS: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """g = dy · act' at the pooled positions, and the bias's gradient, which follows from it alone.

    An average of the identity, or with a bit a position, keeps g = dy: its derivative differs
    within the window, and the bits give how often each occurs.
    """
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    if WIDE:
        split = split.to(tl.int64)
        k = k.to(tl.int64)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_K), ACC)
    first = split * rows_a_split
    for start in range(first, tl.minimum(first + rows_a_split, rows), BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        q = row % out_width
        p = row // out_width % out_height
        n = row // (out_width * out_height)
        y_rows = n * y_stride_n + p * y_stride_p + q * y_stride_q
        g_rows = n * g_stride_n + p * g_stride_p + q * g_stride_q
        offset = y_rows[:, None] + (k * y_stride_k)[None, :]
        g_offset = g_rows[:, None] + (k * g_stride_k)[None, :]
        mask = (row < rows)[:, None] & (k < channels)[None, :]
        g = tl.load(dy_ptr + offset, mask=mask, other=0.0).to(ACC)
        if SAVED != "nothing":
            saved = tl.load(saved_ptr + offset, mask=mask, other=0.0).to(ACC)
            if SAVED == "output":
                g = backward_from_output(g, saved, ACTIVATION, PARAM)
            else:
                g = backward_from_input(g, saved, ACTIVATION, PARAM)
        if STORE:
            tl.store(g_ptr + g_offset, g.to(g_ptr.dtype.element_ty), mask=mask)
        if NEED_DBIAS:
            if POOL == "avg":
                h = p * POOL_STRIDE_H - POOL_PAD_H
                w = q * POOL_STRIDE_W - POOL_PAD_W
                size = divisor(
                    p,
                    q,
                    height,
                    width,
                    POOL_H,
                    POOL_W,
                    POOL_STRIDE_H,
                    POOL_STRIDE_W,
                    POOL_PAD_H,
                    POOL_PAD_W,
                    COUNT_PAD,
                )
                valid = overlap(h, h + POOL_H, height) * overlap(w, w + POOL_W, width)
                g = g / tl.where(row < rows, size, 1).to(ACC)[:, None]
                if MASKED:
                    bits = tl.load(index_ptr + g_offset, mask=mask, other=0).to(tl.int32)
                    ones = bits & 1
                    for position in tl.static_range(1, POOL_H * POOL_W):
                        ones += (bits >> position) & 1
                    passed = tl.where(ones == 0, 0.0, g * ones.to(ACC))  # 0, not 0 · inf
                    if SLOPE != 0:
                        passed += g * SLOPE * (valid[:, None] - ones).to(ACC)
                    g = passed
                else:
                    g = g * valid.to(ACC)[:, None]
            sums += tl.where(mask, g, 0.0)
    if NEED_DBIAS:
        partial = partial_ptr + split * channels + k
        tl.store(partial, tl.sum(sums, axis=0), mask=k < channels)


@triton.jit
def act_pool2d_backward(
    g_ptr,  # [N, K, P, Q], dense, as the index: the pooled gradient
    index_ptr,
    x_ptr,  # [N, K, H, W], dense in the same format, as dx; read where DIFFERENTIATE
    bias_ptr,  # [K]
    dx_ptr,
    count,  # N · K · H · W
    channels,
    height,
    width,
    out_height,
    out_width,
    g_stride_n,
    g_stride_k,
    g_stride_p,
    g_stride_q,
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
    ACTIVATION: tl.constexpr,
    PARAM: tl.constexpr,
    DIFFERENTIATE: tl.constexpr,  # the derivative is not pooled: it is taken here, from x + bias
    HAS_BIAS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx: each element asks the windows that hold it, so nothing is zeroed and nothing collides."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    element = program * BLOCK + tl.arange(0, BLOCK)
    mask = element < count
    n, k, h, w = decode(element, channels, height, width, CHANNELS_LAST)
    dz = expand_gradient(
        g_ptr,
        index_ptr,
        n * g_stride_n + k * g_stride_k,
        h,
        w,
        mask,
        height,
        width,
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
        ACC,
    )
    if DIFFERENTIATE:
        z = tl.load(x_ptr + element, mask=mask, other=0.0).to(ACC)
        if HAS_BIAS:
            z += tl.load(bias_ptr + k, mask=mask, other=0.0).to(ACC)
        dz = backward_from_input(dz, z, ACTIVATION, PARAM)
    tl.store(dx_ptr + element, dz.to(dx_ptr.dtype.element_ty), mask=mask)
