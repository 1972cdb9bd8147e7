"""Fully connected layers of many weights: found, and run by the kernel of few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from ..ops.linear import LEAST_WEIGHTS, linear, why_not_linear
from .chains import Chain
from .pooling import may_run
from .steps import PLAIN, Step, hooked


class LinearMatch(Chain):
    """A fully connected layer."""

    @property
    def path(self) -> str:
        return str(self.nodes[0].target)


def find_linears(graph: Graph, module_at: Callable[[str], Any]) -> list[LinearMatch]:
    """The layers of a graph that are modules of PyTorch's class and large."""
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        layer = module_at(str(node.target))
        if type(layer) is not nn.Linear or hooked(layer) or hasattr(layer, "parametrizations"):
            continue
        weight = layer._parameters.get("weight")
        if weight is not None and weight.numel() >= LEAST_WEIGHTS:
            found.append(LinearMatch([node], (Step("linear", "Linear", 0, nn.Linear),)))
    return found


class LinearRegion:
    """A LinearMatch, as a function of its input and its module."""

    def __init__(self, name: str) -> None:
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return LinearRegion, (self.__name__,)

    def __call__(self, x: Any, modules: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
        layer = modules[0]
        if type(layer) is not nn.Linear or hooked(layer) or "weight" not in layer._parameters:
            return layer(x)
        weight: Any = layer._parameters["weight"]
        bias = layer._parameters["bias"]
        if not _dense(x, 2) or not _dense(weight, 2) or not (bias is None or _dense(bias, 1)):
            return layer(x)
        if x.shape[1] != weight.shape[1] or not may_run(x) or torch._C._is_any_autocast_enabled():
            return layer(x)
        learns = torch.is_grad_enabled() and weight.requires_grad
        return layer(x) if why_not_linear(x, weight, learns) else linear(x, weight, bias)


def _dense(x: Any, dim: int) -> bool:
    return (
        type(x) in PLAIN
        and x.is_cpu
        and x.dtype is torch.float32
        and x.dim() == dim
        and x.is_contiguous()
    )
