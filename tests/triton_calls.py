"""What the tests of the Triton kernels share: where they run, and a convolution of given sizes.

On a machine with a GPU they run there. Without one they run in Triton's interpreter, which must be
switched on before the kernels are defined: test_triton_interpreter.py starts that process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from crossmedia_fast import conv_act_pool2d_reference, triton_support
from crossmedia_fast.ops.conv_act_pool.arguments import (
    check_conv,
    check_pool,
    conv_output_size,
)

HAS_GPU = torch.cuda.is_available() and not triton_support.interpreting()
DEVICE = "cuda" if HAS_GPU else "cpu"

runs_kernels = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (HAS_GPU or triton_support.interpreting()),
        reason="no GPU: test_triton_interpreter.py runs these under TRITON_INTERPRET=1",
    ),
    pytest.mark.skipif(
        bool(triton_support.why_not_importable()), reason=triton_support.why_not_importable()
    ),
    # numpy under the interpreter: infinities are computed where a select drops them
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


class Case(NamedTuple):
    """The arguments of one conv_act_pool2d and the sizes of its tensors."""

    batch: int = 2
    channels: int = 3
    height: int = 7
    width: int = 6
    filters: int = 5
    kernel: tuple[int, int] = (3, 3)
    stride: Any = 1
    padding: Any = 1
    dilation: Any = 1
    groups: int = 1
    activation: str = "relu"
    param: float | None = None
    pool: str = "max"
    pool_size: Any = 2
    pool_stride: Any = None
    pool_padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    bias: bool = True

    def conv(self) -> Any:
        return check_conv(self.stride, self.padding, self.dilation, self.groups)

    def pooling(self) -> Any:
        return check_pool(
            self.activation,
            self.param,
            self.pool,
            self.pool_size,
            self.pool_stride,
            self.pool_padding,
            self.ceil_mode,
            self.count_include_pad,
        )

    def tensors(self, integers: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, w and bias; `integers` make every sum exact, and ties common."""
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int) -> Tensor:
            if integers:
                values = torch.randint(-2, 3, shape, generator=generator)
            else:
                values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(self.dtype).to(DEVICE)

        x = random(self.batch, self.channels, self.height, self.width)
        w = random(self.filters, self.channels // self.groups, *self.kernel)
        if not integers:
            w *= w[0].numel() ** -0.5
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            w = w.contiguous(memory_format=torch.channels_last)
        return x, w, random(self.filters) if self.bias else None

    def fused(self, x: Tensor, w: Tensor) -> Any:
        """The Triton convolution of these tensors."""
        from crossmedia_fast.ops.conv_act_pool import triton_conv

        conv = self.conv()
        z_shape = (self.batch, self.filters, *conv_output_size(x, w, conv))
        return triton_conv.fused(x, w, z_shape, conv, self.pooling())

    def reference(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """The definition of correct, in the dtype of `x`."""
        return conv_act_pool2d_reference(
            x,
            w,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            activation_param=self.param,
            pool=self.pool,
            pool_size=self.pool_size,
            pool_stride=self.pool_stride,
            pool_padding=self.pool_padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
        )
