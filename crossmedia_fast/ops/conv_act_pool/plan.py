"""Chooses the backend and the algorithm of a conv_act_pool2d call.

A pure function of shapes, dtype, layout, device and settings: nothing here looks at a value or a
pointer, so that `explain` can print the same decision that a call takes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .conv_cost import (
    AVX512,
    Costs,
    Sizes,
    direct_work,
    few_channels_gain,
    few_channels_work,
    patches_work,
    winograd_work,
)

# Those of the CPU's native module, each a kernel family, in the order in which they are tried.
CONVOLUTIONS = (
    "few_channels",
    "depthwise",
    "implicit_gemm",
    "pointwise",
    "winograd_f6",
    "winograd",
    "patches",
)

# What each backend has, in the order in which it is tried.
ALGORITHMS = {
    "cpu": (
        "folded",
        "direct",
        *CONVOLUTIONS[:-1],
        "space_to_batch",
        "patches",
        "convolution",
        "epilogue",
    ),
    "cuda": ("implicit_gemm", "convolution", "epilogue"),
    "triton": ("implicit_gemm", "convolution", "epilogue"),
    "reference": ("reference",),
}

_REASONS = {
    "folded": "the average is folded into the weights: a convolution at the windows' stride",
    "space_to_batch": "dilation: every d-th pixel is an image of its own, convolved without",
    "direct": "a small problem: our own convolution, then the same pass, as one graph node",
    "few_channels": "few input channels: direct convolution, pooled in registers",
    "depthwise": "each filter has a channel, or a few, of its own: one pass over input and output",
    "pointwise": "1×1 filters: a matrix product with what follows in registers",
    "winograd": "Winograd's F(4×4), pooled in registers: a fraction of the multiplications",
    "winograd_f6": "Winograd's F(6×6): fewer multiplications still, and more rounding",
    "implicit_gemm": "an implicit matrix product on matrix units, and what follows beside it",
    "convolution": "PyTorch's convolution alone: neither activation nor pooling follows it",
    "epilogue": "PyTorch's convolution, then bias, activation and pooling in one native pass",
    "patches": "a matrix product of patches and filters, with what follows in registers",
    "reference": "PyTorch's own functions, one after another",
}
_KEPT = "; its output is kept for backward, and what follows is a native pass of its own"


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
    backend: str,
    rejected_backends: Mapping[str, str],
    nothing_to_fuse: bool,
    why_not: Mapping[str, str],
    keeps_output: Collection[str] = (),
    algorithm: str | None = None,
) -> Plan:
    """The plan of one call; `algorithm` forces one (for tests), raising where it can't run.

    `why_not`: of the backend's own algorithms, why they don't take these shapes; "" or absent where
    they do. `keeps_output`: those whose own output is kept for backward.
    """
    algorithms = ALGORITHMS[backend]
    refusals = {name: why for name, why in why_not.items() if why}
    if nothing_to_fuse:
        refusals["direct"] = refusals["epilogue"] = "nothing follows the convolution"
        refusals.pop("convolution", None)
    else:
        refusals["convolution"] = "activation or pooling follows the convolution"
        refusals.pop("epilogue", None)
    refusals.pop("reference", None)
    for names in ALGORITHMS.values():
        for name in names:
            if name not in algorithms:
                refusals[name] = f"backend {backend!r} does not have it"
    picked = algorithm or next(name for name in algorithms if name not in refusals)
    if picked not in _REASONS:
        raise ValueError(f"algorithm must be one of {', '.join(_REASONS)}, got {picked!r}")
    if picked in refusals:
        raise NotImplementedError(f"algorithm {picked!r} can't run here: {refusals[picked]}")
    for name in algorithms:
        if name != picked:
            refusals.setdefault(name, f"algorithm {picked!r} comes first")
    return Plan(
        backend,
        picked,
        _REASONS[picked] + (_KEPT if picked in keeps_output else ""),
        tuple(sorted(rejected_backends.items())),
        tuple(sorted(refusals.items())),
    )


# What products of patches must save over PyTorch's convolution: nothing where weights are packed
# once, for there they are slower more seldom than the model says; in training more often.
_LEAST_PATCHES_GAIN = 0.92
_LEAST_TRAINING_GAIN = 1.15
# What products of patches must save over the kernel of few channels that pools in registers.
_LEAST_POOLED_GAIN = 1.5
# In training: values of a filter, and positions for each, of which a filter's packing is less than
# the products. Measured on a Zen 4, 154 layers: 1% slower than the better of the two.
_LEAST_DEPTH = 64
_MOST_POSITIONS = 2
# Positions that must share a 1×1 filter's weights to be worth the look at whether they changed: of
# one alone PyTorch's convolution is a product of a matrix and a vector, of 2 to 15 (what a global
# pooling gives, of a batch) it takes 2 to 8 times as long as ours. Measured on a Zen 4.
_LEAST_POSITIONS = 2
# A product of float32 on a matrix unit is six of bfloat16, at 16 times the rate of multiply-adds;
# half as much again, because processors slow the unit down where many cores use theirs. Measured on
# a cloud's Xeon: 1 to 3 times as slow, from one second to the next, with multiply-adds as ever.
_MATRIX_PRODUCT = 1.5 * 6 / 16
_MATRIX_TILE = 32  # channels and filters of a tile
_MATRIX_FRAME = 8  # what cutting a value into its parts costs, in multiply-adds
_MATRIX_OUTPUT = 16  # what an output costs beside its products
_LEAST_MATRIX_GAIN = 1.3
_LEAST_MATRIX_POSITIONS = 256  # that must share the filters' weights


def matrix_unit_gain(
    w_shape: tuple[int, ...],  # [K, C, R, S]
    stride: tuple[int, int],
) -> float:
    """How many times less time a matrix unit takes than multiply-adds, about."""
    filters, channels = w_shape[:2]
    padded_filters = -(-filters // _MATRIX_TILE) * _MATRIX_TILE
    padded_channels = -(-channels // _MATRIX_TILE) * _MATRIX_TILE
    taps = w_shape[2] * w_shape[3]
    products = _MATRIX_PRODUCT * padded_filters * padded_channels * taps
    frame = _MATRIX_FRAME * padded_channels * min(taps, stride[0] * stride[1])
    return filters * channels * taps / (products + frame + _MATRIX_OUTPUT * padded_filters)


def _why_no_matrix_unit(sizes: Sizes, takes: Collection[str], has_matrix_unit: bool) -> str:
    """Why "implicit_gemm" is no gain; `takes`: the algorithms that would run otherwise."""
    if not has_matrix_unit:
        return "is for a processor with a matrix unit (AMX)"
    if "few_channels" in takes:
        return "few input channels have a kernel of their own"
    if "winograd" in takes:
        return "Winograd's F(4×4) is less work"
    if "pointwise" in takes:
        return "1×1 filters have a kernel of their own"
    if sizes.positions < _LEAST_MATRIX_POSITIONS:
        return f"is for at least {_LEAST_MATRIX_POSITIONS} positions, not {sizes.positions}"
    gain = matrix_unit_gain(sizes.w_shape, sizes.stride)
    if gain < _LEAST_MATRIX_GAIN:
        return f"saves too little: {gain:.2f} times the speed of multiply-adds"
    return ""


def why_not_by_cost(
    sizes: Sizes,
    precision: str,
    needs_grad: bool,
    pooled: bool,
    pooled_by_twos: bool,  # maxima of 2×2 windows at stride 2
    takes: Collection[str],
    has_matrix_unit: bool,
    costs: Costs = AVX512,
) -> dict[str, str]:
    """Algorithms that are no gain for this convolution, and why.

    `takes`: those of the backend's own that can take it.
    """
    refusals = {}
    one_pixel = sizes.x_shape[2:] == (1, 1)  # it reads the weights where they are
    if sizes.positions < _LEAST_POSITIONS and not one_pixel and not needs_grad:
        reason = f"is for at least {_LEAST_POSITIONS} positions, not {sizes.positions}"
        refusals["pointwise"] = reason
    if sizes.groups > 1 and sizes.x_channels_last:
        refusals["pointwise"] = "PyTorch's convolution is as fast for groups in channels_last"
    if sizes.groups > 1 and needs_grad:
        refusals["patches"] = "has no gradients of groups"
        takes = [name for name in takes if name != "patches"]
    if precision == "highest":
        reason = "conv_precision is 'highest': the transforms round"
        refusals["winograd"] = refusals["winograd_f6"] = reason
    else:
        refusals |= _why_no_winograd(sizes, precision, needs_grad, pooled_by_twos, takes, costs)
    if {"few_channels", "patches"} <= set(takes) - set(refusals):
        if _are_patches_less_work(sizes, needs_grad, pooled, costs):
            refusals["few_channels"] = "filters of this size are less work as products of patches"
        else:
            refusals["patches"] = "few input channels have a kernel of their own"
    rest = set(takes) - set(refusals)
    refusals["implicit_gemm"] = _why_no_matrix_unit(sizes, rest, has_matrix_unit)
    if not {"few_channels", "depthwise", "pointwise"} & rest and "patches" in rest:
        gain = direct_work(sizes, not needs_grad, costs)
        gain /= patches_work(sizes, not needs_grad, costs)
        if gain < (_LEAST_TRAINING_GAIN if needs_grad else _LEAST_PATCHES_GAIN):
            refusals["patches"] = f"would be {gain:.2f} times as fast as PyTorch's convolution"
    return refusals


def _are_patches_less_work(sizes: Sizes, needs_grad: bool, pooled: bool, costs: Costs) -> bool:
    """Less than the direct kernel of few channels."""
    if needs_grad:
        depth = math.prod(sizes.w_shape[1:])
        return depth >= _LEAST_DEPTH and sizes.positions < _MOST_POSITIONS * depth
    gain = few_channels_work(sizes, costs) / patches_work(sizes, True, costs)
    return gain >= (_LEAST_POOLED_GAIN if pooled else 1)


def _why_no_winograd(
    sizes: Sizes,
    precision: str,
    needs_grad: bool,
    pooled_by_twos: bool,
    takes: Collection[str],
    costs: Costs,
) -> dict[str, str]:
    """Why Winograd's algorithms are no gain, or the direct ones none beside them."""
    kept = not needs_grad
    refusals = {}
    rival, whose = direct_work(sizes, kept, costs), "PyTorch's convolution"
    if "patches" in takes and (work := patches_work(sizes, kept, costs)) < rival:
        rival, whose = work, "a product of patches"
    gain = rival / winograd_work(sizes, 4, kept, costs)
    if "few_channels" in takes and "winograd" in takes:
        shapes = sizes.x_shape, sizes.w_shape, sizes.z_shape
        gain = few_channels_gain(*shapes, sizes.stride, pooled_by_twos, costs)
        if gain > 1:
            reason = "Winograd's F(4×4) is less work for filters of this size"
            refusals["few_channels"] = refusals["depthwise"] = reason
        else:
            refusals["winograd"] = "few input channels have a kernel that is less work"
    elif gain < costs.least_gain:
        refusals["winograd"] = f"saves too little: {gain:.2f} times the speed of {whose}"
    if precision != "medium":
        refusals["winograd_f6"] = "conv_precision is 'high': F(6×6) rounds more"
    elif needs_grad:
        refusals["winograd_f6"] = "the gradients are F(4×4)'s"
    elif rival / winograd_work(sizes, 6, True, costs) < max(gain, costs.least_gain):
        refusals["winograd_f6"] = "saves less than F(4×4) or direct convolution"
    return refusals
