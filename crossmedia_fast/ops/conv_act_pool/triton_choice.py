"""The Triton backend's algorithms, and which calls each of them takes."""

from __future__ import annotations

from collections.abc import Collection

from ...triton_support import rows_apart
from .kernels import Call, NativeConv
from .memory_format import is_channels_last
from .triton_conv import FusedConv2d
from .triton_refusals import refusals


class Choice:
    """kernels.Choice: "implicit_gemm", the fused convolution; the rest is PyTorch's."""

    keeps_output: Collection[str] = ()

    def __init__(self, call: Call) -> None:
        self.call = call
        self.dtype = call.input.dtype if call.autocast is None else call.autocast
        self.why_not = refusals(
            call.w_shape, self.dtype, call.conv, call.pool, call.needs_grad, call.forced
        )

    def native(self, algorithm: str) -> NativeConv | None:
        """The algorithm, ready to run; None where it is no convolution of the backend's own."""
        if algorithm != "implicit_gemm":
            return None

        call = self.call
        batched = call.input if call.input.dim() == 4 else call.input.unsqueeze(0)
        x_channels_last = is_channels_last(batched)
        return FusedConv2d(
            call.x_shape,
            call.w_shape,
            call.z_shape,
            self.dtype,
            call.conv,
            call.pool,
            x_channels_last,
            x_channels_last or is_channels_last(call.weight),
            rows_apart(call.input.device),
        )


def choose(call: Call) -> Choice:
    """What the backend makes of a call."""
    return Choice(call)
