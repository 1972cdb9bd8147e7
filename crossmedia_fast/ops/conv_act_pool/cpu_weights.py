"""Transformed weights, kept for as long as the weights they were made of are unchanged.

Whether they are is asked of the bytes: a version counter misses writes through `.data` and swapped
storages. The hash reads the weights once, at the speed of memory.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from ... import native
from . import filter_format


class _Entry:
    __slots__ = ("contiguous", "hash", "key", "prepared", "weight")

    def __init__(self, weight: Any, key: Any, hash: int, prepared: Tensor) -> None:
        self.weight = weight
        self.key = key
        self.hash = hash
        self.prepared = prepared
        self.contiguous: Tensor | None = None


_entries: dict[int, _Entry] = {}  # by id of the weight
_unchanging: dict[int, Any] = {}  # id -> reference, of those that nobody can write to
_workspace = threading.local()  # weights that change at every step are transformed in here


def _hash(w: Tensor) -> int:
    return native.module.hash_bytes(  # type: ignore[union-attr]
        w.data_ptr(), w.numel() * w.element_size(), native.thread_count()
    )


def never_changes(w: Tensor) -> None:
    """Say that nobody but this package holds `w`, and that it is not written to."""
    number = id(w)
    _unchanging[number] = weakref.ref(w, lambda _: _unchanging.pop(number, None))


def kept(
    w: Tensor,
    key: Any,
    shape: int | tuple[int, ...],
    transform: Any,
    dtype: torch.dtype | None = None,  # of the result, None = w's
) -> Tensor:
    """`transform(target)`'s result for `w`, dense: from the last call where `w` is the same."""
    number = id(w)
    entry = _entries.get(number)
    known = _unchanging.get(number)
    hash = 0 if known is not None and known() is w else _hash(w)
    if entry is not None and entry.weight() is w and entry.key == key and entry.hash == hash:
        return entry.prepared
    prepared = torch.empty(shape, dtype=dtype or w.dtype)
    transform(prepared)
    reference = weakref.ref(w, lambda _: _entries.pop(number, None))
    _entries[number] = _Entry(reference, key, hash, prepared)
    return prepared


def contiguous(w: Tensor, prepared: Tensor | None) -> Tensor:
    """`w` in contiguous format: from the last call where `prepared` is what is kept for it."""
    if w.is_contiguous():
        return w
    entry = _entries.get(id(w))
    if entry is None or entry.prepared is not prepared:
        return filter_format.contiguous(w)
    if entry.contiguous is None:
        entry.contiguous = filter_format.contiguous(w)
    return entry.contiguous


def passing(w: Tensor, count: int, transform: Any) -> Tensor:
    """`transform(target)`'s result for `w`, in memory of this thread that the next call reuses."""
    buffer = getattr(_workspace, "buffer", None)
    if buffer is None or buffer.numel() < count or buffer.dtype != w.dtype:
        _workspace.buffer = None  # give the old one back before a larger one is taken
        buffer = _workspace.buffer = torch.empty(count, dtype=w.dtype)
    transform(buffer)
    return buffer
