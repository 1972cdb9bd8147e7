"""The Triton backend of the losses: allocates outputs and launches the kernels.

Nothing here waits for the device. Forward keeps the gradients for an incoming gradient of 1;
backward launches one kernel that reads the incoming gradient where it lies, returns at once where
it is 1, and else computes the gradients again from the operands: scaling what was kept would lose
what a loss scale is there to save, the gradients too small for float16.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...triton_launch import KernelCall, is_wide
from .arguments import OPERANDS, Problem
from .dense import as_dense

_BLOCK = 1024  # elements a step of a program: 8 a thread of 4 warps
_ADDED_BLOCK = 512  # where terms are added up element by element, which keeps more of each
_DOUBLE_BLOCK = 256
MOST_TRACED = 8  # tensors of a loss in a graph of torch.compile
_PROGRAMS = 1024  # a term, at most: enough for any GPU, and few to add up afterwards


class Launch:
    """One problem on operands of one size, ready to call."""

    backend = "triton"

    __slots__ = (
        "alike",
        "block",
        "blocks",
        "counts",
        "dtype",
        "first_programs",
        "loss_dtype",
        "numbers",
        "operand_dtype",
        "problem",
        "step",
        "unreduced",
    )

    def __init__(
        self,
        problem: Problem,
        counts: tuple[int, ...],  # elements, a term each
        operand_dtype: torch.dtype,
        dtype: torch.dtype | None,  # of the loss, None = the operands'
    ) -> None:
        self.problem = problem
        self.counts = counts
        self.dtype = dtype
        self.operand_dtype = operand_dtype
        self.loss_dtype = dtype or operand_dtype
        self.unreduced = problem.reduction == "none"
        self.step = OPERANDS[problem.function]
        # how many operands must lie alike in memory: a term's, or all where elements are added up
        self.alike = self.step * len(counts) if self.unreduced else self.step
        self.block = _ADDED_BLOCK if self.unreduced else _BLOCK
        if operand_dtype == torch.float64:
            self.block = _DOUBLE_BLOCK
        most = max(-(-count // self.block) for count in counts)
        self.blocks = max(1, -(-most // _PROGRAMS))
        firsts = [0]
        for count in counts:
            # an empty term has a program too: its mean is NaN
            firsts.append(firsts[-1] + max(1, -(-count // (self.block * self.blocks))))
        self.first_programs = tuple(firsts)
        parameters = [_two_floats(value) for value in problem.parameters]
        scales = [_two_floats(value) for value in problem.scales]
        self.numbers = {
            "parameters": tuple(value for value, _ in parameters),
            "parameter_rests": tuple(rest for _, rest in parameters),
            "scales": tuple(value for value, _ in scales),
            "scale_rests": tuple(rest for _, rest in scales),
        }

    def forward(
        self,
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...] | None,  # which gradients to keep; None with reduction "none"
        traced: bool = False,  # in a registered op: see `_flat`
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and, for an incoming gradient of 1, the gradients that are wanted."""
        operands = as_dense(operands, self.alike)
        first = operands[0]
        if self.unreduced:
            loss = torch.empty_like(first, dtype=self.loss_dtype)
            if loss.numel():
                _launch(self.elements_call(operands, None, loss, ()), traced)
            return loss, ()
        gradients = _room(operands, wanted)
        loss = first.new_empty((), dtype=self.loss_dtype)
        programs = self.first_programs[-1]
        partial = loss
        if programs > 1:
            partial = first.new_empty((programs,), dtype=_accumulator(self.operand_dtype))
        _launch(self.reduced_call(operands, None, partial, gradients), traced)
        if programs > 1:
            self.sum_call(partial, loss)()
        return loss, gradients if wanted is not None else ()

    def backward(
        self,
        grad: Tensor,  # [] or, with reduction "none", [*]
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...],
        stored: Sequence[Tensor | None] = (),  # what forward kept, if nobody else holds it
        traced: bool = False,
    ) -> Sequence[Tensor | None]:
        """The wanted gradients for any incoming gradient."""
        dense = as_dense(operands, self.alike)
        if self.unreduced:
            # the gradient meets the operands' elements, so it must lie as they do
            if any(x.stride() != dense[0].stride() for x in (*dense, grad)):
                dense = [x.contiguous() for x in dense]
                grad = grad.contiguous()
            gradients = _room(dense, wanted)
            if grad.numel():
                _launch(self.elements_call(dense, grad.resolve_neg(), None, gradients), traced)
            return gradients
        gradients = tuple(stored) or _room(dense, wanted)
        _launch(self.reduced_call(dense, grad, None, gradients, bool(stored)), traced)
        return gradients

    def reduced_call(
        self,
        operands: Sequence[Tensor],
        grad: Tensor | None,
        partial: Tensor | None,  # None: the loss is not wanted
        gradients: Sequence[Tensor | None],
        skip_one: bool = False,
    ) -> KernelCall:
        """The launch that fills the partial sums and the gradients."""
        from . import triton_kernels

        first = operands[0]
        return KernelCall(
            triton_kernels.gan_loss_reduced,
            (self.first_programs[-1],),
            {
                "operands": tuple(operands),
                "gradients": _pointers(gradients, operands),
                "grad_ptr": first if grad is None else grad,
                "partial_ptr": first if partial is None else partial,
                "counts": self.counts,
                "first_programs": self.first_programs,
                "blocks": self.blocks,
                **self.numbers,
            },
            {
                **self._constants(gradients),
                "MEAN": self.problem.reduction == "mean",
                "NEED_LOSS": partial is not None,
                "INCOMING": grad is not None,
                "SKIP_ONE": skip_one,
                "WIDE": is_wide(*self.counts),
            },
        )

    def sum_call(self, partial: Tensor, loss: Tensor) -> KernelCall:
        """The launch that adds the partial sums."""
        from . import triton_kernels

        return KernelCall(
            triton_kernels.sum_programs,
            (1,),
            {"partial_ptr": partial, "loss_ptr": loss, "programs": partial.numel()},
            {"BLOCK": _BLOCK},
        )

    def elements_call(
        self,
        operands: Sequence[Tensor],
        grad: Tensor | None,
        loss: Tensor | None,
        gradients: Sequence[Tensor | None],
    ) -> KernelCall:
        """The launch that fills an unreduced loss, or its gradients where `grad` is given."""
        from . import triton_kernels

        first = operands[0]
        count = self.counts[0]
        return KernelCall(
            triton_kernels.gan_loss_elements,
            (-(-count // self.block),),
            {
                "operands": tuple(operands),
                "gradients": _pointers(gradients, operands),
                "grad_ptr": first if grad is None else grad,
                "loss_ptr": first if loss is None else loss,
                "count": count,
                **self.numbers,
            },
            {
                **self._constants(gradients),
                "INCOMING": grad is not None,
                "WIDE": is_wide(count),
            },
        )

    def _constants(self, gradients: Sequence[Tensor | None]) -> dict[str, Any]:
        import triton.language as tl

        terms = len(self.counts)
        wanted = tuple(x is not None for x in gradients) or (False,) * (self.step * terms)
        double = self.operand_dtype == torch.float64
        return {
            "FUNCTION": self.problem.function,
            "OPERANDS": self.step,
            "TERMS": terms,
            "WANTED": wanted,
            "ACC": tl.float64 if double else tl.float32,
            "BLOCK": self.block,
        }


def _launch(call: KernelCall, traced: bool) -> None:
    (flat(call) if traced else call)()


def flat(call: KernelCall) -> KernelCall:
    """The same launch without tuples of tensors, which torch.compile does not look into."""
    from . import triton_kernels

    arguments: dict[str, Any] = {}
    constants = dict(call.constants)
    for name, value in call.arguments.items():
        if name in ("operands", "gradients"):
            for slot in range(MOST_TRACED):
                # what is past the last is neither read nor written
                arguments[f"{name[:-1]}_{slot}"] = value[min(slot, len(value) - 1)]
        elif isinstance(value, tuple):
            constants[name.upper()] = value
        else:
            arguments[name] = value
    reduced = call.kernel is triton_kernels.gan_loss_reduced
    kernel = (
        triton_kernels.gan_loss_reduced_flat if reduced else triton_kernels.gan_loss_elements_flat
    )
    return KernelCall(kernel, call.grid, arguments, constants)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _two_floats(value: float) -> tuple[float, float]:
    """`value` as a float32 and what that leaves: Triton passes floats in 32 bits."""
    (nearest,) = struct.unpack("f", struct.pack("f", value))
    return nearest, value - nearest


def _room(operands: Sequence[Tensor], wanted: tuple[bool, ...] | None) -> tuple[Tensor | None, ...]:
    if wanted is None:
        return ()
    return tuple(
        torch.empty_like(x) if want else None for x, want in zip(operands, wanted, strict=True)
    )


def _pointers(gradients: Sequence[Tensor | None], operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A pointer an operand: its gradient's, or the operand's own, which is not written then."""
    if not gradients:
        return tuple(operands)
    return tuple(x if g is None else g for g, x in zip(gradients, operands, strict=True))
