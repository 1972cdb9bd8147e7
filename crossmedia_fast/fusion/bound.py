"""A fused call without gradients, bound to what it was made of: made again at little cost.

Finding out what to run costs as much Python as a small convolution takes; in a network, with the
caches full of feature maps, several times as much. So a call that went well is kept, with all that
it depended on, and the next one asks whether any of that has changed.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import native, precision
from ..backends import why_unavailable
from ..ops.conv_act_pool import cpu_weights, interface, prepared
from ..ops.conv_act_pool.cpu_conv import FusedConv2d, reads_channels_last
from ..ops.memory import fresh
from .folding import FoldCache, Folded, fold
from .memory import Memory, parts_of
from .steps import HOOKS, PLAIN, Step
from .trust import Watched

# What a plan depends on beside tensors and arguments: attributes of modules.
_SETTINGS = (
    (sys.modules[why_unavailable.__module__], "_requested"),
    (precision, "_precision"),
    (native, "module"),
    (prepared, "forced_algorithm"),
)
# What the fused operation takes of a layer beside its parameters.
_READ = {
    "conv": ("stride", "padding", "output_padding", "dilation", "groups", "padding_mode"),
    "norm": ("eps",),
}
# Algorithms that write some channels of a larger tensor.
_INTO = ("patches", "pointwise", "winograd")
_PARAMETERS = (("_parameters", "weight"), ("_parameters", "bias"))
_STATISTICS = (("_buffers", "running_mean"), ("_buffers", "running_var"))


class BoundCall(Watched):
    """One region's call for one convolution and one shape of x."""

    __slots__ = (
        "call",
        "call_affine",
        "call_into",
        "call_residual",
        "constants",
        "dtype",
        "owner",
        "strides",
        "y_shape",
        "y_strides",
    )

    def __init__(
        self,
        x: Tensor,
        constants: tuple[Any, ...],
        guard: Any,
        memory: Memory,
        call: Call,
    ) -> None:
        super().__init__(guard, memory)
        self.dtype = x.dtype
        self.strides = x.stride()
        self.constants = constants
        self.call = call.run
        self.call_into = call.into
        self.call_affine = call.affine
        self.call_residual = call.residual
        self.y_shape = call.y_shape
        self.y_strides = call.y_strides
        self.owner: Any = None  # a reference to the convolution that ends with it

    @property
    def takes_affine(self) -> bool:
        """Whether the kernel packs x, and can normalise or multiply it there."""
        return self.call_affine is not None

    def takes_residual(self, residual: Any) -> bool:
        """Whether the kernel can add `residual` to the convolution's output."""
        return (
            self.call_residual is not None
            and type(residual) in PLAIN
            and residual.shape == self.y_shape
            and residual.stride() == self.y_strides
            and residual.dtype is self.dtype
            and residual.is_cpu
            and not residual.is_neg()
        )

    def run(
        self,
        x: Tensor,
        modules: tuple[Any, ...],
        constants: tuple[Any, ...],
        joint: Any = None,
        place: int = 0,
        affine: tuple[Tensor, Tensor | None] | None = None,  # of `takes_affine`
        channels: int = 0,  # of the tensor that x is a part of; with `affine` alone
        residual: Tensor | None = None,  # of `takes_residual`
    ) -> Tensor | None:
        """The result, or None where something has changed. Without gradients alone.

        It is a part of `joint`'s tensor where that has one for it and the call can write there.
        With `affine`, of relu(x · scale + shift), both [C], or of x · scale [N, C] alone. With
        `residual`, which is added before the activation.
        """
        if (
            (x.stride() != self.strides and not channels)
            or x.dtype is not self.dtype
            or not x.is_cpu
            or not self.holds(modules)
        ):
            return None
        for constant, known in zip(constants, self.constants, strict=True):
            if constant is not known:
                return None
        if joint is not None and self.call_into is not None:
            y = joint.part(place, self.y_shape, x)
            if y is not None:
                self.call_into(x, y)
                return y
        if residual is not None:
            assert self.call_residual is not None
            return self.call_residual(x, residual, affine)
        if affine is None:
            return self.call(x)
        assert self.call_affine is not None
        return self.call_affine(x, *affine, channels)


