"""Nodes behind each other that become one call, beside those that begin with a convolution."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from .steps import Refusal, Step, hooked, step_of_call, step_of_module
from .tracing import CALLER


@dataclass
class Chain:
    """Nodes, each the only user of the one before it, and their steps."""

    nodes: list[Node]
    steps: tuple[Step, ...]

    @property
    def pattern(self) -> str:
        return " -> ".join(step.label for step in self.steps)

    def callers(self) -> list[str]:
        """The paths of the modules whose forwards make the nodes."""
        return [node.meta[CALLER] for node in self.nodes]


def step_at(node: Node, place: int, module_at: Callable[[str], Any]) -> Step | None:
    """The step that a node is, with its module at `place`; None where it is none."""
    if not node.args or not isinstance(node.args[0], Node):
        return None
    value = node.args[0]
    step: Step | Refusal | None = None
    if node.op == "call_module" and node.args == (value,) and not node.kwargs:
        step = step_of_module(module_at(str(node.target)), place)
    elif node.op in ("call_function", "call_method"):
        step = step_of_call(node, value, lambda _: None)
    return step if isinstance(step, Step) else None


_SUMS = (operator.add, torch.add, "add", operator.iadd, "add_")


def is_sum(node: Node) -> bool:
    """Whether the node is the sum of two tensors."""
    if node.op not in ("call_function", "call_method") or node.target not in _SUMS:
        return False
    return (
        len(node.args) == 2
        and all(isinstance(operand, Node) for operand in node.args)
        and node.args[0] is not node.args[1]
        and not node.kwargs
    )


def watched(node: Node, module_at: Callable[[str], Any]) -> bool:
    """Whether the node is a call of a module with hooks."""
    return node.op == "call_module" and hooked(module_at(str(node.target)))


def stands_before(first: Node, last: Node, *known: Node) -> bool:
    """Whether nothing but `known` and attributes stands between the two: what else might change
    what `first` was given."""
    between = first.next
    while between is not last and (between in known or between.op == "get_attr"):
        between = between.next
    return between is last


def rewrite_chain(graph: Graph, chain: Chain, region: Any, place: Node) -> None:
    """Put a call of `region` into the graph, where `place` stands, for the chain's nodes."""
    with graph.inserting_before(place):
        modules = tuple(
            graph.get_attr(str(node.target))
            for node, step in zip(chain.nodes, chain.steps, strict=True)
            if step.module is not None
        )
        call = graph.call_function(region, (chain.nodes[0].args[0], modules, ()))
    chain.nodes[-1].replace_all_uses_with(call)
    for node in reversed(chain.nodes):
        graph.erase_node(node)
