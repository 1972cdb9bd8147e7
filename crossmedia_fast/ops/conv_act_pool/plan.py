"""Chooses the backend and the algorithm of a conv_act_pool2d call.

A pure function of shapes, dtype, layout, device and settings: nothing here looks at a value or a
pointer, so that `explain` can print the same decision that a call takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ... import backends
from .arguments import Conv2d, Pool2d

# In the order in which they are tried.
ALGORITHMS = ("convolution", "direct", "epilogue", "reference")


@dataclass(frozen=True)
class Plan:
    """Which backend and algorithm run, and why the others don't."""

    backend: str
    algorithm: str
    reason: str
    rejected_backends: tuple[tuple[str, str], ...]
    rejected_algorithms: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"backend {self.backend}, algorithm {self.algorithm}: {self.reason}"]
        lines += [f"  not backend {name}: {why}" for name, why in self.rejected_backends]
        lines += [f"  not algorithm {name}: {why}" for name, why in self.rejected_algorithms]
        return "\n".join(lines)


def make_plan(
    conv: Conv2d,
    pool: Pool2d,
    dtype: torch.dtype,
    device: torch.device,
    backend: str | None,
    why_not_direct: str,
    algorithm: str | None = None,
) -> Plan:
    """The plan of one call; `algorithm` forces one (for tests), raising where it can't run.

    `why_not_direct` is cpu_direct's word on the shapes: "" where the direct convolution may run.
    """
    chosen, rejected_backends = backends.resolve(backend, device, dtype)
    nothing_to_fuse = pool.activation == "identity" and pool.pool == "none"

    refusals: dict[str, str] = {}
    if chosen == "reference":
        for name in ("convolution", "direct", "epilogue"):
            refusals[name] = "belongs to backend cpu"
    else:
        refusals["reference"] = "backend cpu has a native algorithm for every argument"
        if nothing_to_fuse:
            refusals["direct"] = refusals["epilogue"] = "nothing follows the convolution"
        else:
            refusals["convolution"] = "activation or pooling follows the convolution"
            if why_not_direct:
                refusals["direct"] = why_not_direct
    reasons = {
        "convolution": "PyTorch's convolution alone: neither activation nor pooling follows it",
        "direct": "a small problem: our own convolution, then the same pass, as one graph node",
        "epilogue": "PyTorch's convolution, then bias, activation and pooling in one native pass",
        "reference": "PyTorch's own functions, one after another",
    }
    picked = algorithm or next(name for name in ALGORITHMS if name not in refusals)
    if picked not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {picked!r}")
    if picked in refusals:
        raise NotImplementedError(f"algorithm {picked!r} can't run here: {refusals[picked]}")
    for name in ALGORITHMS:
        if name != picked:
            refusals.setdefault(name, f"algorithm {picked!r} comes first")
    return Plan(
        chosen,
        picked,
        reasons[picked],
        tuple(sorted(rejected_backends.items())),
        tuple(sorted(refusals.items())),
    )
