"""Whether Triton's kernels can run here, and why not. Importing this imports no Triton.

Everything that can be asked for without importing it is asked for once, here: torch.compile traces
through a call's plan, and finds constants.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os

import torch

DTYPES = ("float32", "float64", "float16", "bfloat16")
_OLDEST = (3, 3)  # tuples of pointers as one argument


def _why_not_importable() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; Linux builds of PyTorch bring it)"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""  # built from source
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return f"Triton {'.'.join(map(str, _OLDEST))} or newer is needed, this is {version}"
    return ""


_IMPORT_REASON = _why_not_importable()
# Triton reads the variable where a kernel is defined, so it holds for the whole process.
_INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU (tests alone: it is slow)."""
    return _INTERPRETING


def why_not_importable() -> str:
    """Why there is no Triton to import; "" where there is."""
    return _IMPORT_REASON


def why_unavailable() -> str:
    """Why the backend can't run; "" where it can."""
    if _IMPORT_REASON or _INTERPRETING:
        return _IMPORT_REASON
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"
    return ""


def devices() -> tuple[str, ...]:
    """The types of device whose tensors the backend takes."""
    return ("cuda", "cpu") if _INTERPRETING else ("cuda",)


@functools.cache
def rows_apart(device: torch.device) -> bool:
    """Whether a thread's rows of a matrix product's result lie 8 apart: mma.sync and wgmma.

    Not so in the tensor memory of NVIDIA's sm_100.
    """
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device)[0] not in (10, 11)
