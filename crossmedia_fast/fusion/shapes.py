"""The shapes that reach each convolution, and what the plan makes of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ..ops.conv_act_pool import explain_conv_act_pool2d
from .given import CONV_CALLS
from .region import LINEAR, adaptive_window
from .steps import Step, fused_arguments

# Folded weights are asked at every call whether they still hold, which reads those of the model: at
# 16 bytes a nanosecond these many while PyTorch starts a BatchNorm, and while it passes over a
# value. The native module's convolutions read weights that they keep, and gain more.
_FOLDED_AT_ONCE = 80_000
_FOLDED_A_VALUE = 3


class Seen(NamedTuple):
    """A tensor that reached a convolution, without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's call."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(
        "example_inputs must be a tensor, a tuple of the model's arguments or a dict of its "
        f"keywords, got {type(example_inputs).__name__}"
    )


def run_shapes(model: nn.Module, example_inputs: Any) -> dict[str, list[Seen]]:
    """The inputs of every convolution, by its path, in one call of the model.

    The path of a call of F.conv2d is its weight's.

    Nothing is computed and nothing of the model changes: a copy of fake tensors runs. A model whose
    control flow asks for values runs once for real, as a copy too.
    """
    args, kwargs = as_call(example_inputs)
    seen: dict[str, list[Seen]] = {}
    state = torch.random.get_rng_state()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            with FakeCopyMode(mode):
                twin = copy.deepcopy(model)
            fake = tree_map_only(Tensor, mode.from_tensor, (args, kwargs))
            _run(twin, fake[0], fake[1], seen)
    except Exception:  # what a model does without values is its own affair
        seen.clear()
        with torch.no_grad():
            _run(copy.deepcopy(model), args, kwargs, seen)
    finally:
        torch.random.set_rng_state(state)
    return seen


def _see(seen: dict[str, list[Seen]], path: str, x: Tensor) -> None:
    found = Seen(tuple(x.shape), tuple(x.stride()), x.dtype, x.device)
    seen.setdefault(path, []).append(found)


class _Calls(TorchFunctionMode):
    """Sees the inputs of F.conv2d's calls with parameters of the model."""

    def __init__(self, model: nn.Module, seen: dict[str, list[Seen]]) -> None:
        super().__init__()
        self.paths: dict[int, list[str]] = {}
        for path, parameter in model.named_parameters(remove_duplicate=False):
            self.paths.setdefault(id(parameter), []).append(path)
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CONV_CALLS:
            given = dict(zip(("input", "weight"), args, strict=False), **kwargs)
            for path in self.paths.get(id(given.get("weight")), ()):
                _see(self.seen, path, given["input"])
        return func(*args, **kwargs)


def _run(model: nn.Module, args: Any, kwargs: Any, seen: dict[str, list[Seen]]) -> None:
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(_: nn.Module, inputs: Any, path: str = path) -> None:
                if inputs and isinstance(inputs[0], Tensor):
                    _see(seen, path, inputs[0])

            handles.append(module.register_forward_pre_hook(note))
    try:
        with _Calls(model, seen):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def declined(conv: Any, steps: tuple[Step, ...], inputs: list[Seen], training: bool) -> str:
    """Why the plan has nothing faster than PyTorch for any of these inputs; "" where it has."""
    reason = "the example input does not reach it"
    for seen in inputs:
        reason = _declined(conv, steps, seen, training)
        if not reason:
            return ""
    return reason


def _declined(conv: Any, steps: tuple[Step, ...], seen: Seen, training: bool) -> str:
    if seen.device.type == "meta":
        return "the example input has no device"
    x = torch.empty_strided(seen.shape, seen.stride, dtype=seen.dtype, device=seen.device)
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        shape = (*seen.shape[:-2], seen.shape[-2] + top + bottom, seen.shape[-1] + left + right)
        x, padding = x.new_empty(shape), 0
    arguments = fused_arguments(steps)
    pooling = next((s.pooling for s in steps if s.pooling is not None), None)
    if pooling is not None and pooling.output_size is not None:
        size = adaptive_window(x, conv, padding, pooling.output_size)
        if size is None:
            return "the adaptive pooling does not divide its input evenly"
        arguments.update(pool_size=size, pool_stride=size)
    bias = conv.bias
    linear = any(step.kind in LINEAR for step in steps)
    if linear and bias is None:
        bias = conv.weight.new_empty(conv.weight.shape[0])
    try:
        with torch.set_grad_enabled(training):
            plan = explain_conv_act_pool2d(
                x,
                conv.weight,
                bias,
                conv.stride,
                padding,
                conv.dilation,
                conv.groups,
                **arguments,
            )
    except (TypeError, ValueError, NotImplementedError) as error:
        return str(error)
    if plan.backend == "reference":
        return "no compiled backend runs here: " + "; ".join(
            f"{n}: {w}" for n, w in plan.rejected_backends
        )
    if plan.algorithm == "convolution" and not linear:
        return plan.reason
    if linear and plan.algorithm in ("convolution", "epilogue"):
        values = x.shape[0] * conv.out_channels * x.shape[-2] * x.shape[-1]
        values //= conv.stride[0] * conv.stride[1]
        if conv.weight.numel() > _FOLDED_AT_ONCE + _FOLDED_A_VALUE * values:
            return "what is folded touches so few values that folding it costs as much"
    return ""
