"""Pooling that follows no convolution, with the activation before it: found, run as one pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from .. import native
from ..backends import why_unavailable
from ..ops.conv_act_pool import interface
from ..ops.conv_act_pool.arguments import Pool2d, check_pool
from ..ops.conv_act_pool.autograd import ActPool2d
from ..ops.conv_act_pool.kernels import ActPool2dLaunch, launch_for
from .bound import BoundCall, BoundCalls, Call, guard_of
from .chains import Chain, step_at
from .memory import Memory
from .steps import (
    PLAIN,
    Step,
    as_matched,
    even_window,
    fused_arguments,
    run_step,
)

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_backends = sys.modules[why_unavailable.__module__]  # the package exports a function of that name
# Of fewer elements PyTorch's call takes less than ours.
_LEAST_ELEMENTS = 8192
# Whose results are fresh tensors, that an activation in place may change with nobody to see it.
_FRESH = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)
_MOST_LAUNCHES = 64


def pool_of(steps: tuple[Step, ...], size: tuple[int, int]) -> Pool2d | None:
    """The operation that activation and pooling are for planes of `size`, or None."""
    arguments: dict[str, Any] = {"activation_param": None, "pool_padding": 0}
    arguments.update(ceil_mode=False, count_include_pad=True)
    arguments.update(fused_arguments(steps))
    output_size = next(s.pooling.output_size for s in steps if s.pooling is not None)
    if output_size is not None:
        window = even_window(size, output_size)
        if window is None:
            return None
        arguments.update(pool_size=window, pool_stride=window)
    return check_pool(
        arguments["activation"],
        arguments["activation_param"],
        arguments["pool"],
        arguments["pool_size"],
        arguments["pool_stride"],
        arguments["pool_padding"],
        arguments["ceil_mode"],
        arguments["count_include_pad"],
    )


class PoolSteps:
    """An activation and a pooling behind each other, or a pooling: one pass where that is faster.

    Decided at every call, by the tensor's format, size and dtype.
    """

    def __init__(self, steps: tuple[Step, ...], shielded: bool) -> None:
        self.steps = steps
        self.shielded = shielded  # the result may be changed in place, and must stand it
        self.activated = any(step.kind == "activation" for step in steps)
        pooling = next(s.pooling for s in steps if s.pooling is not None)
        self.maximum = pooling.kind == "max"
        # of each plane: a kernel of its own
        self.average = not (self.activated or self.maximum) and pooling.output_size == (1, 1)
        self.reduces = pooling.reduces
        self.launches: dict[Any, tuple[ActPool2dLaunch, Pool2d] | None] = {}

    def __reduce__(self) -> Any:
        return PoolSteps, (self.steps, self.shielded)

    def run(self, x: Any, modules: tuple[Any, ...]) -> Tensor | None:
        """The result, or None where the steps are to run as the model wrote them."""
        if type(x) not in PLAIN or not x.is_cpu or x.dim() != 4:
            return None
        learns = x.requires_grad and torch.is_grad_enabled()
        channels_last = not x.is_contiguous()
        if x.numel() < _LEAST_ELEMENTS or not self._faster(x.dtype, channels_last, learns):
            return None
        if channels_last and not x.is_contiguous(memory_format=torch.channels_last):
            return None
        if not may_run(x) or not all(
            step.module is None or as_matched(step, modules[step.module]) for step in self.steps
        ):
            return None
        key = x.shape, x.dtype, channels_last
        if key not in self.launches:
            if len(self.launches) >= _MOST_LAUNCHES:
                self.launches.clear()
            self.launches[key] = self._launch(x, channels_last)
        found = self.launches[key]
        if found is None:
            return None
        if not learns:
            return self._result(found[0].forward(x, None, False)[0])
        if self.reduces:
            return None
        both = ActPool2d.apply(x, None, *found)
        result: Tensor = both if isinstance(both, Tensor) else both[0]
        # what backward keeps must not be what others change
        return result.clone() if self.shielded and self.activated else result

    def bind(self, x: Tensor, modules: tuple[Any, ...]) -> BoundCall | None:
        """The call that has just been made for x, without gradients; None: it can't be bound."""
        found = self.launches.get((x.shape, x.dtype, not x.is_contiguous()))
        guard = guard_of(self.steps, modules)
        if found is None or guard is None:
            return None
        launch = found[0]

        def run(x: Tensor) -> Tensor:
            return self._result(launch.forward(x, None, False)[0])

        return BoundCall(x, (), guard, Memory([], []), Call(run))

    def _result(self, y: Tensor) -> Tensor:
        return y.as_strided(y.shape, (y.shape[1], 1, 1, 1)) if self.reduces else y

    def _launch(self, x: Tensor, channels_last: bool) -> tuple[ActPool2dLaunch, Pool2d] | None:
        try:
            pool = pool_of(self.steps, (x.shape[2], x.shape[3]))
            if pool is None:
                return None
            return launch_for("cpu", tuple(x.shape), x.dtype, channels_last, pool), pool
        except (TypeError, ValueError):  # what PyTorch says of it is its affair
            return None

    def _faster(self, dtype: torch.dtype, channels_last: bool, learns: bool) -> bool:
        """Measured on Intel's Xeon: PyTorch's pooling of planes takes 2 to 28 times as long, of
        channels_last 2.5 times for maxima without gradients, and as long with. The average of all
        pixels takes it about as long alone, but is five operators: ours is one call, and bound."""
        if not channels_last:
            return True
        if self.average and dtype is torch.float32:
            return not learns
        return self.maximum and (self.activated or not learns)


