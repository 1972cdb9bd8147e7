"""What runs in the place of a match: the fused operation, where nothing speaks against it.

At every call, because modules change: hooks are added, layers replaced, BatchNorm and Dropout put
into training mode. As many of the steps as may be are fused, the rest run as the model wrote them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import native
from ..backends import why_unavailable
from ..ops.conv_act_pool import conv_act_pool2d
from .bound import BoundCalls, bind, conv_call
from .folding import FoldCache, fold
from .given import GivenConv, given_conv
from .normalizing import run_steps
from .pooling import PoolSteps, tail_of
from .steps import (
    MONOTONE,
    PLAIN,
    Step,
    as_matched,
    even_window,
    fused_arguments,
    hooked,
)

backend_setting = sys.modules[
    why_unavailable.__module__
]  # the package exports a function of that name
LINEAR = ("norm", "add", "sub", "rsub", "mul", "div")
_SKIPPED = ("identity", "dropout")


def plain_conv(conv: Any) -> bool:
    """Whether `conv` is an nn.Conv2d whose parameters are its own and whose call nobody watches, or
    a call of F.conv2d."""
    if type(conv) is GivenConv:
        return type(conv.weight) in PLAIN
    return type(conv) is nn.Conv2d and "weight" in conv._parameters and not hooked(conv)


def has_kernels(x: Tensor) -> bool:
    """Whether a compiled backend takes tensors like `x`."""
    if x.is_cpu:
        return native.module is not None and backend_setting._requested != "reference"
    return device_has_kernels(x.device.type)


def device_has_kernels(device_type: str) -> bool:
    """Whether a compiled backend runs on this kind of device."""
    if backend_setting._requested == "reference":
        return False
    names = ("cpu",) if device_type == "cpu" else ("cuda", "triton")
    return device_type in ("cpu", "cuda") and any(not why_unavailable(n) for n in names)


class Region:
    """A match, as a function of its input, its modules and its constants."""

    def __init__(self, name: str, steps: tuple[Step, ...], shielded: bool) -> None:
        self.steps = steps  # steps[0] is the convolution
        self.shielded = shielded  # its result may be changed in place, and must stand it
        self.cache = FoldCache()
        self.bound = BoundCalls()
        self.parts = tuple(_Part(steps[:count]) for count in range(len(steps) + 1))
        self.checks: tuple[Any, ...] = tuple(
            (step.module, name, value) for step in steps for name, value in step.config
        )
        self.given = steps[0].module is None  # a call of F.conv2d
        self.types: tuple[Any, ...] = tuple(
            step.type for step in steps[1:] if step.module is not None
        )
        self.norms: tuple[Any, ...] = tuple(step.module for step in steps if step.kind == "norm")
        self.modal: tuple[Any, ...] = tuple(step.module for step in steps if step.modal)
        # what is left of it where only its beginning is fused: a BatchNorm that trains in between
        self.tail_place = tail_of(steps)
        self.tail = None if self.tail_place < 0 else PoolSteps(steps[self.tail_place :], shielded)
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return Region, (self.__name__, self.steps, self.shielded)

    def __call__(
        self,
        x: Any,
        modules: tuple[Any, ...],
        constants: tuple[Any, ...],
        joint: Any = None,  # a joining.Joint, whose part at `place` the result is
        place: int = 0,
    ) -> Any:
        if not self.given:
            y = self.bound.run(x, modules, constants, joint, place)
            if y is not None:
                return y
        count = 0
        if type(x) in PLAIN and has_kernels(x):
            if self.given:
                modules = (given_conv(self.steps[0], constants), *modules[1:])
            count = len(self.steps) if self._whole(x, modules) else self._fusable(x, modules)
        while count:
            part = self.parts[count]
            y = part.run(x, modules, constants, self.cache)
            if y is not None:
                if count == len(self.steps):
                    self._bind(part, x, modules, constants)
                # what backward keeps must not be what others change
                exposed = self.shielded or count < len(self.steps)
                x = y.clone() if exposed and y.requires_grad and part.activated else y
                break
            count = part.fewer
        if self.tail is not None and count <= self.tail_place:
            x = run_steps(self.steps[count : self.tail_place], x, modules, constants)
            y = self.tail.run(x, modules)
            if y is not None:
                return y
            count = self.tail_place
        return run_steps(self.steps[count:], x, modules, constants)

    def inputs(self, x: Any) -> tuple[tuple[Any, Any], ...]:
        """As of a GatedRegion."""
        return ((x, None),)

    def bind_all(self, x: Tensor, modules: tuple[Any, ...], constants: tuple[Any, ...]) -> bool:
        """Bind the call of all the steps; whether they can be fused in it."""
        if self.given or not has_kernels(x) or not self._whole(x, modules):
            return False
        self._bind(self.parts[-1], x, modules, constants)
        return True

    def _bind(
        self, part: _Part, x: Tensor, modules: tuple[Any, ...], constants: tuple[Any, ...]
    ) -> None:
        """Let the next call without gradients do what this one did."""
        if self.given or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        arguments = part.arguments_for(x, modules[0], modules[0].padding)
        assert arguments is not None
        self.bound.keep(
            modules[0],
            x,
            bind(
                self.steps,
                lambda filters: conv_call(x, filters, modules[0], arguments),
                part.linear,
                x,
                modules,
                constants,
                self.cache,
            ),
        )

    def _whole(self, x: Tensor, modules: tuple[Any, ...]) -> bool:
        """Whether every step can be fused in this call: the usual case, tested quickly."""
        if not plain_conv(modules[0]):
            return False
        for module, kind in zip(modules[1:], self.types, strict=True):
            state = module.__dict__
            if (
                type(module) is not kind
                or state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
                or "forward" in state
            ):
                return False
        for place, name, value in self.checks:
            if getattr(modules[place], name) != value:
                return False
        for place in self.modal:
            if modules[place].training:
                return False
        if self.norms:
            if x.dim() != 4:
                return False
            for place in self.norms:
                if modules[place].running_mean is None:
                    return False
        return True

    def _fusable(self, x: Tensor, modules: tuple[Any, ...]) -> int:
        """How many of the steps, from the first, can be fused in this call."""
        if not plain_conv(modules[0]):
            return 0
        count = 1
        for step in self.steps[1:]:
            if step.module is not None and not as_matched(step, modules[step.module]):
                break
            if step.kind == "norm" and x.dim() != 4:
                break
            count += 1
        # what does nothing is no reason to fuse
        while count > 1 and self.steps[count - 1].kind in _SKIPPED:
            count -= 1
        return count


class _Part:
    """The first steps of a match, as one operation."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.linear = tuple(step for step in steps if step.kind in LINEAR)
        self.arguments = fused_arguments(steps)
        self.activated = self.arguments["activation"] != "identity"
        self.adaptive = next((s.pooling.output_size for s in steps if s.pooling is not None), None)
        # how many steps remain to be tried where these tensors don't allow all: without an adaptive
        # pooling that does not divide evenly, or without what can't be folded
        self.fewer = 0
        if self.adaptive is not None:
            self.fewer = next(place for place, s in enumerate(steps) if s.pooling is not None)
        elif self.linear:
            self.fewer = next(place for place, s in enumerate(steps) if s.kind in LINEAR)
        while self.fewer > 1 and steps[self.fewer - 1].kind in _SKIPPED:
            self.fewer -= 1

    def run(
        self, x: Tensor, modules: tuple[Any, ...], constants: tuple[Any, ...], cache: FoldCache
    ) -> Tensor | None:
        """The operation's result, or None where these tensors don't allow it."""
        conv = modules[0]
        parameters = conv._parameters
        weight, bias = parameters["weight"], parameters["bias"]
        if self.linear:
            if torch._C._is_any_autocast_enabled() or x.dtype != weight.dtype or x.dim() != 4:
                return None
            folded = fold(cache, conv, self.linear, modules, constants, x)
            if folded is None:
                return None
            weight, bias = folded.weight, folded.bias
        padding: Any = conv.padding
        if conv.padding_mode != "zeros":
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            padding = 0
        arguments = self.arguments_for(x, conv, padding)
        if arguments is None:
            return None
        return conv_act_pool2d(
            x, weight, bias, conv.stride, padding, conv.dilation, conv.groups, **arguments
        )

    def arguments_for(self, x: Tensor, conv: Any, padding: Any) -> dict[str, Any] | None:
        """What conv_act_pool2d is told beside the convolution; None where the pooling is uneven."""
        if self.adaptive is None:
            return self.arguments
        size = adaptive_window(x, conv, padding, self.adaptive)
        return None if size is None else {**self.arguments, "pool_size": size, "pool_stride": size}


def adaptive_window(
    x: Tensor, conv: Any, padding: Any, output_size: tuple[int | None, int | None]
) -> tuple[int, int] | None:
    """The window of an adaptive pooling that divides the convolution's output evenly, or None."""
    lengths = []
    for axis in (0, 1):
        length = x.shape[axis - 2]
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        if padding != "same":
            around = 0 if isinstance(padding, (int, str)) else padding[axis]
            length = (length + 2 * around - reach - 1) // conv.stride[axis] + 1
        lengths.append(length)
    return even_window((lengths[0], lengths[1]), output_size)


def monotone(step: Step) -> bool:
    """Whether the activation never decreases, so that it may be taken before or after max."""
    return step.activation in MONOTONE and (step.param is None or step.param >= 0)
