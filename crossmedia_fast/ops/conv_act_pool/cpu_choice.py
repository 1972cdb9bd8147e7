"""The CPU backend's algorithms, and which calls each of them takes."""

from __future__ import annotations

from ... import precision
from . import cpu_conv, cpu_direct, folding
from .kernels import Call, NativeConv
from .memory_format import is_channels_last
from .plan import CONVOLUTIONS, why_not_by_cost


class Choice:
    """kernels.Choice: "folded", the small direct convolution, and those of the native module."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.launch: cpu_conv.ConvLaunch | None = None
        y_shape = (*call.z_shape[:2], *call.pool.output_size(*call.z_shape[2:]))
        dtype = call.input.dtype
        contiguous = call.input.is_contiguous() and call.weight.is_contiguous()
        self.why_not = {
            "folded": folding.why_not(y_shape, call.z_shape, call.conv, call.pool, dtype),
            "direct": cpu_direct.why_not(
                call.x_shape,
                call.w_shape,
                call.z_shape,
                call.conv,
                dtype,
                contiguous,
                call.autocast is not None,
            ),
            **self._convolutions(),
        }

    def _convolutions(self) -> dict[str, str]:
        """Why each of the native module's own convolutions doesn't take the call."""
        call = self.call
        if call.autocast is not None:
            return dict.fromkeys(CONVOLUTIONS, "takes no autocast")
        batched = call.input if call.input.dim() == 4 else call.input.unsqueeze(0)
        x_channels_last = is_channels_last(batched)
        # a channels_last weight makes PyTorch's convolution give channels_last too
        y_channels_last = x_channels_last or is_channels_last(call.weight)
        try:
            launch = cpu_conv.ConvLaunch(
                call.x_shape,
                call.w_shape,
                call.z_shape,
                call.input.dtype,
                call.conv,
                call.pool,
                x_channels_last,
                y_channels_last,
            )
        except (NotImplementedError, ValueError) as error:
            return dict.fromkeys(CONVOLUTIONS, str(error))
        self.launch = launch
        refusals = {name: launch.refusal(name) for name in CONVOLUTIONS}
        if call.needs_grad and launch.pool_launch.saved == "input":
            # one that computes the convolution's output again needs nothing kept
            for name in CONVOLUTIONS:
                if name != "depthwise" or launch.refusal(name, backward=True):
                    refusals[name] = (
                        "keeps no convolution output for the backward of this activation"
                    )
        if not call.forced:
            no_gain = why_not_by_cost(
                call.x_shape,
                call.w_shape,
                call.z_shape,
                call.conv.stride,
                precision.get_conv_precision(),
                call.needs_grad,
                not refusals["winograd"],
            )
            for name, reason in no_gain.items():
                refusals[name] = refusals[name] or reason
        return refusals

    def native(self, algorithm: str) -> NativeConv | None:
        call = self.call
        if algorithm == "direct":
            return cpu_direct.SmallConv2d(
                call.x_shape, call.w_shape, call.input.dtype, call.conv, call.pool
            )
        if algorithm in CONVOLUTIONS and self.launch is not None:
            rounds = precision.get_conv_precision() != "highest"
            return cpu_conv.FusedConv2d(algorithm, self.launch, call.conv, call.pool, rounds)
        return None


def choose(call: Call) -> Choice:
    """What the CPU backend makes of a call."""
    return Choice(call)
