"""A call of conv_act_pool2d, checked and planned: made once per combination of arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ... import precision
from . import cpu, cpu_conv, cpu_direct, folding
from .arguments import Conv2d, Pool2d, autocast_enabled
from .autograd_conv import NativeConv
from .plan import CONVOLUTIONS, Plan, make_plan, why_not_by_cost
from .reference import check_all

_PLAIN = (Tensor, Parameter)


def is_plain(input: Any, weight: Any, bias: Any) -> bool:
    """Whether nothing stands between these tensors and their memory: no subclass, no mode."""
    return (
        type(input) in _PLAIN
        and type(weight) in _PLAIN
        and (bias is None or type(bias) in _PLAIN)
        and not torch._C._len_torch_dispatch_stack()
    )


class Prepared:
    """A checked and planned call; made once per combination of shapes and arguments."""

    __slots__ = (
        "add_batch",
        "bias_in_epilogue",
        "conv_args",
        "launches",
        "native",
        "needs_grad",
        "nothing_to_fuse",
        "plain",
        "plan",
        "pool",
    )

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        conv: Conv2d,
        pool: Pool2d,
        backend: str | None,
    ) -> None:
        z_shape = check_all(input, weight, bias, conv, pool)
        autocast = autocast_enabled(input.device)
        self.needs_grad = needs_grad_of(input, weight, bias)
        x_shape = (z_shape[0], *input.shape[-3:])
        w_shape = tuple(weight.shape)
        self.plain = input.device.type == "cpu" and not torch.compiler.is_compiling()
        why_not = dict.fromkeys(
            ("folded", "direct", *CONVOLUTIONS), "takes plain tensors on the CPU alone"
        )
        launch = None
        if self.plain and is_plain(input, weight, bias) and input.dtype == weight.dtype:
            contiguous = input.is_contiguous() and weight.is_contiguous()
            y_shape = (*z_shape[:2], *pool.output_size(*z_shape[2:]))
            why_not = {
                "folded": folding.why_not(y_shape, z_shape, conv, pool, input.dtype),
                "direct": cpu_direct.why_not(
                    x_shape, w_shape, z_shape, conv, input.dtype, contiguous, autocast
                ),
            }
            launch, refusals = _fused(
                input, weight, x_shape, w_shape, z_shape, conv, pool, autocast, self.needs_grad
            )
            why_not.update(refusals)
        why_not = {name: why for name, why in why_not.items() if why}
        self.plan: Plan = make_plan(
            conv, pool, input.dtype, input.device, backend, why_not, forced_algorithm
        )
        self.native: NativeConv | None = None
        if self.plan.algorithm == "direct":
            self.native = cpu_direct.SmallConv2d(x_shape, w_shape, input.dtype, conv, pool)
        elif self.plan.algorithm in CONVOLUTIONS:
            assert launch is not None
            rounds = precision.get_conv_precision() != "highest"
            self.native = cpu_conv.FusedConv2d(self.plan.algorithm, launch, conv, pool, rounds)
        self.pool = pool
        self.nothing_to_fuse = pool.activation == "identity" and pool.pool == "none"
        self.conv_args: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.add_batch = input.dim() == 3
        # The half types round once at the end of the convolution, bias included: leave it there.
        # In float32 and float64 the epilogue adds it, and its gradient comes from the pooled one.
        self.bias_in_epilogue = (
            bias is not None
            and input.dtype in (torch.float32, torch.float64)
            and bias.dtype == input.dtype
            and not autocast
        )
        self.launches: dict[tuple[bool, torch.dtype], cpu.Launch] = {}

    def launch(self, x: Tensor, channels_last: bool) -> cpu.Launch:
        key = (channels_last, x.dtype)
        launch = self.launches.get(key)
        if launch is None:
            launch = self.launches[key] = cpu.launch_for(
                tuple(x.shape), x.dtype, channels_last, self.pool
            )
        return launch


prepared_calls: dict[Any, Prepared] = {}
forced_algorithm: str | None = None  # for tests, which clear prepared_calls around it


def needs_grad_of(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def _fused(
    input: Tensor,
    weight: Tensor,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    z_shape: tuple[int, ...],
    conv: Conv2d,
    pool: Pool2d,
    autocast: bool,
    needs_grad: bool,
) -> tuple[cpu_conv.ConvLaunch | None, dict[str, str]]:
    """The native module's own convolutions: a launch, and why each of them doesn't take it."""
    if autocast:
        return None, dict.fromkeys(CONVOLUTIONS, "takes no autocast")
    x_channels_last = cpu.is_channels_last(input if input.dim() == 4 else input.unsqueeze(0))
    # a channels_last weight makes PyTorch's convolution give channels_last too
    y_channels_last = x_channels_last or cpu.is_channels_last(weight)
    try:
        launch = cpu_conv.ConvLaunch(
            x_shape, w_shape, z_shape, input.dtype, conv, pool, x_channels_last, y_channels_last
        )
    except (NotImplementedError, ValueError) as error:
        return None, dict.fromkeys(CONVOLUTIONS, str(error))
    refusals = {name: launch.refusal(name) for name in CONVOLUTIONS}
    if needs_grad and launch.pool_launch.saved == "input":
        # one that computes the convolution's output again needs nothing kept
        for name in CONVOLUTIONS:
            if name != "depthwise" or launch.refusal(name, backward=True):
                refusals[name] = "keeps no convolution output for the backward of this activation"
    if forced_algorithm is None:
        no_gain = why_not_by_cost(
            x_shape,
            w_shape,
            z_shape,
            conv.stride,
            precision.get_conv_precision(),
            needs_grad,
            not refusals["winograd"],
        )
        for name, reason in no_gain.items():
            refusals[name] = refusals[name] or reason
    return launch, refusals
