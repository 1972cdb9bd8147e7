"""BatchNorm in eval mode and ReLU before a convolution: done where its kernel packs the input.

DenseNet normalises before each convolution. Behind a 1×1 convolution's packing, which touches
every value anyway, that costs nothing; alone it is two passes. Without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .bound import BoundCall, guard_of
from .chains import stands_before, step_at, watched
from .folding import norm_affine, norm_tensors
from .memory import Memory, parts_of
from .normalizing import NormMatch, run_steps
from .region import Region
from .steps import PLAIN, Step, as_matched
from .trust import Watched

_MOST_REFUSED = 256


class PrologueCall(Watched):
    """What a region's bound call is given beside x: the BatchNorm as scale and shift."""

    __slots__ = ("affine",)

    def __init__(self, norm: Any, guard: Any, memory: Memory) -> None:
        super().__init__(guard, memory)
        scale, shift = norm_affine(norm, None, torch.float64)
        self.affine = scale.float(), shift.float()


class PrologueRegion:
    """A BatchNorm, a ReLU and the region behind them, as a function of x and their modules."""

    def __init__(self, name: str, steps: tuple[Step, ...], region: Region) -> None:
        self.steps = steps  # the BatchNorm and the ReLU
        self.region = region
        self.calls: dict[Any, PrologueCall] = {}  # by BatchNorm; the region knows those of x
        self.refused: set[Any] = set()  # shapes of x whose convolution packs nothing
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return PrologueRegion, (self.__name__, self.steps, self.region)

    def __call__(
        self,
        x: Any,
        before: tuple[Any, ...],  # the modules of its own steps
        modules: tuple[Any, ...],  # and the region's
        constants: tuple[Any, ...],
        part: bool = False,  # whether x may be the first channels of a larger tensor
    ) -> Any:
        bindable = type(x) in PLAIN and not (
            torch.compiler.is_compiling() or torch.is_grad_enabled()
        )
        if bindable:
            y = self._run(x, before, modules, constants, part)
            if y is not None:
                return y
        if part:
            x = _dense(x)
        y = self.region(run_steps(self.steps, x, before, ()), modules, constants)
        if bindable and x.shape not in self.refused:
            self._bind(x, before, self.region.bound.find(modules[0], x))
            # this call too: the next one shall give the same bits
            again = self._run(x, before, modules, constants)
            return y if again is None else again
        return y

    def _run(
        self,
        x: Tensor,
        before: tuple[Any, ...],
        modules: tuple[Any, ...],
        constants: Any,
        part: bool = False,
    ) -> Tensor | None:
        """The result of the bound call; None where there is none, or something has changed."""
        call = self.calls.get(id(before[0]))
        known = None if call is None else self.region.bound.find(modules[0], x)
        if call is None or known is None or not known.takes_affine or not call.holds(before):
            return None
        channels = 0
        if part and x.stride() != known.strides:
            channels = _channels_around(x, known.strides)
            if not channels:
                return None
        return known.run(x, modules, constants, affine=call.affine, channels=channels)

    def _bind(self, x: Tensor, before: tuple[Any, ...], known: BoundCall | None) -> None:
        """Let the next call without gradients do all in one."""
        self.calls.pop(id(before[0]), None)
        norm = before[0]
        if known is None or not known.takes_affine or x.dtype is not torch.float32:
            if len(self.refused) < _MOST_REFUSED:
                self.refused.add(x.shape)
            return
        if not all(
            step.module is None or as_matched(step, before[step.module]) for step in self.steps
        ):
            return
        tensors = list(norm_tensors(norm))
        if any(t is not None and t.dtype is not torch.float32 for t in tensors):
            return
        parts = parts_of(tensors)
        guard = None if parts is None else guard_of(self.steps, before)
        if parts is not None and guard is not None:
            memory = Memory(parts, [])  # before it is read: a write meanwhile will be noticed
            self.calls[id(norm)] = PrologueCall(norm, guard, memory)


def _channels_around(x: Tensor, strides: tuple[int, ...]) -> int:
    """Of the tensor whose first channels x is; 0 where `strides` are another format's."""
    _, channels, height, width = x.shape
    image, channel, row, column = x.stride()
    last = channel == 1 == strides[1]
    whole = column if last else image // (height * width)
    steps = (width * whole, whole) if last else (width, 1)
    same = steps == (row, column) and channel == (1 if last else height * width)
    same = same and image == height * width * whole and strides[3] == (channels if last else 1)
    return whole if same and whole >= channels else 0


def _dense(x: Tensor) -> Tensor:
    last = x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def find_prologue(node: Node, module_at: Callable[[str], Any]) -> NormMatch | None:
    """The BatchNorm and the ReLU in front of a region's call, whose results nobody else takes."""
    relu = node.args[0]
    if not isinstance(relu, Node) or len(relu.users) != 1:
        return None
    activation = step_at(relu, 0, module_at)
    if activation is None or activation.activation != "relu" or watched(relu, module_at):
        return None
    norm = relu.args[0]
    if not isinstance(norm, Node) or len(norm.users) != 1 or norm.op != "call_module":
        return None
    first = step_at(norm, 0, module_at)
    if first is None or first.kind != "norm" or watched(norm, module_at):
        return None
    if not stands_before(norm, node, relu):
        return None
    second = activation if activation.module is None else replace(activation, module=1)
    return NormMatch([norm, relu], (first, second))


def rewrite_prologues(graph: Graph, module_at: Callable[[str], Any]) -> list[NormMatch]:
    """Let regions that begin with a 1×1 convolution take in the BatchNorm and ReLU before them."""
    found: list[NormMatch] = []
    for node in list(graph.nodes):
        if node.op != "call_function" or type(node.target) is not Region or len(node.args) != 3:
            continue
        region = node.target
        if region.given or module_at(str(node.args[1][0].target)).kernel_size != (1, 1):
            continue
        chain = find_prologue(node, module_at)
        if chain is None:
            continue
        _, modules, constants = node.args
        with graph.inserting_before(chain.nodes[0]):
            before = tuple(
                graph.get_attr(str(part.target))
                for part, step in zip(chain.nodes, chain.steps, strict=True)
                if step.module is not None
            )
        with graph.inserting_before(node):
            whole = PrologueRegion(f"normalised_{len(found)}", chain.steps, region)
            x = chain.nodes[0].args[0]
            call = graph.call_function(whole, (x, before, modules, constants))
        node.replace_all_uses_with(call)
        for part in (node, *reversed(chain.nodes)):
            graph.erase_node(part)
        found.append(chain)
    return found
