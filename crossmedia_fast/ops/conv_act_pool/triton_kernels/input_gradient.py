"""The input's gradient: an implicit matrix product whose left side is expanded while it is loaded.

rows     M: input pixels of one phase: those whose row and column leave the same remainder when
            divided by the convolution's stride. Only they meet the same taps, so none of the
            products with the zeros between strided outputs is computed.
columns  N: the channels of a group
reduced   : the phase's taps times the filters of a group, filters fastest
"""

from __future__ import annotations

import triton
import triton.language as tl

from .window import expand_gradient


@triton.jit
def first_tap(
    phase,
    PAD: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,
):
    """The first tap r < STEP with (phase + PAD - r · DILATION) divisible by STRIDE, else -1."""
    first = -1
    for back in tl.static_range(STEP):
        r = STEP - 1 - back
        # + DILATION · STRIDE · r keeps the remainder and makes the sum positive
        first = tl.where((phase + PAD + r * DILATION * (STRIDE - 1)) % STRIDE == 0, r, first)
    return first


@triton.jit
def conv_act_pool2d_input_gradient(
    g_ptr,  # [N, K, P, Q] by strides, as the index: the pooled gradient
    index_ptr,
    w_ptr,  # [K, R, S, C / groups], dense
    dx_ptr,  # [N, C, H, W] by strides
    batch,
    height,  # H, W
    width,
    conv_height,  # H', W'
    conv_width,
    out_height,  # P, Q
    out_width,
    channels,  # C / groups
    filters,  # K / groups
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
    STEP_H: tl.constexpr,  # from one tap of a phase to its next: stride / gcd(stride, dilation)
    STEP_W: tl.constexpr,
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
    # 1. Which pixels and channels; a phase and a group a program along the other two axes.
    channel_blocks = tl.cdiv(channels, BLOCK_N)
    pixel_block = tl.program_id(0) // channel_blocks
    c = (tl.program_id(0) % channel_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    phase_h = tl.program_id(1) // STRIDE_W
    phase_w = tl.program_id(1) % STRIDE_W
    group = tl.program_id(2)
    if WIDE:
        pixel_block = pixel_block.to(tl.int64)
        group = group.to(tl.int64)

    rows = (height - phase_h + STRIDE_H - 1) // STRIDE_H  # of this phase; 0 in a small image
    columns = (width - phase_w + STRIDE_W - 1) // STRIDE_W
    pixel = pixel_block * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    pixel_inside = pixel < batch * rows * columns
    x_w = phase_w + pixel % tl.maximum(columns, 1) * STRIDE_W
    x_h = phase_h + pixel // tl.maximum(columns, 1) % tl.maximum(rows, 1) * STRIDE_H
    n = pixel // tl.maximum(rows * columns, 1)

    # 2. The taps of this phase: first, first + STEP, first + 2 STEP, ...
    first_r = first_tap(phase_h, PAD_H, STRIDE_H, DILATION_H, STEP_H)
    first_s = first_tap(phase_w, PAD_W, STRIDE_W, DILATION_W, STEP_W)
    taps_r = tl.where(first_r < 0, 0, (R - first_r + STEP_H - 1) // STEP_H)
    taps_s = tl.where(first_s < 0, 0, (S - first_s + STEP_W - 1) // STEP_W)
    taps_r = tl.maximum(taps_r, 0)
    taps_s = tl.maximum(taps_s, 0)

    dx = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    steps_a_tap = tl.cdiv(filters, BLOCK_R)
    for step in range(taps_r * taps_s * steps_a_tap):
        tap = step // steps_a_tap
        r = first_r + tap // taps_s * STEP_H
        s = first_s + tap % taps_s * STEP_W
        k = (step % steps_a_tap) * BLOCK_R + tl.arange(0, BLOCK_R)
        # 3. The convolution's output that this tap carries to the pixel.
        reach_h = x_h + PAD_H - r * DILATION_H
        reach_w = x_w + PAD_W - s * DILATION_W
        h = reach_h // STRIDE_H
        w = reach_w // STRIDE_W
        inside = pixel_inside & (reach_h >= 0) & (h < conv_height)
        inside = inside & (reach_w >= 0) & (w < conv_width)
        plane = (n * g_stride_n)[:, None] + ((group * filters + k) * g_stride_k)[None, :]
        dz = expand_gradient(
            g_ptr,
            index_ptr,
            plane,
            h[:, None],
            w[:, None],
            inside[:, None] & (k < filters)[None, :],
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
        # 4. [M, filters] times [filters, N].
        w_rows = (group * filters + k).to(n.dtype) * (R * S * channels) + (r * S + s) * channels
        b = tl.load(
            w_ptr + w_rows[:, None] + c[None, :],
            mask=(k < filters)[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        dz = dz.to(b.dtype).to(PRODUCT)
        dx = tl.dot(dz, b.to(PRODUCT), dx, input_precision=PRECISION)

    offset = (n * x_stride_n + x_h * x_stride_h + x_w * x_stride_w)[:, None]
    offset += ((group * channels + c) * x_stride_c)[None, :]
    mask = pixel_inside[:, None] & (c < channels)[None, :]
    tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
