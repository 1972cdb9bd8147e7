"""Concatenation of channels whose parts are written where they belong, by those who compute them.

An inception block's branches and a fire module's expansions end in torch.cat, which copies all of
them. Without gradients, in channels_last, a convolution can write its channels into the joint
tensor at once. Where it can, the concatenation found out in its last call of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..ops.conv_act_pool.memory_format import dense_strides, is_channels_last
from ..ops.memory import fresh
from .prologue import PrologueRegion
from .region import Region
from .steps import PLAIN
from .transposed import TransposedRegion
from .trust import settings_hold

_CALLS = (torch.cat, torch.concat, torch.concatenate)
_CHANNELS = 1
_REGIONS = (Region, TransposedRegion)  # that can write their results where they are told
_MOST_KNOWN = 256


class Joint:
    """The joint tensor of one call, and the parts of it that have been given out."""

    __slots__ = ("channels_last", "given", "known", "parts", "tensor")

    def __init__(self, known: dict[Any, tuple[int, int, bool]]) -> None:
        # (place, shape of the part) -> all channels, the part's first, whether in channels_last
        self.known = known
        self.tensor: Tensor | None = None
        self.parts: dict[int, tuple[Tensor, int]] = {}  # what lies there, and its first channel
        self.given: list[tuple[int, int]] = []  # the channels of each

    def part(
        self, place: int, shape: tuple[int, ...], like: Tensor, channels_last: bool = True
    ) -> Tensor | None:
        """Where the tensor at `place`, of that format, goes; None where that is not known."""
        found = self.known.get((place, shape))
        if found is None or found[2] != channels_last:
            return None
        channels, first, _ = found
        last = first + shape[1]
        # learnt from several calls, places may not fit together
        if any(first < end and begin < last for begin, end in self.given):
            return None
        whole = (shape[0], channels, *shape[2:])
        if self.tensor is None:
            self.tensor = fresh(like, whole, dense_strides(whole, channels_last))
            self.channels_last = channels_last
        elif tuple(self.tensor.shape) != whole or self.channels_last != channels_last:
            return None
        self.given.append((first, last))
        part = self.tensor.narrow(_CHANNELS, first, shape[1])
        self.parts[place] = part, first
        return part

    def begin(self, tensors: list[Tensor]) -> Tensor | None:
        """The concatenation of `tensors`, which are those of the first places, as a part of the
        joint tensor; None where it can't be one. The others come later."""
        first = 0
        for place, tensor in enumerate(tensors):
            known = self.parts.get(place)
            if known is None or known[0] is not tensor:
                shape, last = tuple(tensor.shape), is_channels_last(tensor)
                part = None if known else self.part(place, shape, tensor, last)
                if part is None or part.dtype is not tensor.dtype or type(tensor) not in PLAIN:
                    return None
                known = self.parts[place] = tensor, self.parts[place][1]
                part.copy_(tensor)
            if known[1] != first:
                return None
            first += tensor.shape[_CHANNELS]
        return None if self.tensor is None else self.tensor.narrow(_CHANNELS, 0, first)

    def complete(self, tensors: list[Tensor]) -> Tensor | None:
        """The concatenation of `tensors`; None where the joint tensor is not it."""
        whole = self.tensor
        if whole is None or sum(t.shape[_CHANNELS] for t in tensors) != whole.shape[_CHANNELS]:
            return None
        first = 0
        for place, tensor in enumerate(tensors):
            part, begins = self.parts.get(place, (None, 0))
            if (
                tensor.shape[0] != whole.shape[0]
                or tensor.shape[2:] != whole.shape[2:]
                or tensor.dtype is not whole.dtype
                or (tensor is part and begins != first)
            ):
                return None
            first += tensor.shape[_CHANNELS]
        first = 0
        for place, tensor in enumerate(tensors):
            count = tensor.shape[_CHANNELS]
            if tensor is not self.parts.get(place, (None, 0))[0]:
                whole.narrow(_CHANNELS, first, count).copy_(tensor)
            first += count
        return whole


class Concatenation:
    """Called without arguments it begins a call; with its Joint and the tensors it ends it."""

    def __init__(self, name: str, grows: bool = False) -> None:
        self.known: dict[Any, tuple[int, int, bool]] = {}
        self.grows = grows  # whether others concatenate its first tensors
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return Concatenation, (self.__name__, self.grows)

    def __call__(self, joint: Any = None, tensors: Any = None, begins: bool = False) -> Any:
        """`begins`: whether `tensors` are only those of the first places."""
        if tensors is None:
            compiling = torch.compiler.is_compiling() or torch.is_grad_enabled()
            return None if compiling or not settings_hold() else Joint(self.known)
        if begins:
            y = None if joint is None else joint.begin(tensors)
            return torch.cat(tensors, _CHANNELS) if y is None else y
        if joint is None:
            return torch.cat(tensors, _CHANNELS)
        y = joint.complete(tensors)
        if y is None:
            y = torch.cat(tensors, _CHANNELS)
            self._learn(tensors, y)
        return y

    def _learn(self, tensors: list[Any], y: Any) -> None:
        if y.dim() != 4 or not y.is_cpu or y.dtype is not torch.float32:
            return
        last = is_channels_last(y)
        if not last and not (self.grows and y.is_contiguous()):  # nobody could write its part
            return
        if len(self.known) > _MOST_KNOWN:
            self.known.clear()
        first = 0
        for place, tensor in enumerate(tensors):
            self.known[place, tuple(tensor.shape)] = y.shape[_CHANNELS], first, last
            first += tensor.shape[_CHANNELS]


