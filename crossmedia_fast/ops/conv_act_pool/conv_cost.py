"""What convolutions cost, algorithm by algorithm: the model by which the plan chooses.

In multiply-adds of a kernel whose vectors are full, fitted to measured times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModeCosts:
    """Of a convolution in inference, or of a third of a training step's three."""

    # PyTorch's: packing a weight, at every call; a value of a contiguous input, brought to a format
    # of its own; an output, which is written and read once more for what follows; and the calls
    # themselves.
    direct_packing: float
    direct_reorder: float
    direct_output: float
    direct_call: float
    # Winograd's: a value of the transformed input, and of the products; a transformed weight, whose
    # reading takes the time where few positions share it (kept ones are read once more to see that
    # they are still the same); and the call.
    data_transform: float
    output_transform: float
    weight: float
    winograd_call: float
    # Those of a product of packed patches: a multiply-add; a value of a patch, in whole vectors,
    # and a run of them; a weight, which is packed where it is not kept; a value of the input, of
    # the output, and of both where they are contiguous; and the call.
    patch_product: float
    patch_packing: float
    patch_run: float
    patch_weight: float
    patch_input: float
    patch_output: float
    patch_reorder: float
    patch_call: float


@dataclass(frozen=True)
class Costs:
    """Of an instruction set's kernels and of PyTorch's convolution, in multiply-adds."""

    lanes: int  # of a vector
    inference: ModeCosts
    training: ModeCosts
    least_gain: float  # what Winograd must save to be chosen: it rounds more
    # Where channels are few: a transform of a value, and a direct product with its idle lanes and
    # edges, in multiply-adds of Winograd's products; and a weight of the direct kernel, which packs
    # them at every call.
    few_transform: int
    few_product: float
    few_packing: float


# Measured on a Zen 4, 520 random layers in inference and 500 in training, of 6 to 512 channels: on
# average 3% and 4% slower than the best of the three. Weights that come from memory, as they do in
# a network and did not there, are 4 more. Few channels on 312 layers of 1 to 8: on average 1%
# slower than the better of the two. Their direct kernel and patches on 406 layers, and 272 with
# AVX2: 2% slower than the better of the two.
AVX512 = Costs(
    lanes=16,
    inference=ModeCosts(
        direct_packing=33,
        direct_reorder=20,
        direct_output=3,
        direct_call=5_600_000,
        data_transform=8,
        output_transform=14,
        weight=7,
        winograd_call=2_000_000,
        patch_product=1,
        patch_packing=4,
        patch_run=160,
        patch_weight=16,
        patch_input=0,
        patch_output=12,
        patch_reorder=11,
        patch_call=2_000_000,
    ),
    training=ModeCosts(
        direct_packing=82,
        direct_reorder=70,
        direct_output=13,
        direct_call=11_700_000,
        data_transform=14,
        output_transform=17,
        weight=9,
        winograd_call=5_000_000,
        patch_product=1,
        patch_packing=5,
        patch_run=60,
        patch_weight=45,
        patch_input=26,
        patch_output=3,
        patch_reorder=46,
        patch_call=4_800_000,
    ),
    least_gain=1.05,
    few_transform=10,
    few_product=1.2,
    few_packing=120,
)
# Patches' beside PyTorch's measured with AVX2 on a Zen 4, 440 layers in inference and 320 in
# training. Winograd's and PyTorch's measured on a Zen 1, 423 layers of 9 to 512 channels, and
# checked on 257 others: on average 2% slower than the better of the two in inference and in
# training, where AVX-512's would be 22% and 6%. A kept weight is dearer than it was there, because
# in a network it comes from memory. Few channels on a Zen 3, 563 layers of 1 to 8: 2% slower than
# the better of the two, where AVX-512's would be 4%. The reordering on a Zen 3, 1139 contiguous
# layers of 16 to 512 channels, small ones and strided ones: 0.3% slower than the better of the two,
# 4 to 5% without it.
AVX2 = Costs(
    lanes=8,
    inference=ModeCosts(
        direct_packing=30,
        direct_reorder=140,
        direct_output=40,
        direct_call=4_000_000,
        data_transform=25,
        output_transform=5,
        weight=8,
        winograd_call=0,
        patch_product=0.89,
        patch_packing=9,
        patch_run=110,
        patch_weight=14,
        patch_input=0,
        patch_output=15,
        patch_reorder=15,
        patch_call=600_000,
    ),
    training=ModeCosts(
        direct_packing=30,
        direct_reorder=140,
        direct_output=40,
        direct_call=4_000_000,
        data_transform=25,
        output_transform=5,
        weight=14,
        winograd_call=0,
        patch_product=0.8,
        patch_packing=11,
        patch_run=56,
        patch_weight=22,
        patch_input=33,
        patch_output=25,
        patch_reorder=18,
        patch_call=0,
    ),
    least_gain=1.0,
    few_transform=20,
    few_product=1.2,
    few_packing=54,
)

