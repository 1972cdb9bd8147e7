"""The CPU backend's algorithms, and which calls each of them takes."""

from __future__ import annotations

import torch

from ... import native, precision
from . import cpu_conv, cpu_direct, cpu_half, folding, space_to_batch
from .arguments import NOTHING_FOLLOWS, Pool2d
from .conv_cost import AVX2, AVX512, LEAST_GAIN, Costs, Sizes, merged_gradient_gain
from .cpu_kept_output import KeptOutputConv2d
from .kernels import Call, NativeConv
from .memory_format import is_channels_last
from .plan import CONVOLUTIONS, why_not_by_cost


def _half_dtype(call: Call) -> torch.dtype | None:
    """The half type of the result, where every operand is one or float32 under autocast."""
    dtype = call.input.dtype if call.autocast is None else call.autocast
    if dtype not in cpu_half.HALF_DTYPES:
        return None
    widened = (*cpu_half.HALF_DTYPES, torch.float32)
    return dtype if call.input.dtype in widened and call.weight.dtype in widened else None


def _batched(x: torch.Tensor) -> torch.Tensor:
    return x if x.dim() == 4 else x.unsqueeze(0)


def conv_costs() -> Costs:
    """The costs of this processor's kernels."""
    return AVX512 if native.has_wide_vectors() else AVX2


class Choice:
    """kernels.Choice: "folded", the small direct convolution, and those of the native module."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.launch: cpu_conv.ConvLaunch | None = None
        self.alone: cpu_conv.ConvLaunch | None = None  # the convolution of those in keeps_output
        self.keeps_output: set[str] = set()
        self.half = _half_dtype(call)
        pool = call.pool
        windows = pool.size, pool.stride, pool.padding
        self.pooled_by_twos = pool.pool == "max" and windows == ((2, 2), (2, 2), (0, 0))
        y_shape = (*call.z_shape[:2], *call.pool.output_size(*call.z_shape[2:]))
        dtype = call.input.dtype
        operands = call.input, call.weight
        contiguous = all(t.is_contiguous() and not is_channels_last(_batched(t)) for t in operands)
        self.why_not = {
            "folded": folding.why_not(
                y_shape,
                call.z_shape,
                call.w_shape,
                call.conv,
                call.pool,
                dtype,
                call.needs_grad,
                is_channels_last(_batched(call.input)),
            ),
            "direct": cpu_direct.why_not(
                call.x_shape,
                call.w_shape,
                call.z_shape,
                call.conv,
                dtype,
                contiguous,
                call.autocast is not None,
            ),
            "space_to_batch": space_to_batch.why_not(
                call.x_shape,
                call.w_shape,
                call.z_shape,
                call.conv,
                dtype if call.autocast is None else call.autocast,
                precision.get_conv_precision(),
                not call.needs_grad,
                call.forced,
                conv_costs(),
            ),
            **self._convolutions(),
        }

    def _convolutions(self) -> dict[str, str]:
        """Why each of the native module's own convolutions doesn't take the call."""
        call = self.call
        if call.autocast is not None and self.half is None:
            return dict.fromkeys(CONVOLUTIONS, f"takes no autocast of {call.input.dtype}")
        x_channels_last = is_channels_last(_batched(call.input))
        # a channels_last weight makes PyTorch's convolution give channels_last too
        y_channels_last = x_channels_last or is_channels_last(call.weight)
        try:
            launch = self._launch(call.x_shape[0], x_channels_last, y_channels_last, call.pool)
        except (NotImplementedError, ValueError) as error:
            return dict.fromkeys(CONVOLUTIONS, str(error))
        self.launch = launch
        refusals = {name: launch.refusal(name) for name in CONVOLUTIONS}
        if call.needs_grad and launch.pool_launch.saved == "input":
            formats = x_channels_last, y_channels_last
            self.alone = self._launch(call.x_shape[0], *formats, NOTHING_FOLLOWS)
            for name in CONVOLUTIONS:
                # one that computes the convolution's output again needs nothing kept
                if name != "depthwise" or launch.refusal(name, backward=True):
                    self.keeps_output.add(name)
                    refusals[name] = self.alone.refusal(name)
                    if self.half is not None:
                        refusals[name] = "keeps no output in half precision for backward"
        if not call.forced:
            no_gain = why_not_by_cost(
                Sizes(
                    call.x_shape,
                    call.w_shape,
                    call.z_shape,
                    call.conv.stride,
                    launch.padding,
                    call.conv.dilation,
                    x_channels_last,
                ),
                precision.get_conv_precision(),
                call.needs_grad,
                call.pool.pool != "none",
                self.pooled_by_twos,
                [name for name, why in refusals.items() if not why],
                native.has_matrix_unit(),
                conv_costs(),
            )
            if self.half is not None:
                for name in CONVOLUTIONS:
                    no_gain[name] = no_gain.get(name) or cpu_half.why_not(name, self.half, call)
            for name, reason in no_gain.items():
                refusals[name] = refusals[name] or reason
        return refusals

    def _launch(
        self, batch: int, x_channels_last: bool, y_channels_last: bool, pool: Pool2d
    ) -> cpu_conv.ConvLaunch:
        call = self.call
        return cpu_conv.ConvLaunch(
            (batch, *call.x_shape[1:]),
            call.w_shape,
            (batch, *call.z_shape[1:]),
            call.input.dtype if self.half is None else torch.float32,
            call.conv,
            pool,
            x_channels_last,
            y_channels_last,
        )

    def native(self, algorithm: str) -> NativeConv | None:
        call = self.call
        if algorithm == "direct":
            return cpu_direct.SmallConv2d(
                call.x_shape, call.w_shape, call.input.dtype, call.conv, call.pool
            )
        keeps = algorithm in self.keeps_output
        launch = self.alone if keeps else self.launch
        if algorithm not in CONVOLUTIONS or launch is None or self.launch is None:
            return None
        pool = NOTHING_FOLLOWS if keeps else call.pool
        rounds = precision.get_conv_precision() != "highest"
        shapes = call.x_shape, call.w_shape, call.z_shape
        gain = merged_gradient_gain(*shapes, call.conv.stride, self.pooled_by_twos)
        merged = gain >= LEAST_GAIN and not launch.refusal("few_channels", backward=True)

        def fused(batch: int) -> cpu_conv.FusedConv2d:
            formats = launch.x_channels_last, launch.pool_launch.channels_last
            part = launch if batch == call.x_shape[0] else self._launch(batch, *formats, pool)
            return cpu_conv.FusedConv2d(algorithm, part, call.conv, pool, rounds, merged)

        if keeps:
            return KeptOutputConv2d(fused(call.x_shape[0]), self.launch.pool_launch, call.pool)
        if self.half is None:
            return fused(call.x_shape[0])
        return cpu_half.HalfConv2d(fused, call.x_shape, launch.pool_launch.y_shape, self.half)


def choose(call: Call) -> Choice:
    """What the CPU backend makes of a call."""
    return Choice(call)
