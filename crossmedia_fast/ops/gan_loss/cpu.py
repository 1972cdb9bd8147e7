"""The CPU backend: allocates outputs and calls the native kernels of csrc/cpu/gan_loss.cpp.

Pointers leave Python here and nowhere else. Whatever reaches `data_ptr()` in this file has been
checked for dtype, shape, device and layout, or was allocated two lines above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import native
from .arguments import OPERANDS, Problem
from .dense import as_dense
from .formulas import ProbabilityError

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}

# On a small problem a Python line costs as much as the kernel: what is looked up for every operand
# is looked up once.
_data_ptr = Tensor.data_ptr
_empty_like = torch.empty_like


class Launch:
    """One problem on operands of one size, ready to call: the native struct and its fellows."""

    backend = "cpu"
    __slots__ = (
        "alike",
        "dtype",
        "native",
        "native_backward",
        "native_forward",
        "no_gradients",
        "problem",
        "scalar",
        "threads",
        "unreduced",
    )

    def __init__(
        self,
        problem: Problem,
        counts: tuple[int, ...],  # elements, a term each
        operand_dtype: torch.dtype,
        dtype: torch.dtype | None,  # of the loss, None = the operands'
    ) -> None:
        if native.module is None:
            raise NotImplementedError(f"backend 'cpu' can't run here: {native.reason}")
        self.problem = problem
        self.dtype = dtype
        self.unreduced = problem.reduction == "none"
        # how many operands must lie alike in memory: a term's, or all where elements are added up
        step = OPERANDS[problem.function]
        self.alike = step * len(counts) if self.unreduced else step
        # few elements run on one thread anyway: no need to ask for the setting
        self.threads = 1 if sum(counts) < 32768 else 0
        self.no_gradients = (0,) * (step * len(counts))
        # what a reduced loss looks like: empty_like costs less than empty with its keywords
        self.scalar = torch.empty((), dtype=dtype or operand_dtype, device="cpu")
        self.native: Any = native.module.GanLossProblem(
            function=problem.function,
            reduction=problem.reduction,
            counts=list(counts),
            parameters=list(problem.parameters),
            scales=list(problem.scales),
            dtype=DTYPE_NAMES[operand_dtype],
            loss_dtype=DTYPE_NAMES[self.scalar.dtype],
        )
        self.native_forward = native.module.gan_loss_forward
        self.native_backward = native.module.gan_loss_backward

    def forward(
        self,
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...] | None,  # which gradients to keep; None with reduction "none"
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and, for an incoming gradient of 1, the gradients that are wanted."""
        operands = as_dense(operands, self.alike)
        if self.unreduced:
            loss = torch.empty_like(operands[0], dtype=self.scalar.dtype)
        else:
            loss = _empty_like(self.scalar)
        gradients: Sequence[Tensor | None] = ()
        addresses = self.no_gradients
        if wanted is not None:
            gradients, addresses = _gradients(operands, wanted)
        if self.native_forward(
            self.native,
            loss.data_ptr(),
            tuple(map(_data_ptr, operands)),
            addresses,
            self.threads or native.thread_count(),
        ):
            raise ProbabilityError
        return loss, gradients

    def backward(
        self,
        grad: Tensor,  # [] or, with reduction "none", [*]
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...],
        stored: Sequence[Tensor | None] = (),  # forward's gradients, for nobody else to keep
    ) -> Sequence[Tensor | None]:
        """The wanted gradients for any incoming gradient."""
        if stored and grad.item() == 1.0:
            return stored
        return self._gradients_for(grad, operands, wanted)

    def _gradients_for(
        self,
        grad: Tensor,  # [] or, with reduction "none", [*]
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...],
    ) -> Sequence[Tensor | None]:
        """The wanted gradients for any incoming gradient, in one pass over the operands."""
        dense = as_dense(operands, self.alike)
        if self.unreduced:
            # the gradient meets the operands' elements, so it must lie as they do
            if any(x.stride() != dense[0].stride() for x in (*dense, grad)):
                dense = [x.contiguous() for x in dense]
                grad = grad.contiguous()
            grad = grad.resolve_neg()
        gradients, addresses = _gradients(dense, wanted)
        self.native_backward(
            self.native,
            grad.data_ptr(),
            tuple(map(_data_ptr, dense)),
            addresses,
            self.threads or native.thread_count(),
        )
        return gradients


def _gradients(
    operands: Sequence[Tensor], wanted: tuple[bool, ...]
) -> tuple[Sequence[Tensor | None], tuple[int, ...]]:
    """Room for the wanted gradients, and its addresses (0 = not wanted)."""
    if False not in wanted:
        all_gradients = tuple(map(_empty_like, operands))
        return all_gradients, tuple(map(_data_ptr, all_gradients))
    gradients: list[Tensor | None] = []
    addresses = []
    for x, want in zip(operands, wanted, strict=True):
        gradient = _empty_like(x) if want else None
        gradients.append(gradient)
        addresses.append(0 if gradient is None else gradient.data_ptr())
    return gradients, tuple(addresses)