def bind(
    steps: tuple[Step, ...],
    make: Callable[[Folded], Call],
    linear: tuple[Step, ...],  # those of them that are folded into the weights
    x: Tensor,
    modules: tuple[Any, ...],
    constants: tuple[Any, ...],
    cache: FoldCache,
) -> BoundCall | None:
    """The call of `steps` that has just been made for `x`; None where it can't be bound."""
    conv = modules[0]
    if native.module is None or not x.is_cpu or conv.padding_mode != "zeros" or not x.numel():
        return None
    guard = guard_of(steps, modules)
    if guard is None:
        return None
    weight, bias = conv._parameters["weight"], conv._parameters["bias"]
    if linear:
        if cache.get(conv) is None:
            fold(cache, conv, linear, modules, constants, x)
        kept = cache.get(conv)
        if kept is None or kept.folded is None:
            return None
        memory = kept.memory
        call = make(kept.folded)
        if not call.keeps:  # the weights are read where they are: what scales them was made
            parts = memory.hashed
            assert parts[0][0] is weight
            memory = Memory(parts[1:], parts[:1])
            if not kept.memory.holds():
                return None
            cache.drop(conv)  # weights that nobody needs
        return BoundCall(x, constants, guard, memory, call)
    found = parts_of([weight, bias])
    if found is None:
        return None
    memory = Memory(found, [])  # before anything is made of it: a write meanwhile will be noticed
    call = make(Folded(weight, bias, weight, None))
    return BoundCall(x, constants, guard, memory if call.keeps else Memory([], found), call)


def guard_of(steps: tuple[Step, ...], modules: tuple[Any, ...]) -> Any:
    """Of all that a call of the steps reads of modules and settings; None where it can't be
    watched."""
    owners: list[Any] = []
    records: list[Any] = [
        (vars(module), name, "is", vars(module)[name]) for module, name in _SETTINGS
    ]
    kinds = {step.module: step for step in steps if step.module is not None}
    for place, module in enumerate(modules):
        step, own = kinds[place], module.__dict__
        owners.append((id(module), type(module), own))
        records += [(own, name, "empty", None) for name in HOOKS]
        records.append((own, "forward", "absent", None))
        names = [*_READ.get(step.kind, ()), *(name for name, _ in step.config)]
        if step.modal:
            names.append("training")
        if any(name not in own for name in names):
            return None
        records += [(own, name, "is", own[name]) for name in names]
        tensors: tuple[tuple[str, str], ...] = _PARAMETERS if step.kind in _READ else ()
        if step.kind == "norm":
            tensors += _STATISTICS
        for store, name in tensors:
            records.append((own, store, "is", own[store]))
            records.append((own[store], name, "is", own[store][name]))
    return native.module.StateGuard(tuple(owners), tuple(records))  # type: ignore[union-attr]


class Call(NamedTuple):
    """The operation as a function of x."""

    run: Callable[[Tensor], Tensor]
    into: Callable[[Tensor, Tensor], None] | None = None  # the same into some channels of a tensor
    # of BoundCall.run
    affine: Callable[[Tensor, Tensor, Tensor | None, int], Tensor] | None = None
    residual: Callable[[Tensor, Tensor, Any], Tensor] | None = None  # the same
    y_shape: tuple[int, ...] = ()
    y_strides: tuple[int, ...] = ()
    keeps: bool = False  # whether something made of the weights is kept in it


def native_call(
    # of x, y, the distance of y's pixels or 0, and pointers of scale, shift and residual
    write: Callable[..., None],
    y_shape: tuple[int, ...],
    y_strides: tuple[int, ...],
    joins: bool,  # whether it can write some channels of a larger tensor
    keeps: bool,
    packs: bool = False,  # whether it packs x, and can normalise it there
    adds: bool = False,  # whether it can add a residual
) -> Call:
    def call(x: Tensor) -> Tensor:
        y = fresh(x, y_shape, y_strides)
        write(x, y, 0)
        return y

    def call_into(x: Tensor, y: Tensor) -> None:
        write(x, y, y.stride(3))

    def call_affine(x: Tensor, scale: Tensor, shift: Tensor | None, channels: int) -> Tensor:
        y = fresh(x, y_shape, y_strides)
        write(x, y, 0, scale.data_ptr(), 0 if shift is None else shift.data_ptr(), 0, channels)
        return y

    def call_residual(x: Tensor, residual: Tensor, affine: Any) -> Tensor:
        y = fresh(x, y_shape, y_strides)
        scale, shift = (None, None) if affine is None else affine
        pointers = [0 if t is None else t.data_ptr() for t in (scale, shift, residual)]
        write(x, y, 0, *pointers)
        return y

    return Call(
        call,
        call_into if joins else None,
        call_affine if packs else None,
        call_residual if adds else None,
        y_shape,
        y_strides,
        keeps,
    )