def concatenated(
    graph: Graph, is_part: Callable[[Node], bool]
) -> Iterator[tuple[Node, list[Node], list[Node]]]:
    """Concatenations of channels: the node, what it takes, and those of it that are parts and
    nobody else's, where they are at least half."""
    for node in list(graph.nodes):
        items = _items(node)
        parts = [item for item in items if list(item.users) == [node] and is_part(item)]
        if parts and 2 * len(parts) >= len(items):
            yield node, items, parts


def rewrite_concatenations(graph: Graph, next_name: Callable[[], str]) -> None:
    """Let regions whose results are concatenated, and used by nobody else, write them in place."""
    rewrite_growing(graph, next_name)
    for node, items, parts in concatenated(graph, _is_region):
        concatenation = Concatenation(next_name())
        first = next(n for n in graph.nodes if n in parts)
        with graph.inserting_before(first):
            joint = graph.call_function(concatenation, ())
        for place, item in enumerate(items):
            if item in parts:
                item.args = (*item.args, joint, place)
        with graph.inserting_before(node):
            whole = graph.call_function(concatenation, (joint, items))
        node.replace_all_uses_with(whole)
        graph.erase_node(node)


def rewrite_growing(graph: Graph, next_name: Callable[[], str]) -> None:
    """Let concatenations that each take what the one before took, and more, be parts of the last.

    Each layer of a dense block concatenates all that the block has computed so far: what a layer
    adds is copied again by every later one. Those who read a beginning of the joint tensor must
    take it as it lies: regions that normalise it where they pack it.
    """
    for chain in list(_growing(graph)):
        taken = [_all_items(node) for node in chain]
        items = taken[-1]
        concatenation = Concatenation(next_name(), True)
        first = next(node for node in graph.nodes if node in items)
        with graph.inserting_before(first):
            joint = graph.call_function(concatenation, ())
        for place, item in enumerate(items):
            if _is_region(item):
                item.args = (*item.args, joint, place)
        for part in (*items, *chain[:-1]):
            for reader in [user for user in part.users if user not in chain]:
                reader.args = (*reader.args, True)
        for node, those in zip(chain, taken, strict=True):
            begins = node is not chain[-1]
            with graph.inserting_before(node):
                whole = graph.call_function(concatenation, (joint, those, begins))
            node.replace_all_uses_with(whole)
            graph.erase_node(node)


def _growing(graph: Graph) -> Iterator[list[Node]]:
    """Chains of concatenations, each of which takes the beginning of what the next one does."""
    nodes = [node for node in graph.nodes if _all_items(node)]
    taken: set[Node] = set()
    for place, node in enumerate(nodes):
        chain = [node]
        for following in nodes[place + 1 :]:
            items = _all_items(chain[-1])
            if _all_items(following)[: len(items)] == items:
                chain.append(following)
        if taken.isdisjoint(chain) and len(chain) > 1 and _may_grow(chain):
            taken.update(chain)
            yield chain


def _may_grow(chain: list[Node]) -> bool:
    """Whether what is concatenated, and the beginnings, are our regions' and only read by them."""
    items = _all_items(chain[-1])
    return all(
        item.op == "call_function"
        and getattr(item.target, "__module__", "").startswith(__package__ or "")
        for item in items
    ) and all(
        user in chain
        or (type(user.target) is PrologueRegion and len(user.args) == 4 and user.args[0] is node)
        for node in (*items, *chain[:-1])
        for user in node.users
    )


def _items(node: Node) -> list[Node]:
    """What a node concatenates along the channels; nothing where it is another call."""
    if node.op != "call_function" or node.target not in _CALLS or not node.args:
        return []
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    items: Any = node.args[0]
    if set(node.kwargs) - {"dim"} or dim not in (_CHANNELS, -3):
        return []
    if not isinstance(items, (list, tuple)) or not all(isinstance(i, Node) for i in items):
        return []
    return list(items) if len(set(items)) == len(items) else []


def _all_items(node: Node) -> list[Node]:
    """As _items; for a first item that is a concatenation, what that one takes."""
    items = _items(node)
    while items and (before := _items(items[0])):
        items = before + items[1:]
    return items if len(set(items)) == len(items) else []


def _is_region(item: Node) -> bool:
    return item.op == "call_function" and type(item.target) in _REGIONS and len(item.args) == 3
