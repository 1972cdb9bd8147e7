"""How much rounding the convolution algorithms may add (as torch.set_float32_matmul_precision)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

PRECISIONS = ("highest", "high", "medium")


def _check(precision: str, argument: str = "precision") -> str:
    if not isinstance(precision, str):
        raise TypeError(f"{argument} must be a string, got {type(precision).__name__}")
    if precision not in PRECISIONS:
        raise ValueError(f"{argument} must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


_precision = _check(
    os.environ.get("CROSSMEDIA_FAST_PRECISION", "high"), "CROSSMEDIA_FAST_PRECISION"
)


def set_conv_precision(precision: str) -> None:
    """Set how much rounding convolution algorithms may add, for the whole process.

    ``"highest"``: no more than direct convolution; ``"high"`` (default): Winograd F(2×2), F(4×4)
    and F(5×5) allowed; ``"medium"``: F(6×6) too. An algorithm that rounds less is always allowed.
    """
    global _precision
    _precision = _check(precision)


def get_conv_precision() -> str:
    """The precision in force: "highest", "high" or "medium"."""
    return _precision


@contextlib.contextmanager
def conv_precision(precision: str) -> Iterator[None]:
    """`set_conv_precision` for a block."""
    before = get_conv_precision()
    set_conv_precision(precision)
    try:
        yield
    finally:
        set_conv_precision(before)


def conv_allows_tf32() -> bool:
    """Whether PyTorch's own convolutions may multiply float32 as tf32 on a GPU.

    By either of its switches: ``torch.backends.cudnn.allow_tf32`` raises where the newer
    ``torch.backends.cudnn.conv.fp32_precision`` was set to something that it can't express.
    """
    setting = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if setting is None else setting == "tf32"
