"""Finds convolutions, and what may be fused to them, in a traced graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from .chains import is_sum
from .given import CONV_CALLS, given_conv, step_of_given
from .region import LINEAR, monotone
from .steps import Refusal, Step, hooked, step_of_call, step_of_module
from .tracing import CALLER


@dataclass
class Match:
    """A convolution and the nodes behind it that become one operation."""

    nodes: list[Node]
    steps: tuple[Step, ...]
    constants: list[Node] = field(default_factory=list)
    note: str = ""  # why the node behind the last is not part of it

    @property
    def given(self) -> bool:
        """Whether the convolution is a call of F.conv2d."""
        return self.nodes[0].op == "call_function"

    @property
    def path(self) -> str:
        """The convolution's path; of a call its weight's."""
        return str(self.constants[0].target if self.given else self.nodes[0].target)

    def conv_of(self, owner: nn.Module) -> Any:
        """The convolution, in the module whose forward makes the match."""
        if not self.given:
            return owner.get_submodule(self.path)
        parameters = [owner.get_parameter(str(node.target)) for node in self.constants[:2]]
        return given_conv(self.steps[0], parameters)

    @property
    def pattern(self) -> str:
        return " -> ".join(step.label for step in self.steps)

    def callers(self) -> list[str]:
        """The paths of the modules whose forwards make the nodes."""
        return [node.meta[CALLER] for node in self.nodes]


def why_not_conv(module: nn.Module) -> str:
    """Why a convolution module can't be fused whatever follows it; "" where it can."""
    kind = type(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "is lazy: fuse again after its first call"
    if hasattr(module, "parametrizations"):
        return "has parametrizations"
    if kind is not nn.Conv2d:
        return f"is a {kind.__name__}, a class of its own"
    if "weight" not in module._parameters:
        return "its weight is computed (weight_norm, pruning)"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if hooked(module):
        return "has hooks"
    return ""


def find(
    graph: Graph, module_at: Callable[[str], Any]
) -> tuple[list[Match], list[tuple[str, str, str]]]:
    """The matches of a graph, and (caller, path, reason) of the convolutions left alone."""
    matches, rest = [], []
    for node in graph.nodes:
        if node.op == "call_function" and node.target in CONV_CALLS:
            constants: list[Node] = []
            step = step_of_given(node, constants, module_at)
            if not isinstance(step, Refusal):
                matches.append(_follow(node, step, constants, module_at))
            continue
        if node.op != "call_module":
            continue
        conv = module_at(node.target)
        if not isinstance(conv, nn.Conv2d):
            continue
        reason = why_not_conv(conv)
        if not reason and (len(node.args) != 1 or node.kwargs):
            reason = "is called with keywords"
        if reason:
            rest.append((node.meta[CALLER], str(node.target), reason))
        else:
            matches.append(_follow(node, Step("conv", "Conv2d", 0), [], module_at))
    return matches, rest


def _follow(
    conv: Node, first: Step, constants: list[Node], module_at: Callable[[str], Any]
) -> Match:
    """The longest match that begins at `conv`, which is the step `first`."""
    nodes, steps = [conv], [first]
    stage = "linear"  # then "activated", "pooled", "closed"
    note = ""

    def constant_place(node: Node) -> int | None:
        if node.op != "get_attr":
            return None
        if node not in constants:
            constants.append(node)
        return constants.index(node)

    places = 1
    while stage != "closed":
        last = nodes[-1]
        users = list(last.users)
        if len(users) != 1:
            times = f"{len(users)} times" if users else "nowhere"
            note = (
                f"its result is used {times}"
                if len(nodes) == 1
                else (f"the result of {steps[-1].label} is used {times}")
            )
            break
        node = users[0]
        if node.op == "output":
            note = "nothing follows it"
            break
        step = _step(node, last, places, module_at, constant_place)
        if isinstance(step, Refusal):
            note = str(step)
            break
        following = _stage(stage, step, steps)
        if isinstance(following, Refusal):
            note = str(following)
            break
        stage = following
        nodes.append(node)
        steps.append(step)
        places += step.module is not None
    # before a sum that the match may take in they are in the way
    while (
        len(nodes) > 1
        and steps[-1].kind in ("identity", "dropout")
        and not any(is_sum(user) for user in nodes[-1].users)
    ):
        nodes.pop()
        steps.pop()
    used = any(tag == "constant" for step in steps for tag, _ in step.args)
    return Match(nodes, tuple(steps), constants if used else [], note)


def _step(
    node: Node,
    value: Node,
    place: int,
    module_at: Callable[[str], Any],
    constant_place: Callable[[Node], int | None],
) -> Step | Refusal:
    if node.op == "call_module":
        if node.args != (value,) or node.kwargs:
            return Refusal(f"{node.target} takes more than the value")
        module = module_at(str(node.target))
        if hooked(module):
            return Refusal(f"{type(module).__name__} has hooks")
        return step_of_module(module, place)
    if node.op in ("call_function", "call_method"):
        return step_of_call(node, value, constant_place)
    return Refusal(f"{node.op} follows")


def _stage(stage: str, step: Step, steps: list[Step]) -> str | Refusal:
    """The stage after `step`, or why it can't come now."""
    if step.kind in ("identity", "dropout"):
        return stage
    if step.kind in LINEAR:
        if stage == "linear":
            return stage
        return Refusal(
            f"{step.label} comes after the {'pooling' if stage == 'pooled' else 'activation'}"
        )
    if step.kind == "activation":
        if stage == "linear":
            return "activated"
        if stage == "activated":
            return Refusal(f"{step.label} is a second activation")
        pooling = next(s.pooling for s in steps if s.pooling is not None)
        if pooling.kind != "max":
            return Refusal(f"{step.label} comes after average pooling")
        if not monotone(step):
            return Refusal(f"{step.label} comes after the pooling and is not monotone")
        return "closed"
    if step.pooling is not None and step.pooling.reduces:
        return Refusal(f"{step.label} is no pooling")
    if stage == "pooled":
        return Refusal(f"{step.label} is a second pooling")
    return "closed" if stage == "activated" else "pooled"


# Who takes a tensor, neither changes it nor passes on a view of it.
READERS: tuple[Any, ...] = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
    *(torch.cat, operator.add, operator.sub, operator.mul, operator.truediv),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.conv2d, F.linear),
)


