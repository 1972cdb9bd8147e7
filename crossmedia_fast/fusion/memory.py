"""Tensors whose memory is watched: where it lies, its layout, and a hash of the bytes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..ops.conv_act_pool import interface
from .steps import PLAIN

_DTYPE = operator.attrgetter("dtype")


class Memory:
    """Of some tensors, as they were when it was made."""

    __slots__ = ("aliases", "dtypes", "hash", "hashed", "pointers", "read", "sizes", "tensors")

    def __init__(self, hashed: list[Any], read: list[Any]) -> None:
        """`hashed`: parts, as parts_of gives them, whose bytes are watched, too; `read`: others."""
        self.hashed = [part for part in hashed if part[0] is not None]
        self.read = [part for part in read if part[0] is not None]
        parts = self.hashed + self.read
        self.tensors: list[Tensor] = [tensor for tensor, *_ in parts]
        self.aliases: list[Tensor] = [alias for _, alias, *_ in parts]
        self.dtypes: list[torch.dtype] = [dtype for *_, dtype, _ in parts]
        self.pointers: list[int] = [pointer for *_, pointer in parts]
        self.sizes = [tensor.nbytes for tensor in self.tensors[: len(self.hashed)]]
        self.hash = self._hash()

    def _hash(self) -> int:
        sizes = self.sizes
        if not sizes:
            return 0
        pointers = self.pointers[: len(sizes)]
        return native.module.hash_blocks(pointers, sizes, native.thread_count())  # type: ignore[union-attr]

    def lies_there(self) -> bool:
        """Whether every tensor has the memory and the layout that it had."""
        tensors = self.tensors
        return (
            list(map(Tensor.data_ptr, tensors)) == self.pointers
            and list(map(_DTYPE, tensors)) == self.dtypes
            and all(map(Tensor.is_set_to, tensors, self.aliases))
        )

    def holds(self) -> bool:
        """Whether every byte that is watched is what it was, too."""
        return self.lies_there() and self._hash() == self.hash


def parts_of(tensors: list[Any]) -> list[Any] | None:
    """The tensors and what they were set to; None where their memory can't be read here."""
    if native.module is None or interface._transforms_active():
        return None
    parts: list[Any] = []
    for tensor in tensors:
        if tensor is None:
            parts.append((None,) * 4)
            continue
        dense = tensor.is_contiguous() or (
            tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        )
        if type(tensor) not in PLAIN or not tensor.is_cpu or not dense:
            return None
        # the alias stays what the tensor was, storage and strides, when the tensor is set anew
        parts.append((tensor, tensor.detach(), tensor.dtype, tensor.data_ptr()))
    return parts
