"""Memory for results: of huge pages where it is large.

Blocks above 32 MiB glibc takes from the system and gives back, whatever was freed before: each new
one takes a page fault for every 4 KiB, which costs several times what writing it does. Linux makes
them of 2 MiB where it is asked to (and may).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native

LARGE_BYTES = 32 << 20


def fresh(
    like: Tensor,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``like.new_empty_strided``."""
    memory = like.new_empty_strided(shape, strides, dtype=dtype)
    if memory.nbytes > LARGE_BYTES and memory.is_cpu and native.module is not None:
        native.module.advise_huge_pages(memory.data_ptr(), memory.nbytes)
    return memory
