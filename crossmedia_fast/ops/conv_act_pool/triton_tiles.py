"""The tiles of the fused Triton convolution, and how they are multiplied.

The list is short because each entry is compiled and checked in the tests for four GPUs, and
measured on the one that runs it.
"""

from __future__ import annotations

from typing import Any

import torch

from ... import triton_support
from ...precision import conv_allows_tf32
from ...triton_tuning import Config

# rows, columns, reduced elements a step, warps, stages. Two dimensions of the matrix product at
# work: large tiles read less, small ones fill a GPU that a small problem would leave idle; narrow
# ones waste nothing on few filters. Shared memory stays below the 64 KiB that gfx942 has and the 99
# that every NVIDIA GPU since sm_80 has, and no configuration spills: test_triton_compile.py.
_HALF = (
    Config(128, 64, 32, 4, 3),
    Config(128, 128, 32, 8, 3),
    Config(128, 64, 64, 4, 3),
    Config(64, 64, 64, 4, 3),
    Config(128, 32, 32, 4, 4),
    Config(64, 32, 64, 4, 3),
)
_FLOAT = (
    Config(64, 64, 16, 4, 3),
    Config(128, 64, 16, 8, 3),
    Config(64, 32, 32, 4, 3),
    Config(32, 64, 16, 4, 2),
)
# The gradients expand their left side in registers, which leaves fewer for the accumulator.
_HALF_GRADIENT = (
    Config(64, 64, 32, 4, 3),
    Config(128, 64, 32, 8, 2),
    Config(64, 32, 32, 4, 2),
    Config(32, 64, 32, 4, 2),
)
_FLOAT_GRADIENT = (
    Config(64, 64, 16, 4, 3),
    Config(64, 32, 16, 4, 2),
    Config(32, 64, 16, 4, 2),
)
_INTERPRETED = (Config(32, 16, 16, 1, 1),)  # whose time goes by the element, padding or not


def configs(kernel: str, dtype: torch.dtype) -> tuple[Config, ...]:
    """The configurations of "forward", "input_gradient" or "weight_gradient"; the default first."""
    if triton_support.interpreting():
        return _INTERPRETED
    if kernel == "forward":
        return _FLOAT if dtype == torch.float32 else _HALF
    return _FLOAT_GRADIENT if dtype == torch.float32 else _HALF_GRADIENT


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: by PyTorch's own switch for convolutions, where that exists."""
    if dtype == torch.float32 and conv_allows_tf32() and torch.version.hip is None:
        return "tf32"
    return "ieee"


def product_dtype(dtype: torch.dtype) -> Any:
    """The dtype that is multiplied; the interpreter multiplies no bfloat16, float32 is the same."""
    import triton.language as tl

    if dtype == torch.bfloat16 and triton_support.interpreting():
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[
        dtype
    ]


def row_order(chunk: int, rows_apart: bool) -> dict[str, int]:
    """Where a tile's rows have the position in the window (triton_kernels.forward.window_rows).

    A thread of mma.sync holds rows 8 apart, and every 64th or 32nd: with one bit of the position
    in either place it holds all of a 2×2 window, and so does one of wgmma in a tile of 128 rows on
    4 warps. On gfx942 the same order moves less between lanes than the plain one (68 instructions
    against 98). sm_100's tensor memory gives each thread a row of its own, and neighbouring rows to
    neighbours.
    """
    if rows_apart and chunk > 1:
        return {"LOW": 2, "INNER": 8}
    return {"LOW": chunk, "INNER": 1}
