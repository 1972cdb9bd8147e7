"""The CPU backend's own convolutions where backward needs their output: what follows is a pass.

SiLU's derivative does not follow from its output, nor that of tanh from an average of outputs:
what the activation took is kept, as PyTorch keeps it.
"""

from __future__ import annotations

from torch import Tensor

from .arguments import Pool2d
from .cpu_conv import FusedConv2d
from .kernels import ActPool2dLaunch


class KeptOutputConv2d:
    """A convolution, and what follows it from its output (kernels.NativeConv)."""

    backend = "cpu"
    __slots__ = ("conv", "convolution", "launch", "pool")

    def __init__(self, convolution: FusedConv2d, launch: ActPool2dLaunch, pool: Pool2d) -> None:
        """`convolution`: with the bias, and NOTHING_FOLLOWS it."""
        self.convolution = convolution
        self.launch = launch
        self.conv = convolution.conv
        self.pool = pool

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y [N, K, P, Q], and the convolution's output [N, K, H', W']; as NativeConv."""
        z, _, _ = self.convolution.forward(x, w, bias, save)
        y, index, _ = self.launch.forward(z, None, save)
        return y, z, index

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
        """dx, dw and dbias, through the dense gradient of the convolution's output."""
        dz, _ = self.launch.backward(dy, saved, None, index, True, False)
        assert dz is not None
        return self.convolution.backward(dz, None, None, x, w, bias, needs)
