"""What the fused Triton convolution doesn't take, and what it would not be faster at."""

from __future__ import annotations

import math

import torch

from .arguments import Conv2d, Pool2d
from .registration import saved_kind

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_GRID = 65535  # along the second and third axis


def why_not(
    w_shape: tuple[int, ...],  # [K, C / groups, R, S]
    dtype: torch.dtype,
    conv: Conv2d,
    pool: Pool2d,
    needs_grad: bool,
) -> str:
    """Why the fused convolution can't take this problem; "" where it can."""
    if dtype not in DTYPES:
        return "multiplies float32, float16 and bfloat16: Triton's products of float64 are no gain"
    if conv.symmetric_padding(w_shape[2:]) is None:
        return "takes the same padding on both sides of an axis alone"
    if max(conv.groups, conv.stride[0] * conv.stride[1]) > _LARGEST_GRID:
        return f"takes at most {_LARGEST_GRID} groups, and phases of the stride"
    if needs_grad and pool.pool == "avg" and saved_kind(pool) == "input":
        return "keeps no convolution output for the backward of this activation's average"
    return ""


def why_no_gain(w_shape: tuple[int, ...], conv: Conv2d, pool: Pool2d) -> str:
    """Why the fused convolution would lose to the library's and the epilogue; "" where not known.

    By what it computes in vain: what the plan asks until measurements on a GPU say more.
    """
    if pool.activation == "identity" and pool.pool == "none":
        return "nothing follows the convolution"
    filters = w_shape[0] // conv.groups
    if conv.groups > 1 and min(filters, w_shape[1]) < 16:
        return f"{filters} filters a group leave most of a tile idle"
    if pool.pool != "none":
        covered = [s / min(t, s) for s, t in zip(pool.size, pool.stride, strict=True)]
        if math.prod(covered) > 1.5:
            return "windows overlap: each output of the convolution would be computed again"
    return ""


def refusals(
    w_shape: tuple[int, ...],
    dtype: torch.dtype,
    conv: Conv2d,
    pool: Pool2d,
    needs_grad: bool,
    forced: bool,
) -> dict[str, str]:
    """By algorithm, why it does not take the call; cost is no reason where it is `forced`."""
    reason = why_not(w_shape, dtype, conv, pool, needs_grad)
    if not (reason or forced):
        reason = why_no_gain(w_shape, conv, pool)
    return {"implicit_gemm": reason}
