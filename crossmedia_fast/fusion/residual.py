"""The addition of another tensor behind a convolution, and the activation behind that: done where
the convolution's sums are in registers.

A residual block ends with them (He et al., arXiv 1512.03385): act(conv(x) + shortcut). Alone they
are two passes over the block's widest tensor. The same bits, without gradients.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from .chains import is_sum, step_at, watched
from .gating import GatedRegion
from .matching import READERS, Match
from .prologue import PrologueRegion
from .region import LINEAR, Region
from .steps import PLAIN, Step, run_step, step_of_call

_IN_PLACE = (operator.iadd, "add_")
# behind which the activation can be done: longer ones are passes of their own
_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "hardswish")
_BEFORE = ("conv", "identity", "dropout", *LINEAR)
_REGIONS = (Region, GatedRegion)
_READERS = (*READERS, operator.getitem, F.pad, F.interpolate)


class ResidualRegion:
    """A region, the sum of its result and another tensor, and the activation of that."""

    def __init__(
        self, name: str, region: Region | GatedRegion, total: Step, activation: Step | None
    ) -> None:
        self.region = region
        self.total = total  # whose constant is the residual
        self.activation = activation
        self.count = _module_count(region)
        own = _plain(region)
        # what the kernel computes but for the residual
        behind = () if activation is None else (activation,)
        self.whole = Region(name, (*own.steps, *behind), False)
        self.whole.cache = own.cache
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return ResidualRegion, (self.__name__, self.region, self.total, self.activation)

    def __call__(self, residual: Any, *arguments: Any) -> Any:
        """Of the residual, and of what the region is called with: the activation's module is the
        last of the modules."""
        *values, modules, constants = arguments
        bindable = not (torch.compiler.is_compiling() or torch.is_grad_enabled())
        if bindable:
            y = self._run(residual, values, modules, constants)
            if y is not None:
                return y
        region: Any = self.region
        z = region(*values, modules[: self.count], constants)
        if bindable and self._bind(values, modules, constants):
            # this call too: the next one shall give the same bits
            y = self._run(residual, values, modules, constants)
            if y is not None:
                return y
        y = run_step(self.total, z, (), (residual,))
        return y if self.activation is None else run_step(self.activation, y, modules, ())

    def _run(self, residual: Any, values: list[Any], modules: Any, constants: Any) -> Any:
        for x, affine in self.region.inputs(*values):
            if type(x) not in PLAIN:
                continue
            known = self.whole.bound.find(modules[0], x)
            if known is None or not known.takes_residual(residual):
                continue
            if affine is None or known.takes_affine:
                y = known.run(x, modules, constants, affine=affine, residual=residual)
                if y is None:  # something has changed: it is to be bound anew
                    self.whole.bound.drop(modules[0], x)
                return y
        return None

    def _bind(self, values: list[Any], modules: Any, constants: Any) -> bool:
        """Bind what the region's own call, which has just been made, is bound to."""
        own = _plain(self.region)
        for x, _ in self.region.inputs(*values):
            if type(x) not in PLAIN or own.bound.find(modules[0], x) is None:
                continue
            if self.whole.bound.find(modules[0], x) is None:
                return self.whole.bind_all(x, modules, constants)
        return False


class ResidualMatch(NamedTuple):
    """A sum that a region has taken in."""

    path: str  # of its convolution
    pattern: str


def _plain(region: Region | GatedRegion) -> Region:
    return region.region if isinstance(region, GatedRegion) else region


def _module_count(region: Region | GatedRegion) -> int:
    return sum(step.module is not None for step in _plain(region).steps)


def _is_region(node: Node, kinds: tuple[type, ...]) -> bool:
    return node.op == "call_function" and type(node.target) in kinds


def _changes_nothing(node: Node, module_at: Callable[[str], Any]) -> bool:
    if node.op == "call_module":
        return type(module_at(str(node.target))) in READERS and not watched(node, module_at)
    return node.op == "get_attr" or (
        node.op == "call_function"
        and (node.target in _READERS or type(node.target) in (*_REGIONS, PrologueRegion))
    )


def _undisturbed(first: Node, last: Node, module_at: Callable[[str], Any]) -> bool:
    """Whether nothing between the two changes what `first` was given."""
    between = first.next
    while between is not last and _changes_nothing(between, module_at):
        between = between.next
    return between is last


def total_of(match: Match) -> Node | None:
    """The sum behind a match, which may take it in."""
    users = list(match.nodes[-1].users)
    if match.given or len(users) != 1 or not is_sum(users[0]):
        return None
    return users[0] if all(step.kind in _BEFORE for step in match.steps) else None


def _host(total: Node, module_at: Callable[[str], Any]) -> Node | None:
    """The region that can take in the sum `total`; None where none can, or it is no sum."""
    if not is_sum(total):
        return None
    operands: Any = total.args
    hosts = [
        operand
        for operand in operands
        if _is_region(operand, _REGIONS)
        and len(operand.users) == 1
        and not _plain(operand.target).given
    ]
    # what is changed in place must be nobody else's
    if total.target in _IN_PLACE and operands[0] not in hosts:
        return None
    hosts = [
        host
        for host in hosts
        if all(step.kind in _BEFORE for step in _plain(host.target).steps)
        and _undisturbed(host, total, module_at)
    ]
    return hosts[-1] if hosts else None


def rewrite_residuals(graph: Graph, module_at: Callable[[str], Any]) -> list[ResidualMatch]:
    """Let regions take in the sum, and the activation, behind them."""
    found: list[ResidualMatch] = []
    for node in list(graph.nodes):
        host = _host(node, module_at)
        if host is None:
            continue
        step = step_of_call(node, host, lambda _: 0)
        if not isinstance(step, Step) or step.constant != ("constant", 0):
            continue
        region: Any = host.target
        last, activation = node, None
        user = next(iter(node.users), None)
        if user is not None and len(node.users) == 1 and not watched(user, module_at):
            behind = step_at(user, _module_count(region), module_at)
            if behind is not None and behind.activation in _ACTIVATIONS:
                last, activation = user, behind
        residual = next(operand for operand in node.args if operand is not host)
        *values, modules, constants = host.args
        with graph.inserting_before(node):
            if activation is not None and activation.module is not None:
                modules = (*modules, graph.get_attr(str(last.target)))  # type: ignore[misc]
            name = f"added_{len(found)}"
            call = graph.call_function(
                ResidualRegion(name, region, step, activation),
                (residual, *values, modules, constants),
            )
        last.replace_all_uses_with(call)
        steps = (*_plain(region).steps, step, *([] if activation is None else [activation]))
        path = str(modules[0].target)  # type: ignore[index,union-attr]
        found.append(ResidualMatch(path, " -> ".join(step.label for step in steps)))
        for gone in dict.fromkeys((last, node, host)):
            graph.erase_node(gone)
    return found
