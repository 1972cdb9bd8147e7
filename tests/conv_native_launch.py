"""Calls of one native convolution family, for the tests of each.

Exact cases: x and bias are multiples of 1/8 below 4, weights multiples of 1/4 up to 2. Every
product and every sum of up to some thousand of them is then exact in float32 in any order, so that
the fused result must have the very bits of act_pool2d after PyTorch's convolution: maxima, ties
and indices included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool
from crossmedia_fast.ops.conv_act_pool.cpu_conv import ConvLaunch
from crossmedia_fast.ops.conv_act_pool.reference import act_pool2d

from .tolerances import GRADIENTS, assert_within

NEEDS_NATIVE = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)
GUARD = 12345.0
# channels_last: x, y
FORMATS = [(False, False), (True, True), (False, True), (True, False)]
FORMAT_IDS = ["nchw", "nhwc", "to_nhwc", "to_nchw"]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def kept_weights(launch: ConvLaunch, algorithm: str, w: Tensor) -> Tensor:
    """`w` as the algorithm keeps it, also where it would rather read it."""
    module = native.module
    assert module is not None
    prepared = torch.empty(module.conv_act_pool2d_prepared_size(algorithm, launch.native))
    arguments = w.contiguous().data_ptr(), prepared.data_ptr(), torch.get_num_threads()
    module.conv_act_pool2d_prepare(algorithm, launch.native, *arguments)
    return prepared


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One convolution; `filters` is K."""

    batch: int
    channels: int
    filters: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        text = f"{self.batch}x{self.channels}x{self.size[0]}x{self.size[1]}-{self.filters}"
        text += f"-{self.kernel[0]}x{self.kernel[1]}"
        for letter, pair in (("s", self.stride), ("p", self.padding), ("d", self.dilation)):
            text += f"-{letter}{pair[0]}{pair[1]}"
        return text


def pointwise(
    batch: int,
    channels: int,
    size: tuple[int, int],
    filters: int,
    stride: tuple[int, int] = (1, 1),
) -> Geometry:
    """A 1x1 convolution."""
    return Geometry(batch, channels, filters, size, (1, 1), stride)


@dataclasses.dataclass(frozen=True)
class After:
    """What follows the convolution."""

    activation: str = "relu"
    param: float | None = None
    pool: str = "none"
    size: int | tuple[int, int] = 1
    stride: int | tuple[int, int] | None = None
    padding: int | tuple[int, int] = 0
    ceil_mode: bool = False
    count_include_pad: bool = True

    def __str__(self) -> str:
        return f"{self.activation}-{self.pool}-{self.size}-{self.stride}-{self.padding}"


