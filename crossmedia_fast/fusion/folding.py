"""Folds what is linear between convolution and activation into the weights and the bias.

A BatchNorm in eval mode, and constants added, subtracted, multiplied or divided by, are one scale
and one shift a channel: act(s · (w ∗ x + b) + t) = act((s · w) ∗ x + (s · b + t)).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..ops.conv_act_pool import cpu_weights
from .memory import Memory, parts_of
from .steps import Step


class Folded(NamedTuple):
    """A convolution's filters, with all that is linear behind it."""

    weight: Tensor
    bias: Tensor | None
    raw: Tensor  # the convolution's own weight: `weight` is raw · scale
    scale: Tensor | None  # [K] or [1]


class _Kept:
    """Folded weights, with what they were made of."""

    __slots__ = ("folded", "memory", "settings", "tensors")

    def __init__(self, parts: list[Any], settings: Any) -> None:
        self.tensors = [tensor for tensor, *_ in parts]
        self.memory = Memory(parts, [])
        self.settings = settings
        self.folded: Folded | None = None

    def holds(self, tensors: list[Any], settings: Any) -> bool:
        """Whether nothing has changed since: no tensor, no layout, no byte."""
        if settings != self.settings:
            return False
        for tensor, known in zip(tensors, self.tensors, strict=True):
            if tensor is not known:
                return False
        return self.memory.holds()


class FoldCache:
    """Folded weights by convolution.

    Every parameter and buffer that went in is hashed at every call, so that no write to them, by
    whatever way, leaves a stale weight behind.
    """

    def __init__(self) -> None:
        self.entries: Any = WeakIdKeyDictionary()  # of modules; of a call, by its weight

    def __reduce__(self) -> Any:
        return FoldCache, ()

    def get(self, conv: Any) -> Any:
        return self.entries.get(_key(conv))

    def drop(self, conv: Any) -> None:
        self.entries.pop(_key(conv), None)


def per_channel(constant: Tensor, channels: int) -> bool:
    """Whether `constant` has one value a channel of [N, channels, H, W], or one for all."""
    shape = tuple(constant.shape)
    while shape and len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    return len(shape) <= 4 and (
        (constant.numel() == 1 and len(shape) <= 3) or shape == (channels, 1, 1)
    )


def norm_tensors(norm: Any) -> tuple[Any, ...]:
    """A BatchNorm's weight, bias, mean and variance, without a look-up that could run code."""
    parameters, buffers = norm._parameters, norm._buffers
    return (
        parameters["weight"],
        parameters["bias"],
        buffers["running_mean"],
        buffers["running_var"],
    )


def foldable(conv: nn.Conv2d, steps: tuple[Step, ...], modules: Any, constants: Any) -> bool:
    """Whether all that the steps use has the weight's dtype and device and one value a channel."""
    weight = conv.weight
    if weight.dtype not in (torch.float32, torch.float64):
        return False
    channels = conv.out_channels
    used: list[Any] = [conv.bias]
    for step in steps:
        if step.kind == "norm":
            norm = modules[step.module]
            used += norm_tensors(norm)
            if norm.num_features != channels:
                return False
        elif step.constant is not None and step.constant[0] == "constant":
            constant = constants[step.constant[1]]
            if not per_channel(constant, channels):
                return False
            used.append(constant)
    return all(
        tensor is None or (tensor.dtype == weight.dtype and tensor.device == weight.device)
        for tensor in used
    )


def _tensors(conv: nn.Conv2d, steps: tuple[Step, ...], modules: Any, constants: Any) -> list[Any]:
    parameters = conv._parameters
    used: list[Any] = [parameters["weight"], parameters["bias"]]
    for step in steps:
        if step.kind == "norm":
            used += norm_tensors(modules[step.module])
        elif step.constant is not None and step.constant[0] == "constant":
            used.append(constants[step.constant[1]])
    return used


