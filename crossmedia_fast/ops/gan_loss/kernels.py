"""What a backend offers the losses: the one place that knows the backends' modules.

A backend is a module `<backend>.py` with the class `Launch`, loaded when first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .arguments import OPERANDS, Problem

_MAX_CACHED = 4096


class GanLossLaunch(Protocol):
    """One problem on operands of one size, ready to call."""

    backend: str
    problem: Problem
    dtype: torch.dtype | None  # of the loss, None = the operands'
    unreduced: bool

    def forward(
        self, operands: Sequence[Tensor], wanted: tuple[bool, ...] | None
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and, for an incoming gradient of 1, the gradients that are wanted.

        `wanted` is None where no gradient will be asked for, and with reduction "none".
        """

    def backward(
        self,
        grad: Tensor,  # [] or, with reduction "none", [*]
        operands: Sequence[Tensor],
        wanted: tuple[bool, ...],
        stored: Sequence[Tensor | None] = (),  # forward's gradients, for nobody else to keep
    ) -> Sequence[Tensor | None]:
        """The wanted gradients for any incoming gradient."""


_launches: dict[Any, GanLossLaunch] = {}


def launch_for(
    backend: str,
    problem: Problem,
    operands: Sequence[Tensor],
    dtype: torch.dtype | None = None,  # of the loss, None = the operands'
) -> GanLossLaunch:
    """The cached launch of a problem on operands of these sizes."""
    counts = tuple(x.numel() for x in operands[:: OPERANDS[problem.function]])
    key = (backend, problem, counts, operands[0].dtype, dtype)
    launch = _launches.get(key)
    if launch is None:
        if len(_launches) >= _MAX_CACHED:
            _launches.clear()
        module = importlib.import_module(f".{backend}", __package__)
        launch = _launches[key] = module.Launch(problem, counts, operands[0].dtype, dtype)
    return launch
