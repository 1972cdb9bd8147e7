"""Chooses the backend and the algorithm of a conv_act_pool2d call.

A pure function of shapes, dtype, layout, device and settings: nothing here looks at a value or a
pointer, so that `explain` can print the same decision that a call takes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

# Those of the CPU's native module, each a kernel family, in the order in which they are tried.
CONVOLUTIONS = (
    "few_channels",
    "depthwise",
    "implicit_gemm",
    "pointwise",
    "winograd_f6",
    "winograd",
)

# What each backend has, in the order in which it is tried.
ALGORITHMS = {
    "cpu": ("folded", "direct", *CONVOLUTIONS, "convolution", "epilogue"),
    "cuda": ("implicit_gemm", "convolution", "epilogue"),
    "triton": ("implicit_gemm", "convolution", "epilogue"),
    "reference": ("reference",),
}

_REASONS = {
    "folded": "the average is folded into the weights: a convolution at the windows' stride",
    "direct": "a small problem: our own convolution, then the same pass, as one graph node",
    "few_channels": "few input channels: direct convolution, pooled in registers",
    "depthwise": "a channel of its own for each filter: one pass over input and output",
    "pointwise": "1×1 filters: a matrix product with what follows in registers",
    "winograd": "Winograd's F(4×4), pooled in registers: a fraction of the multiplications",
    "winograd_f6": "Winograd's F(6×6): fewer multiplications still, and more rounding",
    "implicit_gemm": "an implicit matrix product on matrix units, and what follows beside it",
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
    backend: str,
    rejected_backends: Mapping[str, str],
    nothing_to_fuse: bool,
    why_not: Mapping[str, str],
    algorithm: str | None = None,
) -> Plan:
    """The plan of one call; `algorithm` forces one (for tests), raising where it can't run.

    `why_not`: of the backend's own algorithms, why they don't take these shapes; "" or absent where
    they do.
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
        _REASONS[picked],
        tuple(sorted(rejected_backends.items())),
        tuple(sorted(refusals.items())),
    )


# What a transform costs a value, in multiply-adds; and what Winograd must save to be chosen.
_TRANSFORM = 25
LEAST_GAIN = 1.1
_LANES = 16
# What reading a weight of Winograd's costs, in multiply-adds: where few positions share it, that is
# what takes the time, and they are 4 times as many as the filter's (F(4×4, 3×3)). Kept ones are
# read once more to see that they are still the same. PyTorch's convolution packs its weights at
# every call. Both as measured on the Xeon, 13 layers of 49 to 400 positions, between weights that
# are in the second cache and weights that come from memory, as most of a network's do. Those that
# are not kept are transformed part by part in the second cache where few positions share them, and
# so are those of the gradients. As measured in training steps on a Zen 4, 30 layers of 4 to 800
# positions. A few positions alone PyTorch's convolution computes without packing, and of large
# weights (1024 filters of 1024×3×3) nothing is left in a cache: there Winograd gains less.
_WEIGHT = 16
_FRESH_WEIGHT = 11
_DEAR_FRESH_WEIGHT = 20
_FEW_POSITIONS = 16
_PACKING = 40
# Above this size the C library takes the memory for packed weights from the system anew each time,
# and returns it: that costs as many positions' products as this. Measured on 1024 filters of
# 1024×3×3, 8×8 images: 19.8 ms, of which 16 are it.
_LARGE_WEIGHTS = 32 << 20  # bytes
_LARGE_PACKING = 256
# Few channels: what a transform costs a value, in multiply-adds; a direct product, its idle lanes
# and edges counted; and what is left of it where a tile of F(2×2) is a pooling window. Measured on
# a Zen 4 between the two, 312 layers of 1 to 8 channels: on average 1% slower than the better one.
_FEW_TRANSFORM = 10
_FEW_PRODUCT = 1.2
_FEW_OF_TILES = 0.6
# dw of few channels: what a transform costs a value, in multiply-adds, where it stays in a cache;
# and what is left of direct products where three of four gradients in a window are known to be 0.
# Measured on a Zen 4, on nine first layers.
_MERGED_TRANSFORM = 12
_SPARSE = 0.45
_MOST_OF_PHASE = 8
_MOST_MERGED_CHANNELS = 64
# Positions that must share a 1×1 filter's weights to be worth the look at whether they changed.
_LEAST_POSITIONS = 16
# A product of float32 on a matrix unit is six of bfloat16, at 16 times the rate of multiply-adds;
# half as much again, because processors slow the unit down where many cores use theirs. Measured on
# a cloud's Xeon: 1 to 3 times as slow, from one second to the next, with multiply-adds as ever.
_MATRIX_PRODUCT = 1.5 * 6 / 16
_MATRIX_TILE = 32  # channels and filters of a tile
_MATRIX_FRAME = 8  # what cutting a value into its parts costs, in multiply-adds
_MATRIX_OUTPUT = 16  # what an output costs beside its products
_LEAST_MATRIX_GAIN = 1.3
_LEAST_MATRIX_POSITIONS = 256  # that must share the filters' weights


