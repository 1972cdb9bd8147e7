"""The CUDA backend of the losses: allocates outputs and calls the kernels of csrc/cuda/gan_loss.cu.

Pointers leave Python here and nowhere else. Nothing waits for the device: forward keeps the
gradients for an incoming gradient of 1; backward launches one kernel that reads the incoming
gradient where it lies, returns at once where it is 1, and else computes the gradients again from
the operands: scaling what was kept would lose what a loss scale is there to save, the gradients too
small for float16. A probability outside [0, 1] makes NaN where the CPU raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import cuda_support, native
from ...cuda_support import device_and_stream
from .arguments import OPERANDS, Problem
from .dense import as_dense

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class Launch:
    """One problem on operands of one size, ready to call: the native struct and its fellows."""

    backend = "cuda"
    __slots__ = (
        "alike",
        "dtype",
        "loss_dtype",
        "native",
        "problem",
        "scratch",
        "unreduced",
    )

    def __init__(
        self,
        problem: Problem,
        counts: tuple[int, ...],  # elements, a term each
        operand_dtype: torch.dtype,
        dtype: torch.dtype | None,  # of the loss, None = the operands'
    ) -> None:
        if reason := cuda_support.why_unavailable():
            raise NotImplementedError(f"backend 'cuda' can't run here: {reason}")
        self.problem = problem
        self.dtype = dtype
        self.loss_dtype = dtype or operand_dtype
        self.unreduced = problem.reduction == "none"
        # how many operands must lie alike in memory: a term's, or all where elements are added up
        step = OPERANDS[problem.function]
        self.alike = step * len(counts) if self.unreduced else step
        self.native: Any = native.module.GanLossProblem(  # type: ignore[union-attr]
            function=problem.function,
            reduction=problem.reduction,
            counts=list(counts),
            parameters=list(problem.parameters),
            scales=list(problem.scales),
            dtype=_DTYPE_NAMES[operand_dtype],
            loss_dtype=_DTYPE_NAMES[self.loss_dtype],
        )
        self.scratch: int = cuda_support.kernels.gan_loss_scratch(self.native)

    def forward(
        self,
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...] | None,  # which gradients to keep; None with reduction "none"
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and, for an incoming gradient of 1, the gradients that are wanted."""
        operands = as_dense(operands, self.alike)
        first = operands[0]
        if self.unreduced:
            loss = torch.empty_like(first, dtype=self.loss_dtype)
        else:
            loss = first.new_empty((), dtype=self.loss_dtype)
        gradients = _room(operands, (False,) * len(operands) if wanted is None else wanted)
        scratch = first.new_empty((self.scratch,), dtype=torch.uint8) if self.scratch else None
        cuda_support.kernels.gan_loss_forward(
            self.native,
            loss.data_ptr(),
            _addresses(operands),
            _addresses(gradients),
            0 if scratch is None else scratch.data_ptr(),
            *device_and_stream(first),
        )
        return loss, gradients if wanted is not None else ()

    def backward(
        self,
        grad: Tensor,  # [] or, with reduction "none", [*]
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...],
        stored: Sequence[Tensor | None] = (),  # forward's gradients, for nobody else to keep
    ) -> Sequence[Tensor | None]:
        """The wanted gradients for any incoming gradient."""
        dense = as_dense(operands, self.alike)
        grad = grad.resolve_neg()
        if self.unreduced and any(x.stride() != dense[0].stride() for x in (*dense, grad)):
            # the gradient meets the operands' elements, so it must lie as they do
            dense = [x.contiguous() for x in dense]
            grad = grad.contiguous()
        gradients = tuple(stored) or _room(dense, wanted)
        cuda_support.kernels.gan_loss_backward(
            self.native,
            grad.data_ptr(),
            _addresses(dense),
            _addresses(gradients),
            bool(stored),
            *device_and_stream(dense[0]),
        )
        return gradients


def _room(operands: Sequence[Tensor], wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return tuple(
        torch.empty_like(x) if want else None for x, want in zip(operands, wanted, strict=True)
    )


def _addresses(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(0 if x is None else x.data_ptr() for x in tensors)
