"""Chooses the backend and the algorithm of a conv_act_pool2d call.

A pure function of shapes, dtype, layout, device and settings: nothing here looks at a value or a
pointer, so that `explain` can print the same decision that a call takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ... import backends
from .arguments import Conv2d, Pool2d

# Those of the native module, each a kernel family, in the order in which they are tried.
CONVOLUTIONS = ("few_channels", "depthwise", "pointwise", "winograd")
ALGORITHMS = ("direct", *CONVOLUTIONS, "convolution", "epilogue", "reference")

_REASONS = {
    "direct": "a small problem: our own convolution, then the same pass, as one graph node",
    "few_channels": "few input channels: direct convolution, pooled in registers",
    "depthwise": "a channel of its own for each filter: one pass over input and output",
    "pointwise": "1×1 filters: a matrix product with what follows in registers",
    "winograd": "Winograd's F(4×4), pooled in registers: a fraction of the multiplications",
    "convolution": "PyTorch's convolution alone: neither activation nor pooling follows it",
    "epilogue": "PyTorch's convolution, then bias, activation and pooling in one native pass",
    "reference": "PyTorch's own functions, one after another",
}


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
    why_not: Mapping[str, str],
    algorithm: str | None = None,
) -> Plan:
    """The plan of one call; `algorithm` forces one (for tests), raising where it can't run.

    `why_not`: of "direct" and CONVOLUTIONS, why they don't take these shapes; absent where they do.
    """
    chosen, rejected_backends = backends.resolve(backend, device, dtype)
    nothing_to_fuse = pool.activation == "identity" and pool.pool == "none"

    refusals: dict[str, str] = {}
    if chosen == "reference":
        refusals = dict.fromkeys(ALGORITHMS[:-1], "belongs to backend cpu")
    else:
        refusals.update(why_not)
        refusals["reference"] = "backend cpu has a native algorithm for every argument"
        if nothing_to_fuse:
            refusals["direct"] = refusals["epilogue"] = "nothing follows the convolution"
        else:
            refusals["convolution"] = "activation or pooling follows the convolution"
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
        _REASONS[picked],
        tuple(sorted(rejected_backends.items())),
        tuple(sorted(refusals.items())),
    )


# Of what a transform costs a value, in multiply-adds; and of what Winograd must save to be chosen.
_TRANSFORM = 25
_LEAST_GAIN = 1.1


def why_not_winograd(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    conv: Conv2d,
    precision: str,
) -> str:
    """Why Winograd's F(4×4) is no gain for this convolution; "" where it is."""
    if precision == "highest":
        return "conv_precision is 'highest': the transforms round"
    _, channels, _, _ = x_shape
    filters, _, kernel_height, kernel_width = w_shape
    taps = max(
        -(-kernel_height // conv.stride[0]),
        -(-kernel_width // conv.stride[1]),
    )
    phases = conv.stride[0] * conv.stride[1]
    tiles = -(-z_shape[2] // 4) * -(-z_shape[3] // 4)
    frequencies = (taps + 3) ** 2
    products = frequencies * channels * phases * filters
    transforms = frequencies * (channels * phases + filters) * _TRANSFORM
    direct = z_shape[2] * z_shape[3] * channels * filters * kernel_height * kernel_width
    gain = direct / (tiles * (products + transforms))
    if gain < _LEAST_GAIN:
        return f"would save too little: {gain:.2f} times the speed of direct convolution"
    return ""
