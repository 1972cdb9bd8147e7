"""A call of conv_act_pool2d, checked and planned: made once per combination of arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ... import backends
from . import kernels, triton_refusals
from .arguments import Conv2d, Pool2d, autocast_enabled
from .kernels import ActPool2dLaunch, NativeConv
from .plan import ALGORITHMS, Plan, make_plan
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
        "conv",
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
        device = input.device
        autocast = autocast_enabled(device)
        self.needs_grad = needs_grad_of(input, weight, bias)
        self.plain = device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()
        self.nothing_to_fuse = pool.activation == "identity" and pool.pool == "none"
        chosen, rejected_backends = backends.resolve(backend, device, input.dtype)
        choice: kernels.Choice | None = None
        why_not = dict.fromkeys(ALGORITHMS[chosen], "takes plain tensors alone")
        if (
            chosen != "reference"
            and self.plain
            and is_plain(input, weight, bias)
            and (input.dtype == weight.dtype or autocast)
        ):
            call = kernels.Call(
                input,
                weight,
                (z_shape[0], *input.shape[-3:]),
                tuple(weight.shape),
                z_shape,
                conv,
                pool,
                torch.get_autocast_dtype(device.type) if autocast else None,
                self.needs_grad,
                forced_algorithm is not None,
            )
            choice = kernels.choose(chosen, call)
            why_not = choice.why_not
        elif chosen == "triton" and torch.compiler.is_compiling() and not autocast:
            # its convolution is a library op too, whose launches the compiler looks into
            why_not = triton_refusals.refusals(
                tuple(weight.shape), input.dtype, conv, pool, self.needs_grad, False
            )
        self.plan: Plan = make_plan(
            chosen,
            rejected_backends,
            self.nothing_to_fuse,
            why_not,
            () if choice is None else choice.keeps_output,
            forced_algorithm,
        )
        self.native: NativeConv | None = (
            None if choice is None else choice.native(self.plan.algorithm)
        )
        self.conv = conv
        self.pool = pool
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
        self.launches: dict[tuple[bool, torch.dtype], ActPool2dLaunch] = {}

    def launch(self, x: Tensor, channels_last: bool) -> ActPool2dLaunch:
        key = (channels_last, x.dtype)
        launch = self.launches.get(key)
        if launch is None:
            launch = self.launches[key] = kernels.launch_for(
                self.plan.backend, tuple(x.shape), x.dtype, channels_last, self.pool
            )
        return launch


prepared_calls: dict[Any, Prepared] = {}
# for tests and benchmarks, which clear prepared_calls around it
forced_algorithm: str | None = None


def needs_grad_of(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