def as_format(x: Tensor, channels_last: bool) -> Tensor:
    """`x` in that memory format, where both formats differ and where they don't."""
    if not channels_last:
        return x.contiguous()
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class Case:
    """Tensors of one problem, and the calls on them."""

    def __init__(
        self,
        algorithm: str,
        geometry: Geometry,
        after: After,
        formats: tuple[bool, bool] = (False, False),  # channels_last: x, y
        exact: bool = False,
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        g = geometry
        self.algorithm = algorithm
        self.formats = formats
        generator = torch.Generator().manual_seed(seed)

        def values(*shape: int, levels: int, step: float) -> Tensor:
            if exact:
                return torch.randint(-levels, levels, shape, generator=generator) * step
            return torch.randn(shape, generator=generator)

        x = values(g.batch, g.channels, *g.size, levels=32, step=0.125)
        self.x = as_format(x, formats[0])
        self.w = values(g.filters, g.channels // g.groups, *g.kernel, levels=8, step=0.25)
        self.bias = values(g.filters, levels=32, step=0.125) if bias else None
        self.conv = check_conv(g.stride, g.padding, g.dilation, g.groups)
        self.pool = check_pool(
            after.activation, after.param, after.pool, after.size, after.stride, after.padding,
            after.ceil_mode, after.count_include_pad,
        )  # fmt: skip
        self.geometry = g
        z_shape = (g.batch, *self.convolve(self.x[:1], self.w, self.bias).shape[1:])
        self.launch = ConvLaunch(
            tuple(x.shape), tuple(self.w.shape), z_shape, x.dtype, self.conv, self.pool, *formats
        )

    def convolve(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        c = self.conv
        return torch.nn.functional.conv2d(
            x, w, bias, c.stride, self.geometry.padding, c.dilation, c.groups
        )

    def forward(self, save: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.launch.forward(self.algorithm, self.x, self.w, self.bias, save)

    def reference(self) -> Tensor:
        """y in float64."""
        bias = None if self.bias is None else self.bias.double()
        return act_pool2d(self.convolve(self.x.double(), self.w.double(), bias), self.pool)

    def unfused(self, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """act_pool2d after PyTorch's convolution of an exact case."""
        bias = None if self.bias is None else self.bias.double()
        z = self.convolve(self.x.double(), self.w.double(), bias).float()
        launch = self.launch.pool_launch
        return launch.forward(as_format(z, launch.channels_last), None, save)

    def guarded_forward(self) -> Tensor:
        """y; every tensor of the call lies inside a buffer whose other values must not matter."""
        launch = self.launch
        buffers = []

        def guard(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
            count = tensor.numel()
            buffer = torch.full((count + 64,), GUARD)
            inside = torch.as_strided(buffer, tensor.shape, strides, 32)
            inside.copy_(tensor)
            buffers.append(buffer)
            return inside

        x = guard(self.x, launch.x_strides)
        w = guard(self.w, self.w.stride())
        bias = None if self.bias is None else guard(self.bias, (1,))
        prepared = launch.prepare(self.algorithm, self.w, keep=False)
        nan = torch.full(launch.pool_launch.y_shape, float("nan"))
        y = guard(nan, launch.pool_launch.y_strides)
        before = [buffer.clone() for buffer in buffers]
        native.module.conv_act_pool2d_forward(  # type: ignore[union-attr]
            self.algorithm, launch.native, x.data_ptr(), w.data_ptr(),
            0 if prepared is None else prepared.data_ptr(),
            0 if bias is None else bias.data_ptr(), y.data_ptr(), 0, 0, native.thread_count(),
        )  # fmt: skip
        for buffer, old in zip(buffers[:-1], before, strict=False):
            assert torch.equal(buffer, old)
        for end in (buffers[-1][:32], buffers[-1][-32:]):
            assert (end == GUARD).all()
        return y

    def backward(self, dy: Tensor, need: tuple[bool, bool, bool] = (True, True, True)) -> Gradients:
        """dx, dw and dbias from our own forward's result."""
        y, index, preactivation = self.forward(save=True)
        saved = {"output": y, "preactivation": preactivation}.get(self.launch.pool_launch.saved)
        return self.launch.backward(
            self.algorithm, dy, saved, index, self.x, self.w, self.bias, *need
        )

    def guarded_backward(self, dy: Tensor) -> Gradients:
        """As backward; inputs hold NaN behind their ends, results lie between guards."""
        launch = self.launch
        y, index, preactivation = self.forward(save=True)
        saved = {"output": y, "preactivation": preactivation}.get(launch.pool_launch.saved)

        def guard(like: Tensor, fill: float) -> Tensor:
            buffer = torch.full((like.numel() + 64,), fill, dtype=like.dtype)
            return torch.as_strided(buffer, like.shape, like.stride(), 32)

        def pointer(tensor: Tensor | None) -> int:
            if tensor is None:
                return 0
            fill = float("nan") if tensor.is_floating_point() else 255
            view = guard(tensor, fill).copy_(tensor)
            inputs.append(view)
            return view.data_ptr()

        inputs: list[Tensor] = []
        outputs = [guard(t, GUARD) for t in (self.x, self.w, torch.empty(self.w.shape[0]))]
        native.module.conv_act_pool2d_backward(  # type: ignore[union-attr]
            self.algorithm, launch.native, pointer(dy), pointer(saved), pointer(index),
            pointer(self.x), pointer(self.w), pointer(self.bias),
            *(view.data_ptr() for view in outputs), native.thread_count(),
        )  # fmt: skip
        for view in outputs:
            buffer = torch.as_strided(view, (view.numel() + 64,), (1,), 0)
            assert (buffer[:32] == GUARD).all()
            assert (buffer[-32:] == GUARD).all()
        return outputs[0], outputs[1], outputs[2]

    def reference_backward(self, dy: Tensor) -> Gradients:
        """dx, dw and dbias in float64."""
        x, w = self.x.double().requires_grad_(), self.w.double().requires_grad_()
        bias = torch.zeros(self.w.shape[0]) if self.bias is None else self.bias
        bias = bias.double().requires_grad_()
        y = act_pool2d(self.convolve(x, w, bias), self.pool)
        return torch.autograd.grad(y, (x, w, bias), dy.double())


def fits(algorithm: str, geometry: Geometry, after: After) -> bool:
    """Whether the pooling's windows fit the convolution's output."""
    try:
        Case(algorithm, geometry, after)
    except ValueError:
        return False
    return True


def random_dy(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(case.launch.pool_launch.y_shape, generator=generator)
    return as_format(dy, case.formats[1])


def assert_gradients(case: Case, dy: Tensor, gradients: Gradients) -> None:
    for ours, theirs in zip(gradients, case.reference_backward(dy), strict=True):
        assert ours is not None
        assert theirs is not None
        assert_within(ours, theirs, GRADIENTS[torch.float32])


def assert_same(actual: Tensor | None, expected: Tensor | None) -> None:
    """Equal values and NaN, and both or none."""
    assert (actual is None) == (expected is None)
    if actual is not None and expected is not None:
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
