"""The steps of a match: what a node of a traced graph means for the fused operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from .references import pack, unpack
from .vocabulary import (
    ACTIVATION_CALLS,
    ACTIVATION_MODULES,
    ARITHMETIC,
    DROPOUT_CLASSES,
    DROPOUT_FUNCTIONS,
    DROPOUT_MODULES,
    POOL_ARGUMENTS,
    POOL_CALLS,
    POOL_MODULES,
)

PLAIN = (Tensor, nn.Parameter)  # tensors between whom and their memory nothing stands
# Never decreasing where their parameter is not negative: max(act(z)) = act(max(z)).
MONOTONE = ("relu", "leaky_relu", "relu6", "elu", "tanh", "sigmoid", "softplus")


@dataclass(frozen=True)
class Pooling:
    """A pooling: the arguments of the fused operation, or the output size of an adaptive one."""

    kind: str  # "max", "avg"
    arguments: tuple[tuple[str, Any], ...] = ()
    output_size: tuple[int | None, int | None] | None = None
    reduces: bool = False  # a call of mean: its result is contiguous, whatever the input is


@dataclass(frozen=True)
class Step:
    """One node of a match."""

    kind: str  # conv norm add sub rsub mul div activation dropout pooling identity
    label: str
    module: int | None = None  # its place among the match's modules
    type: type | None = None
    config: tuple[tuple[str, Any], ...] = ()  # attributes of the module that the match relies on
    call: tuple[str, Any] | None = None  # ("call_function", f) or ("call_method", name)
    args: tuple[tuple[str, Any], ...] = ()  # ("value", None) ("constant", place) ("literal", it)
    kwargs: tuple[tuple[str, Any], ...] = ()
    activation: str = "identity"
    param: float | None = None
    pooling: Pooling | None = None
    constant: tuple[str, Any] | None = None  # ("literal", number) or ("constant", place)

    @property
    def modal(self) -> bool:
        """Whether it is a module that does something else in training."""
        return self.module is not None and self.kind in ("norm", "dropout")

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        if self.call is not None:
            kept["call"] = (self.call[0], pack(self.call[1]))
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["call"] is not None:
            state["call"] = (state["call"][0], unpack(state["call"][1]))
        self.__dict__.update(state)


class Refusal(str):
    """Why a node is no step."""

    __slots__ = ()


def _literal_pair(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(type(v) is int or v is None for v in value)
    return type(value) is int


def _pooling(kind: type, values: dict[str, Any]) -> Pooling | Refusal:
    """The fused pooling of a module or call of `kind` with these arguments."""
    if values.get("return_indices"):
        return Refusal("the pooling returns its indices too")
    if kind in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        size = values["output_size"]
        if size is not None and not _literal_pair(size):
            return Refusal("the pooling's output size is computed in forward")
        pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if len(pair) != 2:
            return Refusal("the pooling's output size has not two numbers")
        return Pooling("avg" if kind is nn.AdaptiveAvgPool2d else "max", output_size=pair)
    for name in ("kernel_size", "stride", "padding"):
        given = values[name]
        absent = given is None or (isinstance(given, (tuple, list)) and not given)
        if absent and name == "stride":
            continue
        if not _literal_pair(given):
            return Refusal(f"the pooling's {name} is computed in forward")
    if not isinstance(values["ceil_mode"], bool):
        return Refusal("the pooling's ceil_mode is computed in forward")
    stride = values["stride"]
    if isinstance(stride, (tuple, list)):
        stride = tuple(stride) or None
    arguments: list[tuple[str, Any]] = [
        ("pool_size", _tupled(values["kernel_size"])),
        ("pool_stride", stride),
        ("pool_padding", _tupled(values["padding"])),
        ("ceil_mode", values["ceil_mode"]),
    ]
    if kind is nn.MaxPool2d:
        if values["dilation"] not in (1, (1, 1), [1, 1]):
            return Refusal("the pooling is dilated")
        return Pooling("max", tuple(arguments))
    if values["divisor_override"] is not None:
        return Refusal("the pooling has a divisor_override")
    if not isinstance(values["count_include_pad"], bool):
        return Refusal("the pooling's count_include_pad is computed in forward")
    arguments.append(("count_include_pad", values["count_include_pad"]))
    return Pooling("avg", tuple(arguments))


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def step_of_module(module: nn.Module, place: int) -> Step | Refusal:
    """The step that a call of `module` is."""
    kind = type(module)
    label = kind.__name__
    if kind in ACTIVATION_MODULES:
        name, param, attributes = ACTIVATION_MODULES[kind]
        config = tuple((a, getattr(module, a)) for a in attributes)
        if kind is nn.GELU and module.approximate == "tanh":
            name = "gelu_tanh"
        if kind is nn.Softplus and module.threshold != 20:
            return Refusal("Softplus has a threshold of its own")
        if kind is nn.ReLU6 and (module.min_val, module.max_val) != (0.0, 6.0):
            return Refusal("ReLU6 has bounds of its own")
        value = getattr(module, param) if param else None
        if param and not _finite(value):
            return Refusal(f"{label}'s {param} is no finite number")
        return Step("activation", label, place, kind, config, activation=name, param=value)
    if kind in POOL_MODULES:
        config = tuple((a, getattr(module, a)) for a in POOL_MODULES[kind])
        pooling = _pooling(kind, dict(config))
        if isinstance(pooling, Refusal):
            return pooling
        return Step("pooling", label, place, kind, config, pooling=pooling)
    if kind is nn.BatchNorm2d:
        if module.running_mean is None or module.running_var is None:
            return Refusal("BatchNorm2d keeps no running statistics")
        return Step("norm", label, place, kind)
    if kind in DROPOUT_MODULES or f"{kind.__module__}.{kind.__qualname__}" in DROPOUT_CLASSES:
        return Step("dropout", label, place, kind)
    if kind is nn.Identity:
        return Step("identity", label, place, kind)
    return Refusal(f"{label} is none of the layers that can be fused")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def step_of_call(
    node: Node, value: Node, constant_place: Callable[[Node], int | None]
) -> Step | Refusal:
    """The step that a functional call or a method call of `value` is.

    `constant_place` gives the place of a node that reads a parameter or buffer among the match's
    constants, None for every other node.
    """
    label = node.target if isinstance(node.target, str) else node.target.__name__
    times = sum(argument is value for argument in node.args)
    if times != 1:
        why = "takes the value more than once" if times else "is no operation that can be fused"
        return Refusal(f"{label} {why}")
    args: list[tuple[str, Any]] = []
    for argument in node.args:
        if argument is value:
            args.append(("value", None))
        elif isinstance(argument, Node):
            place = constant_place(argument)
            if place is None:
                return Refusal(f"{label} takes another value that the model computes")
            args.append(("constant", place))
        else:
            args.append(("literal", argument))
    kwargs = tuple(node.kwargs.items())
    if any(isinstance(v, Node) for _, v in kwargs):
        return Refusal(f"{label} takes another value that the model computes")
    base = Step(
        "identity",
        label,
        call=(node.op, node.target),
        args=tuple(args),
        kwargs=kwargs,
    )
    rest = [payload for tag, payload in args if tag == "literal"]
    key: Any = node.target
    if key in ARITHMETIC:
        return _arithmetic(base, ARITHMETIC[key])
    if not args or args[0][0] != "value" or any(tag == "constant" for tag, _ in args):
        return Refusal(f"{label} is no operation that can be fused")
    given = dict(kwargs)
    if key in ACTIVATION_CALLS:
        return _activation_call(base, key, rest, given)
    if key is F.hardtanh:
        bounds = [*rest, *(given[n] for n in ("min_val", "max_val") if n in given)]
        if bounds[:2] != [0, 6]:
            return Refusal("hardtanh is fused as ReLU6 alone")
        return replace(base, kind="activation", activation="relu6")
    if key in POOL_CALLS:
        kind = POOL_CALLS[key]
        values = _bind(POOL_ARGUMENTS[kind], rest, given)
        if values is None:
            return Refusal(f"{label} is called with arguments that are not known here")
        pooling = _pooling(kind, values)
        if isinstance(pooling, Refusal):
            return pooling
        return replace(base, kind="pooling", pooling=pooling)
    if key in ("mean", torch.mean):
        return _average(base, rest, given)
    if key in DROPOUT_FUNCTIONS:
        values = _bind((("p", 0.5), ("training", True), ("inplace", False)), rest, given)
        if values is None or values["training"] is not False:
            return Refusal(f"{label} drops in this mode")
        return base
    return Refusal(f"{label} is no operation that can be fused")


def _bind(
    names: tuple[tuple[str, Any], ...], rest: list[Any], given: dict[str, Any]
) -> dict[str, Any] | None:
    values = dict(names)
    if len(rest) > len(names) or not set(given) <= set(values):
        return None
    values.update(zip((n for n, _ in names), rest, strict=False))
    values.update(given)
    return values


def _activation_call(
    base: Step, key: Any, rest: list[Any], given: dict[str, Any]
) -> Step | Refusal:
    name, param, default = ACTIVATION_CALLS[key]
    if name == "gelu":
        approximate = given.get("approximate", "none")
        if rest or approximate not in ("none", "tanh"):
            return Refusal("gelu is called with arguments that are not known here")
        name = "gelu_tanh" if approximate == "tanh" else "gelu"
        return replace(base, kind="activation", activation=name)
    value: Any = default
    if param is not None:
        value = rest[0] if rest else given.get(param, default)
        if not _finite(value):
            return Refusal(f"{base.label}'s {param} is computed in forward")
    if name == "elu" and (given.get("scale", 1.0) != 1.0 or given.get("input_scale", 1.0) != 1.0):
        return Refusal("elu is scaled")
    if name == "softplus":
        threshold = rest[1] if len(rest) > 1 else given.get("threshold", 20)
        if threshold != 20:
            return Refusal("softplus has a threshold of its own")
    return replace(base, kind="activation", activation=name, param=value)


def _average(base: Step, rest: list[Any], given: dict[str, Any]) -> Step | Refusal:
    values = _bind((("dim", None), ("keepdim", False), ("dtype", None)), rest, given)
    if values is None or values["keepdim"] is not True or values["dtype"] is not None:
        return Refusal(f"{base.label} is called with arguments that are not known here")
    dims = values["dim"]
    if not _literal_pair(dims) or type(dims) is int or {d % 4 for d in dims} != {2, 3}:
        return Refusal(f"{base.label} averages other dimensions than height and width")
    return replace(base, kind="pooling", pooling=Pooling("avg", output_size=(1, 1), reduces=True))


def _arithmetic(base: Step, kind: str) -> Step | Refusal:
    if len(base.args) != 2 or base.kwargs:
        return Refusal(f"{base.label} is called with arguments that are not known here")
    first, second = base.args
    constant = second if first[0] == "value" else first
    if first[0] != "value":
        if kind == "div":
            return Refusal("dividing by the value can't be folded")
        kind = "rsub" if kind == "sub" else kind
    if constant[0] == "literal":
        number = constant[1]
        if not _finite(number) or (kind in ("mul", "div") and number == 0):
            return Refusal(f"{base.label} by {number!r} can't be folded exactly enough")
    return replace(base, kind=kind, constant=constant)


def run_step(step: Step, x: Tensor, modules: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
    """The step as the model wrote it."""
    if step.module is not None:
        return modules[step.module](x)
    assert step.call is not None
    args = [
        x if tag == "value" else constants[payload] if tag == "constant" else payload
        for tag, payload in step.args
    ]
    op, target = step.call
    if op == "call_method":
        return getattr(args[0], target)(*args[1:], **dict(step.kwargs))
    return target(*args, **dict(step.kwargs))


# Of a module, in its __dict__: who watches its calls.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches or replaces the calls of `module`."""
    state = module.__dict__
    for name in HOOKS:
        if state[name]:
            return True
    return "forward" in state


def as_matched(step: Step, module: Any) -> bool:
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


def even_window(
    size: tuple[int, int], output_size: tuple[int | None, int | None]
) -> tuple[int, int] | None:
    """The window of an adaptive pooling that divides planes of `size` evenly, or None."""
    window = []
    for length, out in zip(size, output_size, strict=True):
        out = length if out is None else out
        if out < 1 or length < out or length % out:
            return None
        window.append(length // out)
    return window[0], window[1]
