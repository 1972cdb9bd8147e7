"""What runs in the place of a match: the fused operation, where nothing speaks against it.

At every call, because modules change: hooks are added, layers replaced, BatchNorm and Dropout put
into training mode. As many of the steps as may be are fused, the rest run as the model wrote them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import requested, why_unavailable
from ..ops.conv_act_pool import conv_act_pool2d
from .folding import FoldCache, fold
from .steps import MONOTONE, Step, run_step

_PLAIN = (Tensor, nn.Parameter)
LINEAR = ("norm", "add", "sub", "rsub", "mul", "div")
_SKIPPED = ("identity", "dropout")


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches or replaces the calls of `module`."""
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def plain_conv(conv: Any) -> bool:
    """Whether `conv` is an nn.Conv2d whose parameters are its own and whose call nobody watches."""
    return type(conv) is nn.Conv2d and "weight" in conv._parameters and not hooked(conv)


def has_kernels(device_type: str) -> bool:
    """Whether a compiled backend runs on this kind of device."""
    if requested() == "reference":
        return False
    names = ("cpu",) if device_type == "cpu" else ("cuda", "triton")
    return device_type in ("cpu", "cuda") and any(not why_unavailable(n) for n in names)


class Region:
    """A match, as a function of its input, its modules and its constants."""

    def __init__(self, name: str, steps: tuple[Step, ...]) -> None:
        self.steps = steps  # steps[0] is the convolution
        self.cache = FoldCache()
        self._arguments: dict[int, dict[str, Any]] = {}
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return Region, (self.__name__, self.steps)

    def __call__(self, x: Any, modules: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
        count = self._fusable(x, modules)
        done = 0
        if count > 1:
            fused = self._run_fused(x, modules, constants, count)
            if fused is not None:
                x, done = fused, count
        for step in self.steps[done:]:
            x = run_step(step, x, modules, constants)
        return x

    def _fusable(self, x: Any, modules: tuple[Any, ...]) -> int:
        """How many of the steps, from the first, can be fused in this call."""
        if type(x) not in _PLAIN or not plain_conv(modules[0]) or not has_kernels(x.device.type):
            return 0
        count = 1
        for step in self.steps[1:]:
            if step.module is not None and not _as_matched(step, modules[step.module]):
                break
            if step.kind == "norm" and x.dim() != 4:
                break
            count += 1
        # what does nothing is no reason to fuse
        while count > 1 and self.steps[count - 1].kind in _SKIPPED:
            count -= 1
        return count

    def _run_fused(
        self, x: Tensor, modules: tuple[Any, ...], constants: tuple[Any, ...], count: int
    ) -> Tensor | None:
        conv = modules[0]
        weight, bias = conv.weight, conv.bias
        steps = self.steps[1:count]
        linear = tuple(step for step in steps if step.kind in LINEAR)
        if linear:
            if torch._C._is_any_autocast_enabled() or x.dtype != weight.dtype or x.dim() != 4:
                return None
            folded = fold(self.cache, conv, linear, modules, constants, x)
            if folded is None:
                return None
            weight, bias = folded
        padding: Any = conv.padding
        if conv.padding_mode != "zeros":
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            padding = 0
        arguments = self._arguments.get(count)
        if arguments is None:
            arguments = self._arguments[count] = fused_arguments(steps)
        pooling = next((s.pooling for s in steps if s.pooling is not None), None)
        if pooling is not None and pooling.output_size is not None:
            size = adaptive_window(x, conv, padding, pooling.output_size)
            if size is None:
                return None
            arguments = {**arguments, "pool_size": size, "pool_stride": size}
        return conv_act_pool2d(
            x, weight, bias, conv.stride, padding, conv.dilation, conv.groups, **arguments
        )


def _as_matched(step: Step, module: Any) -> bool:
    """Whether the module is what it was when it was matched, and does in this call what it says."""
    kind: Any = type(module)
    if kind is not step.type or hooked(module):
        return False
    for name, value in step.config:
        if getattr(module, name) != value:
            return False
    if step.kind == "norm":
        return not module.training and module.running_mean is not None
    if step.kind == "dropout":
        return not module.training
    return True


def fused_arguments(steps: tuple[Step, ...]) -> dict[str, Any]:
    """The keyword arguments of conv_act_pool2d for the steps behind a convolution."""
    arguments: dict[str, Any] = {"activation": "identity", "pool": "none"}
    for step in steps:
        if step.kind == "activation":
            arguments["activation"] = step.activation
            arguments["activation_param"] = step.param
        elif step.pooling is not None:
            arguments["pool"] = step.pooling.kind
            arguments.update(step.pooling.arguments)
    return arguments


def adaptive_window(
    x: Tensor, conv: Any, padding: Any, output_size: tuple[int | None, int | None]
) -> tuple[int, int] | None:
    """The window of an adaptive pooling that divides the convolution's output evenly, or None."""
    window = []
    for axis in (0, 1):
        length = x.shape[axis - 2]
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        if padding != "same":
            around = 0 if isinstance(padding, (int, str)) else padding[axis]
            length = (length + 2 * around - reach - 1) // conv.stride[axis] + 1
        out = output_size[axis]
        if out is None:
            out = length
        if out < 1 or length < out or length % out:
            return None
        window.append(length // out)
    return window[0], window[1]


def monotone(step: Step) -> bool:
    """Whether the activation never decreases, so that it may be taken before or after max."""
    return step.activation in MONOTONE and (step.param is None or step.param >= 0)
