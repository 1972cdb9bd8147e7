"""float16 and bfloat16 through the float32 kernels: widened on the way in, rounded once at the end.

Everything in between (products, sums, bias, activation, the comparison of a pooling) is float32, so
the result rounds less than PyTorch's, which rounds the convolution's output and then what follows.
What backward needs is kept in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import cpu_weights
from .conv_cost import Sizes, winograd_gain
from .cpu_conv import FusedConv2d
from .kernels import Call
from .memory_format import dense_strides

HALF_DTYPES = (torch.float16, torch.bfloat16)

# Peak of the half type's dot products over float32's multiply-adds, by what the processor has.
_AVX512_BF16_PEAK = 2.0
_NO_UNIT = 1.0
# What Winograd must save beyond that: the widening costs passes, twice as many in training.
_LEAST_GAIN = 1.1
_LEAST_GAIN_TRAINING = 1.25
_FEW_CHANNELS = 16
# Up to here the library's call in a half type costs more than the arithmetic (measured: 50 to 100
# microseconds, backward several times as much).
_SMALL = 8_000_000  # multiply-adds
_WIDENED_BYTES = 8 << 20  # of input and output at a time


def library_peak(dtype: torch.dtype) -> float:
    """How many times float32's arithmetic peak PyTorch's convolution (oneDNN) has in `dtype`.

    Without a unit for the type it converts, in bfloat16 about as fast as float32 and in float16
    (measured on AMD Zen 5) ten times slower. Infinite with AMX: nothing in float32 comes near.
    """
    cpu = torch.cpu
    if dtype == torch.float16:
        fast = torch.ops.mkldnn._is_mkldnn_fp16_supported()
        return float("inf") if fast else _NO_UNIT
    if cpu._is_amx_tile_supported():
        return float("inf")
    return _AVX512_BF16_PEAK if cpu._is_avx512_bf16_supported() else _NO_UNIT


def why_not(algorithm: str, dtype: torch.dtype, call: Call) -> str:
    """Why `algorithm` in float32 gains nothing over PyTorch in `dtype`; "" where it does."""
    peak = library_peak(dtype)
    if peak == float("inf"):
        return f"PyTorch's convolution has the processor's matrix units for {dtype}"
    if peak == _NO_UNIT or _multiply_adds(call) <= _SMALL:
        return ""
    bound = f"is bound by memory, and {dtype} is half of it"
    if algorithm in ("pointwise", "depthwise"):
        return bound
    if algorithm == "patches":
        return f"saves no work, and PyTorch has {peak:g} times the peak in {dtype}"
    pooled = call.pool.pool != "none"
    if algorithm == "few_channels":
        return "" if pooled else bound
    if call.x_shape[1] < _FEW_CHANNELS and (call.needs_grad or not pooled):
        return bound
    outputs = 6 if algorithm == "winograd_f6" else 4
    sizes = Sizes(call.x_shape, call.w_shape, call.z_shape, call.conv.stride)
    gain = winograd_gain(sizes, outputs)
    if gain < peak * (_LEAST_GAIN_TRAINING if call.needs_grad else _LEAST_GAIN):
        return (
            f"saves {gain:.2f} times the work, and PyTorch has {peak:g} times the peak in {dtype}"
        )
    return ""


def _multiply_adds(call: Call) -> int:
    """Those of direct convolution."""
    return math.prod(call.z_shape) * math.prod(call.w_shape[1:])


class HalfConv2d:
    """A float32 convolution with what follows it, of and for half types (kernels.NativeConv).

    Takes operands in float32 too, as autocast hands them over: nothing is rounded before the end.
    A few images are widened at a time, so that what is float32 stays in the caches.
    """

    backend = "cpu"
    __slots__ = ("conv", "dtype", "fused", "pool", "rest", "x_shape", "y_shape")

    def __init__(
        self,
        make: Callable[[int], FusedConv2d],  # for so many images
        x_shape: tuple[int, ...],  # [N, C, H, W]
        y_shape: tuple[int, ...],  # [N, K, P, Q]
        dtype: torch.dtype,  # of the result
    ) -> None:
        batch = x_shape[0]
        floats = math.prod(x_shape[1:]) + math.prod(y_shape[1:])
        images = max(1, min(batch, _WIDENED_BYTES // (4 * floats)))
        self.fused = make(images)
        self.rest = make(batch % images) if batch % images else self.fused
        self.x_shape = x_shape
        self.y_shape = y_shape
        self.dtype = dtype
        self.conv = self.fused.conv
        self.pool = self.fused.pool

    def _parts(self) -> Iterator[tuple[slice, FusedConv2d]]:
        images = self.fused.launch.x_shape[0]
        for first in range(0, self.x_shape[0], max(1, images)):
            last = min(first + images, self.x_shape[0])
            yield slice(first, last), self.fused if last - first == images else self.rest

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y [N, K, P, Q] in `dtype`; as NativeConv."""
        launch = self.fused.launch.pool_launch
        strides = dense_strides(self.y_shape, launch.channels_last)
        y = x.new_empty_strided(self.y_shape, strides, dtype=self.dtype)
        index = preactivation = None
        if save and launch.index_dtype is not None:
            index = x.new_empty_strided(self.y_shape, strides, dtype=launch.index_dtype)
        if save and launch.saved == "preactivation":
            preactivation = torch.empty_like(y)
        if w.dtype != torch.float32:
            w = w.float() if save else _kept_wide(w)
        prepared = self.fused.prepare(w, save)
        wide_bias = None if bias is None else bias.float()
        for part, fused in self._parts():
            values = fused.forward(x[part].float(), w, wide_bias, save, prepared)
            y[part] = values[0]
            if preactivation is not None and values[1] is not None:
                preactivation[part] = values[1]
            if index is not None and values[2] is not None:
                index[part] = values[2]
        return y, y if launch.saved == "output" else preactivation, index

    def backward(
        self,
        dy: Tensor,
        saved: Tensor | None,
        index: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx, dw and dbias, each in its operand's dtype."""
        wide, wide_bias = w.float(), None if bias is None else bias.float()
        strides = dense_strides(self.x_shape, self.fused.launch.x_channels_last)
        dx = x.new_empty_strided(self.x_shape, strides) if needs[0] else None
        # of no image: 0
        dw = torch.zeros_like(wide) if needs[1] and not self.x_shape[0] else None
        dbias = wide.new_zeros(w.shape[:1]) if needs[2] and not self.x_shape[0] else None
        for part, fused in self._parts():
            some_dx, some_dw, some_dbias = fused.backward(
                dy[part].float(),
                None if saved is None else saved[part].float(),
                None if index is None else index[part],
                x[part].float(),
                wide,
                wide_bias,
                needs,
            )
            if dx is not None and some_dx is not None:
                dx[part] = some_dx
            dw = _sum(dw, some_dw)
            dbias = _sum(dbias, some_dbias)
        return (
            dx,
            None if dw is None else dw.to(w.dtype),
            None if dbias is None or bias is None else dbias.to(bias.dtype),
        )


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Sums over the images in their order."""
    return part if total is None or part is None else total.add_(part)


def _kept_wide(w: Tensor) -> Tensor:
    """`w` in float32, remembered for as long as its values are the same."""
    if not w.is_contiguous():
        return w.float()

    return cpu_weights.kept(
        w, "float32", tuple(w.shape), lambda target: target.copy_(w), torch.float32
    )
