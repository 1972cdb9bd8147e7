"""Whether Triton's kernels can run here, and why not. Importing this imports no Triton.

Triton reads ``TRITON_INTERPRET`` where a kernel is defined, so the variable must be set before the
first kernel module is imported: `interpreting` answers for the whole process.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

OLDEST = (3, 3)  # tuples of pointers as one argument


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU (tests alone: it is slow)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def why_not_importable() -> str:
    """Why Triton can't be imported; "" where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; Linux builds of PyTorch bring it)"
    try:
        import triton
    except (ImportError, OSError, RuntimeError) as error:
        return f"importing Triton failed: {error}"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST:
        least = ".".join(map(str, OLDEST))
        return f"Triton {least} or newer is needed, this is {triton.__version__}"
    return ""


def why_unavailable() -> str:
    """Why backend "triton" can't run in this process; "" where it can."""
    reason = why_not_importable()
    if reason or interpreting():
        return reason
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"
    return ""


@functools.cache
def rows_apart(device: torch.device) -> bool:
    """Whether a thread's rows of a matrix product's result lie 8 apart: mma.sync and wgmma.

    Not so on AMD's GPUs, nor in the tensor memory of NVIDIA's sm_100.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] not in (10, 11)


def why_not_device(device: torch.device) -> str:
    """Why the kernels don't run on tensors of `device`; "" where they do."""
    if device.type in ("cuda", "meta"):
        return ""
    if device.type == "cpu":
        if interpreting():
            return ""
        return "runs on GPU tensors; on CPU tensors only under TRITON_INTERPRET=1 (tests)"
    return f"runs on GPU tensors, the input is on {device.type}"
