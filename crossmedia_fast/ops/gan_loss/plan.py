"""Chooses the backend of a GAN loss.

A pure function of dtype, device and settings: nothing here looks at a value or a pointer, so that
`explain` can print the same decision that a call takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...backends import resolve


@dataclass(frozen=True)
class Plan:
    """Which backend runs, and why the others don't."""

    backend: str
    algorithm: str
    reason: str
    rejected_backends: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"backend {self.backend}, algorithm {self.algorithm}: {self.reason}"]
        lines += [f"  not backend {name}: {why}" for name, why in self.rejected_backends]
        return "\n".join(lines)


def make_plan(dtype: torch.dtype, device: torch.device, backend: str | None) -> Plan:
    """The plan of one call."""
    chosen, rejected = resolve(backend, device, dtype)
    if chosen == "reference":
        algorithm, reason = "reference", "PyTorch's own functions, one after another"
    else:
        algorithm, reason = "one_pass", "loss and gradients in one native pass over the logits"
    return Plan(chosen, algorithm, reason, tuple(sorted(rejected.items())))
