"""Convolutions that are function calls: F.conv2d with parameters of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from .steps import Refusal, Step

CONV_CALLS = (F.conv2d, torch.conv2d)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


class GivenConv:
    """What nn.Conv2d knows, of a call's weight, bias and arguments."""

    __slots__ = (
        *("_parameters", "bias", "dilation", "groups", "kernel_size", "out_channels", "padding"),
        *("padding_mode", "stride", "transposed", "weight"),
    )

    def __init__(
        self, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> None:
        self.weight = weight
        self.bias = bias
        self._parameters = {"weight": weight, "bias": bias}
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.out_channels = weight.shape[0]
        self.kernel_size = tuple(weight.shape[2:])
        self.padding_mode = "zeros"
        self.transposed = False


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def given_conv(step: Step, constants: Any) -> GivenConv:
    """The convolution of a step that is a call, with the parameters of this time."""
    values = [
        constants[payload] if tag == "constant" else payload for tag, payload in step.args[1:]
    ]
    return GivenConv(*values)


def step_of_given(
    node: Node, constants: list[Node], module_at: Callable[[str], Any]
) -> Step | Refusal:
    """The first step of a match, of a call of F.conv2d; the weight and bias become constants."""
    given = dict(zip(_NAMES, node.args, strict=False))
    if len(node.args) > len(_NAMES) or not set(node.kwargs) <= set(_NAMES):
        return Refusal("conv2d is called with arguments that are not known here")
    given.update(node.kwargs)
    values = {**_DEFAULTS, **given}
    if not isinstance(values.get("input"), Node):
        return Refusal("conv2d is called without an input")
    args: list[tuple[str, Any]] = [("value", None)]
    for name in _NAMES[1:3]:
        value = values.get(name)
        if value is None and name == "bias":
            args.append(("literal", None))
        elif isinstance(value, Node) and _is_parameter(value, module_at):
            args.append(("constant", len(constants)))
            constants.append(value)
        else:
            return Refusal(f"conv2d's {name} is no parameter of the module")
    for name in _NAMES[3:]:
        value = values[name]
        sizes = value if isinstance(value, (tuple, list)) else (value,)
        if not all(type(size) is int for size in sizes) and not (
            name == "padding" and isinstance(value, str)
        ):
            return Refusal(f"conv2d's {name} is computed in forward")
        args.append(("literal", tuple(value) if isinstance(value, list) else value))
    return Step("conv", "conv2d", call=("call_function", node.target), args=tuple(args))


def _is_parameter(node: Node, module_at: Callable[[str], Any]) -> bool:
    if node.op != "get_attr":
        return False
    owner, _, name = str(node.target).rpartition(".")
    return isinstance(module_at(owner), nn.Module) and (
        module_at(owner)._parameters.get(name) is not None
    )