def conv_call(
    x: Tensor,
    filters: Folded,
    conv: Any,
    arguments: dict[str, Any],  # of conv_act_pool2d, for what follows the convolution
) -> Call:
    weight, bias = filters.weight, filters.bias
    ready = interface.prepare_conv_act_pool2d(
        x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups, **arguments
    )
    fused = ready.native
    if (
        type(fused) is not FusedConv2d
        or x.dim() != 4
        or x.stride() != fused.launch.x_strides
        or (bias is not None and not bias.is_contiguous())
    ):
        return Call(
            lambda x: interface.run_prepared(x, weight, bias, ready),
            keeps=weight is not filters.raw,
        )
    algorithm, problem = fused.algorithm, fused.launch.native
    pool_launch = fused.launch.pool_launch
    scale = None
    if filters.scale is not None and fused.launch.reads(algorithm, filters.raw):
        weight = filters.raw
        scale = filters.scale.expand(weight.shape[0]).contiguous()
    transformed = fused.prepare(weight, save=False)
    last = transformed is None and reads_channels_last(algorithm, weight)
    dense = weight if last else cpu_weights.contiguous(weight, transformed)
    pointers = [0 if t is None else t.data_ptr() for t in (dense, transformed, bias)]
    forward = native.module.conv_act_pool2d_forward  # type: ignore[union-attr]
    w_scale = 0 if scale is None else scale.data_ptr()
    holds = (dense, transformed, bias, scale)  # the pointers' memory

    def write(
        x: Tensor,
        y: Tensor,
        pixel: int,
        scale: int = 0,
        shift: int = 0,
        residual: int = 0,
        channels: int = 0,
        holds: Any = holds,
    ) -> None:
        threads = native.thread_count()
        forward(
            *(algorithm, problem, x.data_ptr(), *pointers, y.data_ptr(), 0, 0, threads),
            *(pixel, scale, shift, last, residual, w_scale, channels),
        )

    refusal = native.module.conv_act_pool2d_residual_refusal  # type: ignore[union-attr]

    return native_call(
        write,
        pool_launch.y_shape,
        pool_launch.y_strides,
        pool_launch.channels_last and algorithm in _INTO,
        dense is not filters.raw or transformed is not None,
        algorithm == "pointwise",
        not refusal(algorithm, problem),
    )


class BoundCalls:
    """The bound calls of a region, by convolution and shape."""

    MOST = 64

    def __init__(self) -> None:
        self.calls: dict[Any, BoundCall] = {}

    def find(self, conv: Any, x: Tensor) -> BoundCall | None:
        return self.calls.get((id(conv), x.shape))

    def run(
        self,
        x: Any,
        modules: tuple[Any, ...],
        constants: tuple[Any, ...],
        joint: Any = None,
        place: int = 0,
    ) -> Tensor | None:
        """The result of the call that is bound for `x`; None where none is, where something has
        changed, and with gradients."""
        if type(x) not in PLAIN or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return None
        known = self.find(modules[0], x)
        return None if known is None else known.run(x, modules, constants, joint, place)

    def drop(self, conv: Any, x: Tensor) -> None:
        self.calls.pop((id(conv), x.shape), None)

    def keep(self, conv: Any, x: Tensor, call: BoundCall | None) -> None:
        if call is None:
            return
        calls, key = self.calls, (id(conv), x.shape)
        if len(calls) >= self.MOST:
            calls.clear()
        call.owner = weakref.ref(conv, lambda _: calls.pop(key, None))
        calls[key] = call