_MOST_TAPS = 5  # of a part of a filter, whose products Winograd's add up
LEAST_GAIN = 1.1  # of a gradient of few channels
# A few positions alone PyTorch's convolution computes without packing, and of large weights (1024
# filters of 1024×3×3) nothing is left in a cache: there fresh weights cost more.
_DEAR_FRESH_WEIGHT = 20
_FEW_POSITIONS = 16
# Above this size the C library takes the memory for packed weights from the system anew each time,
# and returns it: that costs as many positions' products as this. Measured on 1024 filters of
# 1024×3×3, 8×8 images: 19.8 ms, of which 16 are it. (Patches' in training: 30 ms on 4×4 images.)
_LARGE_WEIGHTS = 32 << 20  # bytes
_LARGE_PACKING = 256
# In training a weight of a filter in parts, each of which adds to what the others left; and what is
# left of all work where filters are fewer than lanes: of the gradients they are none. Winograd's of
# parts loses as much to its transforms. Measured on a Zen 4, 1457 layers of 1 to 64 filters of 3 to
# 9 taps: on average 2.2% slower than the best of the three, 3.5% without them.
_PARTED_WEIGHT = 1.6
_FEW_FILTERS = 0.7
# A product of groups costs PyTorch's more. Measured on a Zen 4, 170 layers of 16 to 96 channels a
# group, and 124 with AVX2: on average 2% and 1% slower than the better of the two.
_GROUPED_PRODUCT = 2
# What is left of a direct product of few channels where a tile of F(2×2) is a pooling window.
_FEW_OF_TILES = 0.6
# Storing an output of their direct kernel, where nothing is pooled.
_FEW_OUTPUT = 13
# dw of few channels: what a transform costs a value, in multiply-adds, where it stays in a cache;
# and what is left of direct products where three of four gradients in a window are known to be 0.
# Measured on a Zen 4, on nine first layers.
_MERGED_TRANSFORM = 12
_SPARSE = 0.45
_MOST_OF_PHASE = 8
_MOST_MERGED_CHANNELS = 64


