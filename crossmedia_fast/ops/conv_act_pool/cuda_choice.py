"""The CUDA backend's algorithms, and which calls each of them takes."""

from __future__ import annotations

from collections.abc import Collection

import torch

from .cuda_conv import FusedConv2d
from .kernels import Call, NativeConv
from .memory_format import is_channels_last

# What the plan would need to know: how fast it is beside cuDNN and the epilogue, shape by shape.
_NOT_MEASURED = "not yet measured on a GPU: only the tests name it"


class Choice:
    """kernels.Choice: "implicit_gemm", the fused convolution; the rest is PyTorch's."""

    keeps_output: Collection[str] = ()

    def __init__(self, call: Call) -> None:
        self.call = call
        self.fused: FusedConv2d | None = None
        self.why_not = {"implicit_gemm": self._why_not() if call.forced else _NOT_MEASURED}

    def _why_not(self) -> str:
        call = self.call
        if call.pool.activation == "identity" and call.pool.pool == "none":
            return "nothing follows the convolution"
        if call.autocast is not None and torch.float64 in (call.input.dtype, call.weight.dtype):
            return "takes no autocast of float64"
        batched = call.input if call.input.dim() == 4 else call.input.unsqueeze(0)
        x_channels_last = is_channels_last(batched)
        try:
            self.fused = FusedConv2d(
                call.x_shape,
                call.w_shape,
                call.z_shape,
                call.input.dtype if call.autocast is None else call.autocast,
                call.conv,
                call.pool,
                x_channels_last,
                # a channels_last weight makes PyTorch's convolution give channels_last too
                x_channels_last or is_channels_last(call.weight),
            )
        except (NotImplementedError, ValueError) as error:
            return str(error)
        return self.fused.why_no_backward() if call.needs_grad else ""

    def native(self, algorithm: str) -> NativeConv | None:
        """The algorithm, ready to run; None where it is no convolution of the backend's own."""
        return self.fused if algorithm == "implicit_gemm" else None


def choose(call: Call) -> Choice:
    """What the backend makes of a call."""
    return Choice(call)
