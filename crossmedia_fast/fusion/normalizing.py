"""BatchNorm2d that trains, with the activation behind it: found, run as one pass each way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ..ops.batch_norm_act.autograd import BatchNormAct
from ..ops.batch_norm_act.cpu import Launch, Norm, launch_for
from ..ops.conv_act_pool.activation import ACTIVATIONS
from .chains import Chain, step_at, watched
from .pooling import may_run
from .steps import PLAIN, Step, as_matched, hooked, run_step

# Below it the squares of float32 deviations that are too small for float32 could count.
_LEAST_EPS = 1e-30
# A call each way takes up to 25 µs more than PyTorch's two of ReLU and norm, and saves 2 to 4 ns an
# element.
_LEAST_ELEMENTS = 16384


class NormMatch(Chain):
    """A BatchNorm2d, and the activation behind it."""

    @property
    def path(self) -> str:
        return str(self.nodes[0].target)


def find_norms(
    graph: Graph, module_at: Callable[[str], Any], taken: set[Node] | None = None
) -> list[NormMatch]:
    """The BatchNorms of a graph that are not among the nodes `taken`."""
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        if taken and node in taken:
            continue
        if type(module_at(str(node.target))) is not nn.BatchNorm2d or watched(node, module_at):
            continue
        nodes, steps = [node], [Step("norm", "BatchNorm2d", 0, nn.BatchNorm2d)]
        users = list(node.users)
        if len(users) == 1 and not (taken and users[0] in taken):
            step = None if watched(users[0], module_at) else step_at(users[0], 1, module_at)
            if step is not None and step.kind == "activation":
                nodes.append(users[0])
                steps.append(step)
        found.append(NormMatch(nodes, tuple(steps)))
    return found


class NormRegion:
    """A NormMatch, as a function of its input and its modules."""

    def __init__(self, name: str, steps: tuple[Step, ...]) -> None:
        self.steps = steps
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return NormRegion, (self.__name__, self.steps)

    def __call__(self, x: Any, modules: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
        return run_steps(self.steps, x, modules, constants)


def run_steps(
    steps: tuple[Step, ...], x: Any, modules: tuple[Any, ...], constants: tuple[Any, ...]
) -> Any:
    """The steps as the model wrote them, but for the BatchNorms that train.

    Such a one runs with the activation behind it as one pass, where nothing speaks against it.
    """
    place = 0
    while place < len(steps):
        step = steps[place]
        if step.kind == "norm":
            behind = steps[place + 1] if place + 1 < len(steps) else None
            y, count = _normalized(step, behind, x, modules)
            if count:
                x = y
                place += count
                continue
        x = run_step(step, x, modules, constants)
        place += 1
    return x


def _normalized(step: Step, behind: Step | None, x: Any, modules: tuple[Any, ...]) -> Any:
    """The BatchNorm's result, or the activation's behind it, and how many steps that is; 0 where
    they are to run as the model wrote them."""
    assert step.module is not None
    norm: Any = modules[step.module]
    if not _uses_batch(norm) or not _may_normalize(x) or not _plain(norm, x.shape[1]):
        return None, 0
    fused = (
        behind is not None
        and behind.kind == "activation"
        and (behind.module is None or as_matched(behind, modules[behind.module]))
    )
    launch = _launch(x, norm.eps, behind if fused else None)
    if launch is None:
        return None, 0
    parameters, buffers = norm._parameters, norm._buffers
    weight, bias = parameters["weight"], parameters["bias"]
    mean = variance = None
    momentum = norm.momentum
    if norm.training and norm.track_running_stats:
        mean, variance = buffers["running_mean"], buffers["running_var"]
        calls = buffers["num_batches_tracked"]
        if calls is not None:  # as in nn.BatchNorm2d.forward
            calls.add_(1)
            momentum = 1.0 / float(calls) if momentum is None else momentum
    momentum = 0.0 if momentum is None else momentum
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    ):
        y = BatchNormAct.apply(x, weight, bias, mean, variance, momentum, launch)
    else:
        y = launch.forward(x, weight, bias, mean, variance, momentum)[0]
    return y, 1 + fused


def _uses_batch(norm: Any) -> bool:
    """Whether the module is a BatchNorm2d that normalizes with its input's own statistics."""
    if torch.compiler.is_compiling() or type(norm) is not nn.BatchNorm2d:
        return False
    return (norm.training or norm.running_mean is None) and not hooked(norm)


def _may_normalize(x: Any) -> bool:
    return (
        type(x) in PLAIN
        and x.is_cpu
        and x.dtype is torch.float32
        and x.dim() == 4
        and x.numel() >= _LEAST_ELEMENTS
        and x.layout is torch.strided
        and not x.is_neg()
        and not torch._C._is_any_autocast_enabled()
        and may_run(x)
    )


def _plain(norm: Any, channels: int) -> bool:
    """Whether what the module holds is its own and made for `channels`."""
    parameters, buffers = norm._parameters, norm._buffers
    if "weight" not in parameters or "bias" not in parameters:
        return False
    if not {"running_mean", "running_var", "num_batches_tracked"} <= buffers.keys():
        return False
    if not isinstance(norm.momentum, (float, int, type(None))):
        return False
    mean, variance = buffers["running_mean"], buffers["running_var"]
    if (mean is None) != (variance is None):
        return False
    for tensor in (parameters["weight"], parameters["bias"], mean, variance):
        if tensor is not None and not (
            type(tensor) in PLAIN
            and tensor.is_cpu
            and tensor.dtype is torch.float32
            and tensor.shape == (channels,)
            and tensor.is_contiguous()
        ):
            return False
    return (
        mean is None
        or not norm.training
        or not norm.track_running_stats
        or not (mean.requires_grad or variance.requires_grad)
    )


def _launch(x: Tensor, eps: float, activation: Step | None) -> Launch | None:
    """The kernels for this call; None where it is PyTorch's."""
    channels_last = not x.is_contiguous()
    if channels_last and not x.is_contiguous(memory_format=torch.channels_last):
        return None
    name = "identity" if activation is None else activation.activation
    param = None if activation is None else activation.param
    if param is None:
        param = ACTIVATIONS[name] or 0.0
    if not eps >= _LEAST_EPS:
        return None
    try:
        return launch_for(x.shape, channels_last, Norm(eps, name, param))
    except (TypeError, ValueError):  # what PyTorch says of it is its affair
        return None