@dataclass(frozen=True)
class Sizes:
    """What the work of a convolution follows from."""

    x_shape: tuple[int, ...]  # [N, C, H, W]
    w_shape: tuple[int, ...]  # [K, C / groups, R, S]
    z_shape: tuple[int, ...]  # [N, K, H', W']
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    x_channels_last: bool = True

    @property
    def groups(self) -> int:
        return self.x_shape[1] // self.w_shape[1]

    @property
    def positions(self) -> int:
        """Outputs of a filter."""
        return self.x_shape[0] * self.z_shape[2] * self.z_shape[3]

    @property
    def large(self) -> bool:
        return 4 * math.prod(self.w_shape) > _LARGE_WEIGHTS

    def inside(self, axis: int) -> float:
        """The part of an axis's products that are not with padding."""
        length, outputs = self.x_shape[2 + axis], self.z_shape[2 + axis]
        stride, pad, taps = self.stride[axis], self.padding[axis], self.w_shape[2 + axis]
        seen = 0
        for tap in range(taps):
            first = tap * self.dilation[axis] - pad  # where the first output sees it
            last = min((length - 1 - first) // stride + 1, outputs)
            seen += max(last - max(-(first // stride), 0), 0)
        return seen / max(taps * outputs, 1)


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to


def _few_filters(s: Sizes, kept: bool, costs: Costs) -> float:
    return 1 if kept or s.w_shape[0] >= costs.lanes else _FEW_FILTERS


def direct_work(s: Sizes, kept: bool, costs: Costs = AVX512) -> float:
    """Of PyTorch's convolution, which leaves out the products with padding.

    `kept`: whether transformed weights would stay, as they do without gradients.
    """
    mode = costs.inference if kept else costs.training
    # it works in vectors; fewer channels than one holds leave lanes idle
    filters = _round_up(s.w_shape[0], costs.lanes)
    taps = max(s.w_shape[1], costs.lanes) * math.prod(s.w_shape[2:])
    packing = mode.direct_packing + (_LARGE_PACKING if s.large and kept else 0)
    product = _GROUPED_PRODUCT if s.groups > 1 else 1
    work = (product * s.positions * s.inside(0) * s.inside(1) + packing) * taps * filters
    work += mode.direct_output * s.positions * s.w_shape[0] + mode.direct_call
    work += 0 if s.x_channels_last else mode.direct_reorder * math.prod(s.x_shape)
    return _few_filters(s, kept, costs) * work


def patches_work(s: Sizes, kept: bool, costs: Costs = AVX512) -> float:
    """Of a product of packed patches, whose panels leave out rows of padding alone."""
    mode = costs.inference if kept else costs.training
    channels, filters = s.w_shape[1], _round_up(s.w_shape[0], costs.lanes)
    taps = math.prod(s.w_shape[2:])
    products = channels * filters
    if not kept:  # of the gradients too, whose columns are the channels
        products = (products + 2 * _round_up(channels, costs.lanes) * s.w_shape[0]) // 3
    # taps side by side are packed together
    runs = taps if s.dilation[1] > 1 else s.w_shape[2]
    run = taps // runs * channels
    packing = mode.patch_packing * _round_up(run, costs.lanes) + mode.patch_run
    work = s.positions * s.inside(0) * taps * mode.patch_product * products
    work += s.positions * runs * packing
    inputs, outputs = math.prod(s.x_shape), s.positions * s.w_shape[0]
    weight = mode.patch_weight + (_LARGE_PACKING if s.large and not kept else 0)
    work += weight * taps * channels * filters + mode.patch_call
    work += mode.patch_input * inputs + mode.patch_output * outputs
    return work + (0 if s.x_channels_last else mode.patch_reorder * (inputs + outputs))


def _winograd_cut(w_shape: tuple[int, ...], stride: tuple[int, int]) -> tuple[int, int]:
    """r of F(4, r), and into how many parts of r taps a phase's filter is cut."""
    along = [-(-kernel // step) for kernel, step in zip(w_shape[2:], stride, strict=True)]
    most = max(along)
    taps = -(-most // -(-most // _MOST_TAPS))
    return taps, math.prod(-(-count // taps) for count in along)


def winograd_work(s: Sizes, outputs: int, kept: bool, costs: Costs = AVX512) -> float:
    """Of Winograd's F(m×m), `outputs` = m; 4 is 2 for 3 taps where few tiles share many weights."""
    mode = costs.inference if kept else costs.training
    # of all groups, each in vectors of its own
    filters = s.groups * _round_up(s.w_shape[0] // s.groups, costs.lanes)
    channels = s.groups * _round_up(s.w_shape[1], costs.lanes)
    taps, parts = _winograd_cut(s.w_shape, s.stride)
    phases = s.stride[0] * s.stride[1] * parts
    products = s.w_shape[1] * phases * filters
    transforms = channels * phases * mode.data_transform + filters * mode.output_transform
    weights = max(s.w_shape[1], costs.lanes) * math.prod(s.w_shape[2:]) * filters
    weight = mode.weight * (_PARTED_WEIGHT if parts > 1 and not kept else 1)
    if not kept and (s.large or s.positions < _FEW_POSITIONS):
        weight = max(weight, _DEAR_FRESH_WEIGHT)

    def work(m: int) -> float:
        points = (m + taps - 1) ** 2
        tiles = s.x_shape[0] * -(-s.z_shape[2] // m) * -(-s.z_shape[3] // m)
        return points * tiles * (products + transforms) + weight * (points * products + weights)

    few = _few_filters(s, kept, costs) if parts == 1 else 1
    least = min(map(work, (4, 2) if outputs == 4 and taps == 3 else (outputs,)))
    return few * (least + mode.winograd_call)


def winograd_gain(s: Sizes, outputs: int, kept: bool = False, costs: Costs = AVX512) -> float:
    """How many times less work Winograd's F(m×m) is than PyTorch's convolution, about."""
    return direct_work(s, kept, costs) / winograd_work(s, outputs, kept, costs)


def few_channels_work(s: Sizes, costs: Costs = AVX512) -> float:
    """Of the direct kernel of few channels."""
    filters = _round_up(s.w_shape[0], costs.lanes)
    taps = math.prod(s.w_shape[1:])
    product, call = costs.inference.patch_product, costs.inference.patch_call
    work = product * (s.positions + costs.few_packing) * taps * filters + call
    return work + _FEW_OUTPUT * s.positions * s.w_shape[0]


def _few_channels_ratio(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    stride: tuple[int, int],
    lanes: int,  # of a vector
    vectors: int,  # of the channels of all phases of a part of the filter
    transform: int,  # what one costs a value, in multiply-adds
) -> float:
    """Direct convolution's multiply-adds over the work of Winograd's F(4×4) of few channels."""
    outputs = 4
    taps, parts = _winograd_cut(w_shape, stride)
    filters = -(-w_shape[0] // lanes) * lanes
    tiles = x_shape[0] * -(-z_shape[2] // outputs) * -(-z_shape[3] // outputs)
    products = x_shape[1] * stride[0] * stride[1] * parts * filters
    transforms = transform * (vectors * parts * lanes + filters)
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
    cut = _winograd_cut(w_shape, stride)[1] > 1
    if x_shape[1] > _MOST_OF_PHASE or channels > _MOST_MERGED_CHANNELS or cut:
        return 0.0
    left = _SPARSE if pooled_by_twos else 1.0
    lanes = AVX512.lanes
    return left * _few_channels_ratio(
        x_shape, w_shape, z_shape, stride, lanes, -(-channels // lanes), _MERGED_TRANSFORM
    )
