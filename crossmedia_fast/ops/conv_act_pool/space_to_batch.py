"""A dilated convolution as one without, of more and smaller images: every d-th pixel is one.

Output (d · i + a, d · j + b) sees input pixels (d · · + a, d · · + b) alone: each of the d² phases
is an image of its own, and what is fast without dilation is fast with it. (TensorFlow's
SpaceToBatch and BatchToSpace, after which the algorithm is named.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Conv2d
from .conv_cost import Costs, Sizes, direct_work, patches_work, winograd_work
from .memory_format import as_format, is_channels_last

# What moving a value to its phase or from it costs, in multiply-adds.
_MOVED = 40
# Operations around the convolution that are worth a call of their own.
_CALLS = 4_000_000
_LEAST_GAIN = 1.2


def why_not(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C / groups, R, S]
    z_shape: tuple[int, ...],  # [N, K, H', W']
    conv: Conv2d,
    dtype: torch.dtype,
    precision: str,
    kept: bool,  # whether transformed weights stay, as they do without gradients
    forced: bool,  # cost is no reason against it
    costs: Costs,
) -> str:
    """Why the phases are not images of a batch; "" where they are."""
    if conv.dilation == (1, 1):
        return "is for dilation"
    padding = conv.symmetric_padding(w_shape[2:])
    if conv.stride != (1, 1) or conv.groups != 1 or padding is None:
        return "takes stride and groups 1 and the same padding on both sides alone"
    if dtype != torch.float32:
        return "takes float32 alone"
    if precision == "highest":
        return "conv_precision is 'highest': the transforms round"
    if not 2 <= max(w_shape[2:]) <= 15 or 0 in (*x_shape, *w_shape):
        return "takes filters of 2 to 15 taps and what is not empty alone"
    images = x_shape[0] * conv.dilation[0] * conv.dilation[1]
    inputs, outputs = (
        [-(-n // d) for n, d in zip(shape[2:], conv.dilation, strict=True)]
        for shape in (x_shape, z_shape)
    )
    phases = Sizes((images, x_shape[1], *inputs), w_shape, (images, w_shape[0], *outputs), (1, 1))
    work = winograd_work(phases, 4, kept, costs) + _CALLS
    work += phases.positions * _MOVED * (w_shape[0] + w_shape[1])
    whole = Sizes(x_shape, w_shape, z_shape, (1, 1), padding, conv.dilation)
    gain = min(direct_work(whole, kept, costs), patches_work(whole, kept, costs)) / work
    if gain < _LEAST_GAIN and not forced:
        return f"saves too little: {gain:.2f} times direct convolution's speed"
    return ""


def to_phases(x: Tensor, dilation: tuple[int, int]) -> Tensor:
    """[N, C, H, W], H and W multiples of the dilation -> [N · d · e, C, H / d, W / e], in the same
    memory format."""
    (batch, channels, height, width), (d, e) = x.shape, dilation
    rows, columns = height // d, width // e
    if is_channels_last(x):
        cut = x.permute(0, 2, 3, 1).view(batch, rows, d, columns, e, channels)
        moved = (
            cut.permute(0, 2, 4, 1, 3, 5).contiguous().view(batch * d * e, rows, columns, channels)
        )
        return moved.permute(0, 3, 1, 2)
    cut = x.reshape(batch, channels, rows, d, columns, e)
    return cut.permute(0, 3, 5, 1, 2, 4).contiguous().view(batch * d * e, channels, rows, columns)


def from_phases(z: Tensor, dilation: tuple[int, int]) -> Tensor:
    """The inverse of `to_phases`."""
    (images, channels, rows, columns), (d, e) = z.shape, dilation
    batch = images // (d * e)
    if is_channels_last(z):
        cut = z.permute(0, 2, 3, 1).view(batch, d, e, rows, columns, channels)
        moved = (
            cut.permute(0, 3, 1, 4, 2, 5).contiguous().view(batch, rows * d, columns * e, channels)
        )
        return moved.permute(0, 3, 1, 2)
    cut = z.view(batch, d, e, channels, rows, columns)
    return cut.permute(0, 3, 4, 1, 5, 2).contiguous().view(batch, channels, rows * d, columns * e)


def run(
    convolve: Callable[[Tensor, tuple[int, int]], Tensor],  # phases and their padding -> theirs
    x: Tensor,  # [N, C, H, W]
    taps: tuple[int, int],
    conv: Conv2d,
) -> Tensor:
    """The convolution's output [N, K, H', W'], or of what `convolve` does to it."""
    padding = conv.symmetric_padding(taps)
    assert padding is not None
    sizes = list(zip(x.shape[2:], padding, conv.dilation, taps, strict=True))
    inner = all(p % d == 0 for _, p, d, _ in sizes)  # whether whole phases are padded alike
    before = [0 if inner else p for p in padding]
    # whole phases: what is added behind them is padding too, or gives what is cut off below
    behind = [p + -(n + 2 * p) % d for p, (n, _, d, _) in zip(before, sizes, strict=True)]
    if any((*before, *behind)):
        x = F.pad(x, (before[1], behind[1], before[0], behind[0]))
    d, e = conv.dilation
    of_phases = (padding[0] // d, padding[1] // e) if inner else (0, 0)
    z = from_phases(convolve(to_phases(x, conv.dilation), of_phases), conv.dilation)
    height, width = (n + 2 * p - d * (r - 1) for n, p, d, r in sizes)
    return as_format(z[:, :, :height, :width], is_channels_last(z))
