"""Whether the CUDA C++ kernels can run in this process, and where they are.

`kernels` is the module with their functions, or None: the native module's `cuda`, or, with
CROSSMEDIA_FAST_CUDA_SHIM=1, the emulator, which runs them on CPU tensors (tests alone: it is slow).
What can be asked for at import is asked for then: torch.compile traces through a call's plan, and
finds constants.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import native

DTYPES = ("float32", "float64", "float16", "bfloat16")
_OLDEST = (8, 0)  # cp.async, bfloat16, asynchronous barriers

kernels: Any = None
_EMULATED = os.environ.get("CROSSMEDIA_FAST_CUDA_SHIM", "0") == "1"


def _load() -> tuple[ModuleType | None, str]:
    """The module with the kernels, or why there is none."""
    if native.module is None:
        return None, native.reason
    if _EMULATED:
        try:
            return importlib.import_module("crossmedia_fast._cuda_shim"), ""
        except ModuleNotFoundError:
            return None, "the emulator was not built (CMake's option CROSSMEDIA_FAST_CUDA_SHIM)"
        except ImportError as error:
            return None, f"the emulator did not load: {error}"
    if native.module.why_no_cuda:
        return None, f"not built: {native.module.why_no_cuda}"
    if torch.version.hip is not None:
        return None, "this PyTorch is built for ROCm; the triton backend has kernels for it"
    if torch.version.cuda is None:
        return None, "this PyTorch is built without CUDA"
    if not native.module.cuda.driver_version():
        return None, "no driver: libcuda.so.1 does not load"
    return native.module.cuda, ""


kernels, _REASON = _load()


def emulated() -> bool:
    """Whether the kernels run in the emulator, on CPU tensors."""
    return _EMULATED


_found: list[tuple[int, int]] = []


def _capability() -> tuple[int, int]:
    """The newest GPU's compute capability; asked for once."""
    if not _found:
        devices = range(torch.cuda.device_count())
        _found.append(max(torch.cuda.get_device_capability(device) for device in devices))
    return _found[0]


# What torch.compiler.assume_constant_result does; that imports torch._dynamo: seconds, and Triton.
_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_unavailable() -> str:
    """Why the backend can't run; "" where it can."""
    if _REASON or _EMULATED:
        return _REASON
    if not torch.cuda.is_available():
        return "no device: PyTorch sees no GPU"
    if _capability() < _OLDEST:
        have = ".".join(map(str, _capability()))
        return f"the GPU is too old: compute capability {have}, 8.0 or newer is needed"
    return ""


def devices() -> tuple[str, ...]:
    """The types of device whose tensors the backend takes."""
    return ("cpu",) if _EMULATED else ("cuda",)


def device_and_stream(tensor: Tensor) -> tuple[int, int]:
    """Where a kernel on `tensor` runs: the device's index and PyTorch's current stream there."""
    if _EMULATED:
        return 0, 0
    index = tensor.get_device()
    return index, torch._C._cuda_getCurrentRawStream(index)
