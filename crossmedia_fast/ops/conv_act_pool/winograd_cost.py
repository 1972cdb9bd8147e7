"""What Winograd's convolutions cost beside direct ones: the model by which the plan chooses.

In multiply-adds of a kernel whose vectors are full, fitted to measured times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Of Winograd's kernels and of PyTorch's convolution, in multiply-adds."""

    lanes: int  # of a vector
    data_transform: int  # of a value of the transformed input
    output_transform: int  # of a value of the products
    # Reading a weight: where few positions share it, that is what takes the time, and they are 4
    # times as many as the filter's (F(4×4, 3×3)). Kept ones are read once more to see that they are
    # still the same. Those that are not kept are transformed part by part in the second cache where
    # few positions share them, and so are those of the gradients.
    weight: int
    fresh_weight: int
    # PyTorch's: packing a weight, at every call; a value of a contiguous input, brought to a format
    # of its own; an output, which is written and read once more for what follows; and the calls
    # themselves.
    direct_packing: int
    direct_reorder: int
    direct_output: int
    direct_call: int
    least_gain: float  # what must be saved to be chosen
    # Where channels are few: a transform of a value, and a direct product with its idle lanes and
    # edges, in multiply-adds of Winograd's products.
    few_transform: int
    few_product: float


# Measured on the Xeon, 13 layers of 49 to 400 positions, between weights that are in the second
# cache and weights that come from memory, as most of a network's do; and in training steps on a
# Zen 4, 30 layers of 4 to 800 positions. Few channels on a Zen 4, 312 layers of 1 to 8: on average
# 1% slower than the better of the two.
AVX512 = Costs(
    lanes=16,
    data_transform=25,
    output_transform=25,
    weight=16,
    fresh_weight=11,
    direct_packing=40,
    direct_reorder=0,
    direct_output=0,
    direct_call=0,
    least_gain=1.1,
    few_transform=10,
    few_product=1.2,
)
# Measured on a Zen 1, 423 layers of 9 to 512 channels, and checked on 257 others (`python -m
# benchmarks.plan_costs`): on average 2% slower than the better of the two in inference and in
# training, where AVX-512's would be 22% and 6%. A kept weight is dearer than it was there, because
# in a network it comes from memory. Few channels on a Zen 3, 563 layers of 1 to 8: 2% slower than
# the better of the two, where AVX-512's would be 4%. The reordering on a Zen 3, 1139 contiguous
# layers of 16 to 512 channels, small ones and strided ones: 0.3% slower than the better of the two,
# 4 to 5% without it. (Not measured on AVX-512.)
AVX2 = Costs(
    lanes=8,
    data_transform=25,
    output_transform=5,
    weight=8,
    fresh_weight=14,
    direct_packing=30,
    direct_reorder=140,
    direct_output=40,
    direct_call=4_000_000,
    least_gain=1.0,
    few_transform=20,
    few_product=1.2,
)

LEAST_GAIN = 1.1  # of a gradient of few channels
# A few positions alone PyTorch's convolution computes without packing, and of large weights (1024
# filters of 1024×3×3) nothing is left in a cache: there fresh weights cost more.
_DEAR_FRESH_WEIGHT = 20
_FEW_POSITIONS = 16
# Above this size the C library takes the memory for packed weights from the system anew each time,
# and returns it: that costs as many positions' products as this. Measured on 1024 filters of
# 1024×3×3, 8×8 images: 19.8 ms, of which 16 are it.
_LARGE_WEIGHTS = 32 << 20  # bytes
_LARGE_PACKING = 256
# What is left of a direct product of few channels where a tile of F(2×2) is a pooling window.
_FEW_OF_TILES = 0.6
# dw of few channels: what a transform costs a value, in multiply-adds, where it stays in a cache;
# and what is left of direct products where three of four gradients in a window are known to be 0.
# Measured on a Zen 4, on nine first layers.
_MERGED_TRANSFORM = 12
_SPARSE = 0.45
_MOST_OF_PHASE = 8
_MOST_MERGED_CHANNELS = 64


def winograd_gain(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C / groups, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    stride: tuple[int, int],
    outputs: int,  # m of F(m×m); 4 is 2 for 3 taps where few tiles share many weights
    kept: bool = False,  # whether transformed weights stay, as they do without gradients
    costs: Costs = AVX512,
    x_channels_last: bool = True,
) -> float:
    """How many times less work Winograd's F(m×m) is than direct convolution, about."""
    # both work in vectors; fewer channels than one holds leave lanes idle
    channels, filters = w_shape[1], -(-w_shape[0] // costs.lanes) * costs.lanes
    kernel_height, kernel_width = w_shape[2:]
    taps = max(-(-kernel_height // stride[0]), -(-kernel_width // stride[1]))
    phases = stride[0] * stride[1]
    products = channels * phases * filters
    transforms = x_shape[1] * phases * costs.data_transform + filters * costs.output_transform
    taps_of_all = max(channels, costs.lanes) * kernel_height * kernel_width
    images = x_shape[0]
    positions = images * z_shape[2] * z_shape[3]
    large = 4 * math.prod(w_shape) > _LARGE_WEIGHTS
    packing = costs.direct_packing + (_LARGE_PACKING if large and kept else 0)
    direct = (positions + packing) * taps_of_all * filters + costs.direct_call
    direct += costs.direct_output * positions * w_shape[0]
    if not x_channels_last:
        direct += costs.direct_reorder * math.prod(x_shape)
    fresh_weight = costs.fresh_weight
    if large or positions < _FEW_POSITIONS:
        fresh_weight = max(fresh_weight, _DEAR_FRESH_WEIGHT)
    weight = costs.weight if kept else fresh_weight

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
    lanes: int,  # of a vector
    vectors: int,  # of the channels of all phases
    transform: int,  # what one costs a value, in multiply-adds
) -> float:
    """Direct convolution's multiply-adds over the work of Winograd's F(4×4) of few channels."""
    outputs = 4
    taps = max(-(-w_shape[2] // stride[0]), -(-w_shape[3] // stride[1]))
    filters = -(-w_shape[0] // lanes) * lanes
    tiles = x_shape[0] * -(-z_shape[2] // outputs) * -(-z_shape[3] // outputs)
    products = x_shape[1] * stride[0] * stride[1] * filters
    transforms = transform * (vectors * lanes + filters)
    direct = math.prod(w_shape[1:]) * filters * x_shape[0] * z_shape[2] * z_shape[3]
    return direct / max((outputs + taps - 1) ** 2 * tiles * (products + transforms), 1)


def few_channels_gain(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    stride: tuple[int, int],
    pooled_by_twos: bool,  # maxima of 2×2 windows at stride 2
    costs: Costs = AVX512,
) -> float:
    """How many times less work Winograd's F(4×4) of few channels is than their direct kernel."""
    # a row of phases is channels of one pixel (csrc/cpu/winograd.h)
    vectors = stride[0] * -(-x_shape[1] * stride[1] // costs.lanes)
    product = costs.few_product
    if pooled_by_twos and w_shape[2:] == (3, 3) and stride == (1, 1) and x_shape[1] in (2, 3, 4):
        product *= _FEW_OF_TILES
    return product * _few_channels_ratio(
        x_shape, w_shape, z_shape, stride, costs.lanes, vectors, costs.few_transform
    )


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
    lanes = AVX512.lanes
    return left * _few_channels_ratio(
        x_shape, w_shape, z_shape, stride, lanes, -(-channels // lanes), _MERGED_TRANSFORM
    )