def may_run(x: Tensor) -> bool:
    return (
        native.module is not None
        and x.dtype in _DTYPES
        and _backends._requested in (None, "cpu")
        and not torch.compiler.is_compiling()
        and not interface._transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


class PoolRegion:
    """A PoolMatch, as a function of its input and its modules."""

    def __init__(self, name: str, steps: tuple[Step, ...], shielded: bool) -> None:
        self.steps = steps
        self.pooling = PoolSteps(steps, shielded)
        self.bound = BoundCalls()
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return PoolRegion, (self.__name__, self.steps, self.pooling.shielded)

    def __call__(self, x: Any, modules: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
        owner = modules[0] if modules else self
        bindable = type(x) in PLAIN and not (
            torch.compiler.is_compiling() or torch.is_grad_enabled()
        )
        known = self.bound.find(owner, x) if bindable else None
        if known is not None:
            y = known.run(x, modules, constants)
            if y is not None:
                return y
        y = self.pooling.run(x, modules)
        if y is not None:
            if bindable:
                self.bound.keep(owner, x, self.pooling.bind(x, modules))
            return y
        for step in self.steps:
            x = run_step(step, x, modules, constants)
        return x


def tail_of(steps: tuple[Step, ...]) -> int:
    """Where the activation and the pooling at the end of a match's steps begin; -1: nowhere."""
    kinds = [step.kind for step in steps]
    if "pooling" not in kinds:
        return -1
    place = kinds.index("pooling")
    if place > 1 and kinds[place - 1] == "activation":
        place -= 1
    return place if all(kind in ("activation", "pooling") for kind in kinds[place:]) else -1


class PoolMatch(Chain):
    """A pooling, and the activation before it."""

    @property
    def path(self) -> str:
        """Of the pooling module; of a call the function's name."""
        node = self.nodes[-1]
        return str(node.target) if node.op == "call_module" else self.steps[-1].label


def find_pools(
    graph: Graph, module_at: Callable[[str], Any], taken: set[Node] | None = None
) -> list[PoolMatch]:
    """The poolings of a graph that are not among the nodes `taken`."""
    found = []
    for node in graph.nodes:
        if taken and node in taken:
            continue
        pooling = step_at(node, 0, module_at)
        if pooling is None or pooling.kind != "pooling":
            continue
        nodes, steps = [node], [pooling]
        before = node.args[0]
        if isinstance(before, Node) and len(before.users) == 1 and not (taken and before in taken):
            activation = step_at(before, 0, module_at)
            if (
                activation is not None
                and activation.kind == "activation"
                and _is_fresh(before.args[0], module_at)
            ):
                pooling = step_at(node, int(activation.module is not None), module_at)
                assert pooling is not None
                nodes, steps = [before, node], [activation, pooling]
        found.append(PoolMatch(nodes, tuple(steps)))
    return found


def _is_fresh(value: Any, module_at: Callable[[str], Any]) -> bool:
    """Whether the value is a layer's result that nobody else takes."""
    return (
        isinstance(value, Node)
        and value.op == "call_module"
        and len(value.users) == 1
        and type(module_at(str(value.target))) in _FRESH
    )
