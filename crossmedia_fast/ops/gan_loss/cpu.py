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
from .formulas import ProbabilityError

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_MAX_CACHED = 4096

# On a small problem a Python line costs as much as the kernel: what is looked up for every operand
# is looked up once.
_data_ptr = Tensor.data_ptr
_empty_like = torch.empty_like


class Launch:
    """One problem on operands of one size, ready to call: the native struct and its fellows."""

    __slots__ = (
        "alike",
        "backward",
        "dtype",
        "forward",
        "native",
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
            dtype=_DTYPE_NAMES[operand_dtype],
            loss_dtype=_DTYPE_NAMES[self.scalar.dtype],
        )
        self.forward = native.module.gan_loss_forward
        self.backward = native.module.gan_loss_backward


_launches: dict[Any, Launch] = {}


def launch_for(
    problem: Problem, operands: Sequence[Tensor], dtype: torch.dtype | None = None
) -> Launch:
    """The cached `Launch` of a problem on operands of these sizes."""
    counts = tuple(x.numel() for x in operands[:: OPERANDS[problem.function]])
    key = (problem, counts, operands[0].dtype, dtype)
    launch = _launches.get(key)
    if launch is None:
        if len(_launches) >= _MAX_CACHED:
            _launches.clear()
        launch = _launches[key] = Launch(problem, counts, operands[0].dtype, dtype)
    return launch


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


def gan_loss_forward(
    launch: Launch,
    operands: Sequence[Tensor],
    wanted: tuple[bool, ...] | None,  # which gradients to keep; None with reduction "none"
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss and, for an incoming gradient of 1, the gradients that are wanted."""
    operands = as_dense(operands, launch.alike)
    if launch.unreduced:
        loss = torch.empty_like(operands[0], dtype=launch.scalar.dtype)
    else:
        loss = _empty_like(launch.scalar)
    gradients: Sequence[Tensor | None] = ()
    addresses = launch.no_gradients
    if wanted is not None:
        gradients, addresses = _gradients(operands, wanted)
    if launch.forward(
        launch.native,
        loss.data_ptr(),
        tuple(map(_data_ptr, operands)),
        addresses,
        launch.threads or native.thread_count(),
    ):
        raise ProbabilityError
    return loss, gradients


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


def gan_loss_backward(
    launch: Launch,
    grad: Tensor,  # [] or, with reduction "none", [*]
    operands: Sequence[Tensor],
    wanted: tuple[bool, ...],
) -> Sequence[Tensor | None]:
    """The wanted gradients for any incoming gradient, in one pass over the operands."""
    dense = as_dense(operands, launch.alike)
    if launch.unreduced:
        # the gradient meets the operands' elements, so it must lie as they do
        if any(x.stride() != dense[0].stride() for x in (*dense, grad)):
            dense = [x.contiguous() for x in dense]
            grad = grad.contiguous()
        grad = grad.resolve_neg()
    gradients, addresses = _gradients(dense, wanted)
    launch.backward(
        launch.native,
        grad.data_ptr(),
        tuple(map(_data_ptr, dense)),
        addresses,
        launch.threads or native.thread_count(),
    )
    return gradients
