"""Whether the CUDA C++ kernels can run in this process."""

from __future__ import annotations

DTYPES = ("float32", "float64", "float16", "bfloat16")


def why_unavailable() -> str:
    """Why the backend can't run; "" where it can."""
    return "this version of crossmedia_fast has no cuda kernels"


def devices() -> tuple[str, ...]:
    """The types of device whose tensors the backend takes."""
    return ("cuda",)
