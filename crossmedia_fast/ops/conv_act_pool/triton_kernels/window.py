"""Pooling windows: the maximum with its position, and the gradient on its way back.

A position is counted in row-major order within the window. The rule of torch.nn.functional's
pooling: of equal values the first position wins, NaN wins over every number, of several NaN the
last.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Added to a position outside the input: of equal values the one inside wins. What is outside has
# the value -inf, which is never alone: every window holds an element.
OUTSIDE = tl.constexpr(1 << 29)


@triton.jit
def second_wins(value_1, position_1, value_2, position_2):
    """Whether the second of two is the window's maximum; gives the same in any order of calls."""
    nan_1 = value_1 != value_1
    nan_2 = value_2 != value_2
    larger = (value_2 > value_1) | ((value_2 == value_1) & (position_2 < position_1))
    return (nan_2 & ((nan_1 == 0) | (position_2 > position_1))) | ((nan_1 == 0) & larger)


@triton.jit
def maximum_of_two(value_1, position_1, value_2, position_2):
    second = second_wins(value_1, position_1, value_2, position_2)
    return tl.where(second, value_2, value_1), tl.where(second, position_2, position_1)


@triton.jit
def maximum_with_z(value_1, position_1, z_1, value_2, position_2, z_2):
    """The same, where the activation is not monotone and its derivative needs z."""
    second = second_wins(value_1, position_1, value_2, position_2)
    return (
        tl.where(second, value_2, value_1),
        tl.where(second, position_2, position_1),
        tl.where(second, z_2, z_1),
    )


@triton.jit
def overlap(start, stop, length):
    """How many of [start, stop) lie in [0, length)."""
    return tl.minimum(stop, length) - tl.maximum(start, 0)


@triton.jit
def divisor(
    p,
    q,
    height,
    width,
    POOL_H: tl.constexpr,
    POOL_W: tl.constexpr,
    POOL_STRIDE_H: tl.constexpr,
    POOL_STRIDE_W: tl.constexpr,
    POOL_PAD_H: tl.constexpr,
    POOL_PAD_W: tl.constexpr,
    COUNT_PAD: tl.constexpr,  # count_include_pad
):
    """What the sum over window (p, q) is divided by: its elements, with their padding or without.

    A window that reaches past the padding (ceil_mode) never counts what is beyond it.
    """
    h = p * POOL_STRIDE_H - POOL_PAD_H
    w = q * POOL_STRIDE_W - POOL_PAD_W
    if COUNT_PAD:
        rows = tl.minimum(h + POOL_H, height + POOL_PAD_H) - h
        columns = tl.minimum(w + POOL_W, width + POOL_PAD_W) - w
    else:
        rows = overlap(h, h + POOL_H, height)
        columns = overlap(w, w + POOL_W, width)
    return rows * columns


@triton.jit
def expand_gradient(
    g_ptr,  # [N, K, P, Q], the gradient of each window, times the derivative where it is pooled too
    index_ptr,  # [N, K, P, Q], the position of each maximum, or a bit a position
    plane,  # where in both the plane (n, k) begins
    h,  # row and column in the plane before pooling
    w,
    inside,  # whether there is such an element
    height,
    width,
    out_height,
    out_width,
    stride_p,
    stride_q,
    POOL: tl.constexpr,
    POOL_H: tl.constexpr,
    POOL_W: tl.constexpr,
    POOL_STRIDE_H: tl.constexpr,
    POOL_STRIDE_W: tl.constexpr,
    POOL_PAD_H: tl.constexpr,
    POOL_PAD_W: tl.constexpr,
    COUNT_PAD: tl.constexpr,
    MASKED: tl.constexpr,  # average: the index holds a bit a position
    SLOPE: tl.constexpr,  # the derivative where that bit is 0
    ACC: tl.constexpr,
):
    """dz(h, w) = sum over the windows that hold (h, w) of what each sends there.

    The dense gradient [N, K, H', W'] exists nowhere in memory: whoever needs an element asks here.
    """
    total = 0.0
    if POOL == "none":
        total = tl.load(g_ptr + plane + h * stride_p + w * stride_q, mask=inside, other=0.0).to(ACC)
    else:
        # the last window that begins at or before h, and those before it that still reach h
        first_p = (h + POOL_PAD_H) // POOL_STRIDE_H
        first_q = (w + POOL_PAD_W) // POOL_STRIDE_W
        for back_p in tl.static_range((POOL_H + POOL_STRIDE_H - 1) // POOL_STRIDE_H):
            for back_q in tl.static_range((POOL_W + POOL_STRIDE_W - 1) // POOL_STRIDE_W):
                p = first_p - back_p
                q = first_q - back_q
                i = h + POOL_PAD_H - p * POOL_STRIDE_H  # position in the window, >= 0
                j = w + POOL_PAD_W - q * POOL_STRIDE_W
                held = (p >= 0) & (p < out_height) & (i < POOL_H)
                held = held & (q >= 0) & (q < out_width) & (j < POOL_W)
                mask = inside & held
                offset = plane + p * stride_p + q * stride_q
                g = tl.load(g_ptr + offset, mask=mask, other=0.0).to(ACC)
                position = i * POOL_W + j
                if POOL == "max":
                    chosen = tl.load(index_ptr + offset, mask=mask, other=0).to(tl.int32)
                    g = tl.where(chosen == position, g, 0.0)
                else:
                    count = divisor(
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
                    g = g / tl.where(held, count, 1).to(ACC)
                    if MASKED:
                        bits = tl.load(index_ptr + offset, mask=mask, other=0).to(tl.int32)
                        # where the position is outside the window g is 0 already
                        passes = (bits >> tl.where(held, position, 0).to(tl.int32)) & 1
                        g = tl.where(passes != 0, g, 0.0 if SLOPE == 0 else g * SLOPE)
                total += g
    return total
