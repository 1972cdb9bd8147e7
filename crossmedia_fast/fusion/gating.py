"""A gate before a 1×1 convolution: multiplied where its kernel packs the input.

Squeeze and excitation multiplies each channel of an image by a value of its own (Hu et al., arXiv
1709.01507), and in MobileNetV3 and EfficientNet a 1×1 convolution comes next. Behind its packing,
which touches every value anyway, that costs nothing; alone it is a pass that reads and writes the
block's widest tensor. The same bits, without gradients.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from .chains import stands_before
from .matching import Match
from .region import Region
from .steps import PLAIN

_PRODUCTS = (operator.mul, torch.mul)


class GatedRegion:
    """A product and the region behind it, as a function of the factors and its modules."""

    def __init__(self, name: str, region: Region) -> None:
        self.region = region
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return GatedRegion, (self.__name__, self.region)

    def __call__(self, a: Any, b: Any, modules: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
        if not (torch.compiler.is_compiling() or torch.is_grad_enabled()):
            for x, affine in self.inputs(a, b):
                # the call that is bound for x · gate, which is like x
                known = self.region.bound.find(modules[0], x)
                if known is not None and known.takes_affine:
                    y = known.run(x, modules, constants, affine=affine)
                    if y is not None:
                        return y
        return self.region(a * b, modules, constants)

    def inputs(self, a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
        """What the convolution may be given, and what its kernel does to that."""
        for x, gate in ((a, b), (b, a)):
            if _gates(gate, x):
                yield x, (gate, None)


def _gates(gate: Any, x: Any) -> bool:
    """Whether `gate` has one float32 for each channel of each image of x."""
    if type(gate) not in PLAIN or type(x) not in PLAIN or x.dim() != 4:
        return False
    batch, channels = x.shape[:2]
    return (
        gate.shape == (batch, channels, 1, 1)
        and gate.dtype is torch.float32
        and gate.is_cpu
        and gate.stride(1) == 1
        and (batch == 1 or gate.stride(0) == channels)
        and not gate.is_neg()
    )


def gate_of(match: Match, module_at: Callable[[str], Any]) -> Node | None:
    """The product of two tensors in front of a match that begins with a 1×1 convolution."""
    conv = match.nodes[0]
    if match.given or module_at(str(conv.target)).kernel_size != (1, 1):
        return None
    product = conv.args[0]
    return product if isinstance(product, Node) and _is_gate(product) else None


def _is_gate(node: Node) -> bool:
    return (
        node.op == "call_function"
        and node.target in _PRODUCTS
        and len(node.users) == 1
        and len(node.args) == 2
        and all(isinstance(factor, Node) for factor in node.args)
        and not node.kwargs
    )


def rewrite_gates(graph: Graph, module_at: Callable[[str], Any]) -> None:
    """Let regions that begin with a 1×1 convolution take in the product before them."""
    number = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or type(node.target) is not Region or len(node.args) != 3:
            continue
        product, modules, constants = node.args
        if not isinstance(product, Node) or not _is_gate(product):
            continue
        if node.target.given or module_at(str(modules[0].target)).kernel_size != (1, 1):
            continue
        if not stands_before(product, node):
            continue
        with graph.inserting_before(node):
            gated = GatedRegion(f"gated_{number}", node.target)
            call = graph.call_function(gated, (*product.args, modules, constants))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        graph.erase_node(product)
        number += 1