def may_change(match: Any, module_at: Callable[[str], Any]) -> bool:
    """Whether somebody may change the match's result in place where PyTorch's layers allow it.

    The fused operation keeps its result for backward. PyTorch's ReLU, tanh and sigmoid do as well;
    its poolings and the other activations don't, so that `x += 1` behind them is no error there.
    """
    activation = next((s.activation for s in match.steps if s.kind == "activation"), None)
    pooled = any(step.kind == "pooling" for step in match.steps)
    if activation is None or (not pooled and activation in ("relu", "tanh", "sigmoid")):
        return False
    for user in match.nodes[-1].users:
        reader = type(module_at(str(user.target))) if user.op == "call_module" else user.target
        if user.op not in ("call_module", "call_function") or reader not in READERS:
            return True
    return False


def rewrite(graph: Graph, match: Match, region: Any) -> None:
    """Put a call of `region` into the graph where the match's nodes stand."""
    # Where the convolution stood: what is between it and the last node may change its input.
    with graph.inserting_before(match.nodes[0]):
        modules: tuple[Any, ...] = tuple(
            graph.get_attr(str(node.target))
            for node, step in zip(match.nodes, match.steps, strict=True)
            if step.module is not None
        )
        if match.given:
            modules = (None, *modules)  # the others keep their places
        constants = tuple(graph.get_attr(str(node.target)) for node in match.constants)
        first = match.nodes[0]
        x = first.args[0] if first.args else first.kwargs["input"]
        call = graph.call_function(region, (x, modules, constants))
    match.nodes[-1].replace_all_uses_with(call)
    for node in (*reversed(match.nodes), *match.constants):
        if not node.users:
            graph.erase_node(node)