def norm_affine(norm: Any, shift: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """s and t of norm(z + shift) = s · z + t, for a BatchNorm in eval mode."""
    scale = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    mean = norm.running_mean.to(dtype)
    moved = (-mean if shift is None else shift - mean) * scale
    return scale, moved if norm.bias is None else moved + norm.bias.to(dtype)


def _compute(
    conv: nn.Conv2d,
    steps: tuple[Step, ...],
    modules: Any,
    constants: Any,
    dtype: torch.dtype,
) -> Folded:
    scale: Any = None
    shift: Any = None if conv.bias is None else conv.bias.to(dtype)

    def plus(value: Any) -> Any:
        return value if shift is None else shift + value

    for step in steps:
        if step.kind == "norm":
            factor, shift = norm_affine(modules[step.module], shift, dtype)
            scale = factor if scale is None else scale * factor
            continue
        assert step.constant is not None
        tag, value = step.constant
        if tag == "constant":
            value = constants[value].to(dtype).reshape(-1)
        if step.kind == "add":
            shift = plus(value)
        elif step.kind == "sub":
            shift = plus(-value)
        elif step.kind == "rsub":
            shift = value if shift is None else value - shift
            scale = -1.0 if scale is None else -scale
        elif step.kind == "mul":
            shift = None if shift is None else shift * value
            scale = value if scale is None else scale * value
        else:
            shift = None if shift is None else shift / value
            scale = 1 / value if scale is None else scale / value
    weight = conv.weight
    if scale is not None:
        if not isinstance(scale, Tensor):
            scale = torch.full((1,), scale, dtype=dtype, device=weight.device)
        scale = scale.to(weight.dtype)  # so that a kernel which scales the filters has these bits
        weight = weight * scale.reshape((1, -1, 1, 1) if conv.transposed else (-1, 1, 1, 1))
    channels = conv.out_channels
    if shift is not None and not isinstance(shift, Tensor):
        shift = conv.weight.new_full((channels,), shift)
    if shift is not None:
        shift = shift.to(conv.weight.dtype).expand(channels)
    return Folded(weight, shift, conv.weight, scale)


def fold(
    cache: FoldCache,
    conv: nn.Conv2d,
    steps: tuple[Step, ...],
    modules: Any,
    constants: Any,
    x: Tensor,
) -> Folded | None:
    """The filters of the convolution that computes the steps too; None: fold nothing."""
    tensors = _tensors(conv, steps, modules, constants)
    if not torch.compiler.is_compiling():
        settings = [len(steps)]
        settings += [modules[step.module].eps for step in steps if step.kind == "norm"]
        kept = cache.get(conv)
        learning = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in tensors
        )
        if kept is not None and not learning and kept.holds(tensors, settings):
            return kept.folded
        if not foldable(conv, steps, modules, constants) or (learning and not _worth(conv, x)):
            return None
        parts = None if learning else parts_of(tensors)
        if parts is not None:
            return _keep(cache, conv, steps, modules, constants, parts, settings)
    elif not foldable(conv, steps, modules, constants):
        return None
    return _compute(conv, steps, modules, constants, conv.weight.dtype)


def _keep(
    cache: FoldCache,
    conv: nn.Conv2d,
    steps: tuple[Step, ...],
    modules: Any,
    constants: Any,
    parts: list[Any],
    settings: Any,
) -> Folded | None:
    """Fold in double precision, once, and keep the result; None where it overflows."""
    kept = _Kept(parts, settings)  # hashed before they are read: a write meanwhile will be noticed
    with torch.inference_mode(False), torch.no_grad():
        folded = _compute(conv, steps, modules, constants, torch.float64)
        weight, bias = folded.weight, folded.bias
        finite = all(t is None or bool(t.isfinite().all()) for t in (weight, bias))
        if finite:
            kept.folded = folded._replace(bias=None if bias is None else bias.contiguous())
    if weight is not conv.weight:
        cpu_weights.never_changes(weight)
    cache.entries[_key(conv)] = kept
    return kept.folded


def _key(conv: Any) -> Any:
    return conv if isinstance(conv, nn.Module) else conv.weight


def _worth(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether scaling the weights at every call is less work than the pass that it saves."""
    positions = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return positions >= conv.weight[0].numel()
