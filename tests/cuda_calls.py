"""What the tests of the CUDA kernels share: where they run, and memory that shows what they touch.

On a machine with a GPU they run there. Without one they run in the emulator, which is chosen when
the package is imported: test_cuda_emulator.py starts that process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from crossmedia_fast import cuda_support

EMULATED = cuda_support.emulated() and not cuda_support.why_unavailable()
HAS_GPU = not cuda_support.emulated() and not cuda_support.why_unavailable()
DEVICE = "cuda" if HAS_GPU else "cpu"

runs_kernels = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (HAS_GPU or EMULATED),
        reason="no GPU: test_cuda_emulator.py runs these with CROSSMEDIA_FAST_CUDA_SHIM=1",
    ),
]

# of threads and blocks in the emulator; a GPU has its own
ORDERS = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]


def set_order(order: tuple[str, int]) -> None:
    if EMULATED:
        cuda_support.kernels.set_order(*order)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Divisions in 64 bits, as tensors of more than 2**31 elements have them."""
    cuda_support.kernels.set_always_wide(True)
    try:
        yield
    finally:
        cuda_support.kernels.set_always_wide(False)


_GUARD = 64  # bytes before and behind
_CANARY = 0xA5


class Guards(TorchFunctionMode):
    """What a backend allocates in this block has guards around it, and holds NaN until written.

    `misalign`: elements by which each allocation is off the alignment of the allocator.
    """

    def __init__(self, misalign: int = 0) -> None:
        super().__init__()
        self.misalign = misalign
        self.buffers: list[tuple[Tensor, int, int]] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        if function is Tensor.new_empty_strided:
            like, shape, strides = arguments
            return self.allocate(like, shape, strides, named.get("dtype") or like.dtype)
        if function is Tensor.new_empty:
            like, shape = arguments
            strides = torch.empty(shape, device="meta").stride()
            return self.allocate(like, shape, strides, named.get("dtype") or like.dtype)
        return function(*arguments, **named)

    def allocate(self, like: Tensor, shape: Any, strides: Any, dtype: torch.dtype) -> Tensor:
        count = 1
        for size in shape:
            count *= size
        first = _GUARD + self.misalign * dtype.itemsize if dtype != torch.uint8 else _GUARD
        if dtype == torch.uint8 and len(shape) > 1:
            first += self.misalign
        last = first + count * dtype.itemsize
        size = -(-(last + _GUARD) // 64) * 64
        buffer = torch.full((size,), _CANARY, dtype=torch.uint8, device=like.device)
        buffer[first:last] = 0xFF
        self.buffers.append((buffer, first, last))
        return buffer[first:last].view(dtype).as_strided(shape, strides)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            assert self.buffers
            for buffer, first, last in self.buffers:
                assert buffer[:first].eq(_CANARY).all(), "written before a tensor"
                assert buffer[last:].eq(_CANARY).all(), "written behind a tensor"


def misaligned(x: Tensor, elements: int = 1) -> Tensor:
    """The same values and strides, at an address that is a multiple of the element's size alone."""
    buffer = torch.empty(x.numel() + elements, dtype=x.dtype, device=x.device)
    return buffer[elements:].as_strided(x.shape, x.stride()).copy_(x)