def winograd_gain(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    stride: tuple[int, int],
    outputs: int,  # m of F(m×m); 4 is 2 for 3 taps where few tiles share many weights
    kept: bool = False,  # whether transformed weights stay, as they do without gradients
) -> float:
    """How many times less work Winograd's F(m×m) is than direct convolution, about."""
    # both work in vectors; fewer channels than one holds leave lanes idle
    channels, filters = x_shape[1], -(-w_shape[0] // _LANES) * _LANES
    kernel_height, kernel_width = w_shape[2:]
    taps = max(-(-kernel_height // stride[0]), -(-kernel_width // stride[1]))
    phases = stride[0] * stride[1]
    products = channels * phases * filters
    transforms = (channels * phases + filters) * _TRANSFORM
    taps_of_all = max(channels, _LANES) * kernel_height * kernel_width
    images = x_shape[0]
    positions = images * z_shape[2] * z_shape[3]
    large = 4 * math.prod(w_shape) > _LARGE_WEIGHTS
    packing = _PACKING + (_LARGE_PACKING if large and kept else 0)
    direct = (positions + packing) * taps_of_all * filters
    dear = large or positions < _FEW_POSITIONS
    weight = _WEIGHT if kept else _DEAR_FRESH_WEIGHT if dear else _FRESH_WEIGHT

    def work(m: int) -> float:
        points = (m + taps - 1) ** 2
        tiles = images * -(-z_shape[2] // m) * -(-z_shape[3] // m)
        read = weight * (points * products + taps_of_all * filters)
        return points * tiles * (products + transforms) + read

    choices = (4, 2) if outputs == 4 and taps == 3 else (outputs,)
    return direct / min(map(work, choices))


def _few_channels_ratio(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    stride: tuple[int, int],
    vectors: int,  # of the channels of all phases
    transform: int,  # what one costs a value, in multiply-adds
) -> float:
    """Direct convolution's multiply-adds over the work of Winograd's F(4×4) of few channels."""
    outputs = 4
    taps = max(-(-w_shape[2] // stride[0]), -(-w_shape[3] // stride[1]))
    filters = -(-w_shape[0] // _LANES) * _LANES
    tiles = x_shape[0] * -(-z_shape[2] // outputs) * -(-z_shape[3] // outputs)
    products = x_shape[1] * stride[0] * stride[1] * filters
    transforms = transform * (vectors * _LANES + filters)
    direct = math.prod(w_shape[1:]) * filters * x_shape[0] * z_shape[2] * z_shape[3]
    return direct / max((outputs + taps - 1) ** 2 * tiles * (products + transforms), 1)


def few_channels_gain(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    stride: tuple[int, int],
    pooled_by_twos: bool,  # maxima of 2×2 windows at stride 2
) -> float:
    """How many times less work Winograd's F(4×4) of few channels is than their direct kernel."""
    # a row of phases is channels of one pixel (csrc/cpu/winograd.h)
    vectors = stride[0] * -(-x_shape[1] * stride[1] // _LANES)
    product = _FEW_PRODUCT
    if pooled_by_twos and w_shape[2:] == (3, 3) and stride == (1, 1) and x_shape[1] in (2, 3, 4):
        product *= _FEW_OF_TILES
    return product * _few_channels_ratio(x_shape, w_shape, z_shape, stride, vectors, _FEW_TRANSFORM)


def merged_gradient_gain(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    stride: tuple[int, int],
    pooled_by_twos: bool,  # maxima of 2×2 windows at stride 2
) -> float:
    """How many times less work Winograd's dw of few channels is than the direct one, about.

    All phases of the stride are channels of one position (csrc/cpu/winograd_merged_gradient.h).
    """
    channels = x_shape[1] * stride[0] * stride[1]
    if x_shape[1] > _MOST_OF_PHASE or channels > _MOST_MERGED_CHANNELS:
        return 0.0
    left = _SPARSE if pooled_by_twos else 1.0
    return left * _few_channels_ratio(
        x_shape, w_shape, z_shape, stride, -(-channels // _LANES), _MERGED_TRANSFORM
    )


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


def _why_no_matrix_unit(
    w_shape: tuple[int, ...],
    z_shape: tuple[int, ...],
    stride: tuple[int, int],
    takes: Collection[str],
    has_matrix_unit: bool,
) -> str:
    """Why "implicit_gemm" is no gain; `takes`: the algorithms that would run otherwise."""
    if not has_matrix_unit:
        return "is for a processor with a matrix unit (AMX)"
    if "few_channels" in takes:
        return "few input channels have a kernel of their own"
    if "winograd" in takes:
        return "Winograd's F(4×4) is less work"
    if "pointwise" in takes:
        return "1×1 filters have a kernel of their own"
    positions = z_shape[0] * z_shape[2] * z_shape[3]
    if positions < _LEAST_MATRIX_POSITIONS:
        return f"is for at least {_LEAST_MATRIX_POSITIONS} positions, not {positions}"
    gain = matrix_unit_gain(w_shape, stride)
    if gain < _LEAST_MATRIX_GAIN:
        return f"saves too little: {gain:.2f} times the speed of multiply-adds"
    return ""


def why_not_by_cost(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    z_shape: tuple[int, ...],
    stride: tuple[int, int],
    precision: str,
    needs_grad: bool,
    pooled_by_twos: bool,
    takes: Collection[str],
    has_matrix_unit: bool,
) -> dict[str, str]:
    """Algorithms that are no gain for this convolution, and why.

    `takes`: those of the backend's own that can take it.
    """
    if precision == "highest":
        reason = "conv_precision is 'highest': the transforms round"
        refusals = {"winograd": reason, "winograd_f6": reason}
    else:
        refusals = _why_no_winograd(
            x_shape, w_shape, z_shape, stride, precision, needs_grad, pooled_by_twos, takes
        )
    rest = set(takes) - set(refusals)
    refusals["implicit_gemm"] = _why_no_matrix_unit(w_shape, z_shape, stride, rest, has_matrix_unit)
    return refusals


def _why_no_winograd(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    z_shape: tuple[int, ...],
    stride: tuple[int, int],
    precision: str,
    needs_grad: bool,
    pooled_by_twos: bool,
    takes: Collection[str],
) -> dict[str, str]:
    """Why Winograd's algorithms are no gain, or the direct ones none beside them."""
    gain = winograd_gain(x_shape, w_shape, z_shape, stride, 4, not needs_grad)
    refusals = {}
    positions = z_shape[0] * z_shape[2] * z_shape[3]
    if positions < _LEAST_POSITIONS and not needs_grad:
        refusals["pointwise"] = f"is for at least {_LEAST_POSITIONS} positions, not {positions}"
    if "few_channels" in takes and "winograd" in takes:
        gain = few_channels_gain(x_shape, w_shape, z_shape, stride, pooled_by_twos)
        if gain > 1:
            reason = "Winograd's F(4×4) is less work for filters of this size"
            refusals["few_channels"] = refusals["depthwise"] = reason
        else:
            refusals["winograd"] = "few input channels have a kernel that is less work"
    elif gain < LEAST_GAIN:
        refusals["winograd"] = f"saves too little: {gain:.2f} times direct convolution's speed"
    if precision != "medium":
        refusals["winograd_f6"] = "conv_precision is 'high': F(6×6) rounds more"
    elif needs_grad:
        refusals["winograd_f6"] = "the gradients are F(4×4)'s"
    elif winograd_gain(x_shape, w_shape, z_shape, stride, 6) < max(gain, LEAST_GAIN):
        refusals["winograd_f6"] = "saves less than F(4×4) or direct convolution"
    return refusals
