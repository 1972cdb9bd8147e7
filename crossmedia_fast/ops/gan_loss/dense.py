"""Operands as the kernels want them: a term's alike in memory, without gaps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def _fills_its_memory(x: Tensor) -> bool:
    """Whether `x` is a permutation of a contiguous tensor: each element once, no gaps."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def as_dense(operands: Sequence[Tensor], step: int) -> Sequence[Tensor]:
    """The operands so that a term's lie alike in memory without gaps (themselves where they do)."""
    for x in operands:
        if not x.is_contiguous() or x.is_neg():
            break
    else:
        return operands
    result: list[Tensor] = []
    for start in range(0, len(operands), step):
        term = [x.resolve_neg() for x in operands[start : start + step]]
        alike = all(x.stride() == term[0].stride() for x in term)
        if not (alike and _fills_its_memory(term[0])):
            term = [x.contiguous() for x in term]
        result += term
    return result
