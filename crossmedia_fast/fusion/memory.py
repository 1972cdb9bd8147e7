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

    __slots__ = ("aliases", "dtypes", "hash", "hashed", "parts", "pointers", "sizes", "tensors")

    def __init__(self, parts: list[Any], hashed: bool = True) -> None:
        self.parts = [part for part in parts if part[0] is not None]  # as parts_of gives them
        self.tensors: list[Tensor] = [tensor for tensor, *_ in self.parts]
        self.aliases: list[Tensor] = [alias for _, alias, *_ in self.parts]
        self.dtypes: list[torch.dtype] = [dtype for *_, dtype, _ in self.parts]
        self.pointers: list[int] = [pointer for *_, pointer in self.parts]
        self.sizes = [tensor.nbytes for tensor in self.tensors]
        self.hashed = hashed  # whether the bytes are watched, too
        self.hash = self._hash() if hashed else 0

    def _hash(self) -> int:
        return native.module.hash_blocks(self.pointers, self.sizes, native.thread_count())  # type: ignore[union-attr]

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
        return self.lies_there() and (not self.hashed or self._hash() == self.hash)


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
