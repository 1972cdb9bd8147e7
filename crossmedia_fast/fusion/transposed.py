"""Transposed convolutions with what follows them: found, and run by the kernels of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from .. import precision
from ..ops.conv_act_pool.arguments import check_pool
from ..ops.conv_act_pool.memory_format import as_format, is_channels_last
from ..ops.conv_act_pool.transposed import (
    NOTHING,
    ConvTranspose2d,
    TransposedLaunch,
    why_not_transposed,
)
from .bound import BoundCalls, Call, bind, native_call
from .chains import Chain, step_at, watched
from .folding import FoldCache, Folded, fold
from .normalizing import run_steps
from .pooling import may_run
from .steps import PLAIN, Step, as_matched, fused_arguments, hooked

_MOST_LAUNCHES = 64


class TransposedMatch(Chain):
    """A transposed convolution, and the BatchNorm and the activation behind it."""

    @property
    def path(self) -> str:
        return str(self.nodes[0].target)


def find_transposed(graph: Graph, module_at: Callable[[str], Any]) -> list[TransposedMatch]:
    """The transposed convolutions of a graph that are modules of PyTorch's class."""
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        conv = module_at(str(node.target))
        if type(conv) is not nn.ConvTranspose2d or hooked(conv):
            continue
        if "weight" not in conv._parameters or hasattr(conv, "parametrizations"):
            continue
        nodes, steps = [node], [Step("conv", "ConvTranspose2d", 0, nn.ConvTranspose2d)]
        for kinds in (("norm", "activation"), ("activation",)):
            users = list(nodes[-1].users)
            if len(users) != 1 or watched(users[0], module_at):
                break
            step = step_at(users[0], len(steps), module_at)
            if step is None or step.kind not in kinds:
                break
            nodes.append(users[0])
            steps.append(step)
            if step.kind == "activation":
                break
        found.append(TransposedMatch(nodes, tuple(steps)))
    return found


class TransposedRegion:
    """A TransposedMatch, as a function of its input and its modules.

    Without gradients a BatchNorm in eval mode is folded into the weights, and bias and activation
    are the kernel's; with them the convolution and its bias alone are.
    """

    def __init__(self, name: str, steps: tuple[Step, ...]) -> None:
        self.steps = steps
        self.linear = tuple(step for step in steps if step.kind == "norm")
        arguments = fused_arguments(steps)
        self.activation = check_pool(
            *(arguments["activation"], arguments.get("activation_param"), "none"),
            *(2, None, 0, False, True),
        )
        self.cache = FoldCache()
        self.bound = BoundCalls()
        self.launches: dict[Any, TransposedLaunch | None] = {}
        # what torch.fx asks of a function that it writes a call of
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __reduce__(self) -> Any:
        return TransposedRegion, (self.__name__, self.steps)

    def __call__(
        self,
        x: Any,
        modules: tuple[Any, ...],
        constants: tuple[Any, ...],
        joint: Any = None,  # a joining.Joint, whose part at `place` the result is
        place: int = 0,
    ) -> Any:
        y = self.bound.run(x, modules, constants, joint, place)
        if y is not None:
            return y
        count = 0
        if self._may_run(x, modules[0]):
            conv = modules[0]
            weight, bias = conv._parameters["weight"], conv._parameters["bias"]
            learns = torch.is_grad_enabled() and any(
                t is not None and t.requires_grad for t in (x, weight, bias)
            )
            launch = self._launch(x, conv, learns)
            if launch is not None and learns:
                bias = None if bias is None else bias.contiguous()
                x = ConvTranspose2d.apply(x, weight.contiguous(), bias, launch)
                count = 1
            elif launch is not None:
                x, count = self._fused(x, modules, constants, launch)
        return run_steps(self.steps[count:], x, modules, constants)

    def _fused(
        self,
        x: Tensor,
        modules: tuple[Any, ...],
        constants: tuple[Any, ...],
        launch: TransposedLaunch,
    ) -> tuple[Tensor, int]:
        """Without gradients: as many steps as these modules allow in this call."""
        conv = modules[0]
        weight, bias = conv._parameters["weight"], conv._parameters["bias"]
        count = 1
        for step in self.steps[1:]:
            if step.module is not None and not as_matched(step, modules[step.module]):
                break
            count += 1
        if count > 1 and self.linear:
            folded = fold(self.cache, conv, self.linear, modules, constants, x)
            if folded is None:
                count = 1
            else:
                weight, bias = folded.weight, folded.bias
        bias = None if bias is None else bias.contiguous()
        activated = self.steps[count - 1].kind == "activation"
        activation = self.activation if activated else NOTHING
        y = launch.forward(x, weight, bias, activation, keep=True)
        if count == len(self.steps) and not torch.is_grad_enabled():
            self._bind(x, modules, constants, launch)
        return y, count

    def _bind(
        self,
        x: Tensor,
        modules: tuple[Any, ...],
        constants: tuple[Any, ...],
        launch: TransposedLaunch,
    ) -> None:
        """Let the next call without gradients do what this one did."""

        activation = self.activation

        def make(filters: Folded) -> Call:
            weight, bias = filters.weight, filters.bias
            dense = as_format(x, launch.channels_last) is x
            if not dense or (bias is not None and not bias.is_contiguous()):
                return Call(
                    lambda x: launch.forward(x, weight, bias, activation, keep=True),
                    keeps=weight is not filters.raw,
                )
            return native_call(
                launch.writer(weight, bias, activation, keep=True),
                launch.y_shape,
                launch.y_strides,
                launch.joins,
                True,
            )

        call = bind(self.steps, make, self.linear, x, modules, constants, self.cache)
        self.bound.keep(modules[0], x, call)

    def _may_run(self, x: Any, conv: Any) -> bool:
        """Whether nothing but speed speaks against our kernels."""
        if type(x) not in PLAIN or type(conv) is not nn.ConvTranspose2d:
            return False
        if hooked(conv) or "weight" not in conv._parameters or not may_run(x):
            return False
        return not (torch._C._is_any_autocast_enabled() or why_not_transposed(conv, x))

    def _launch(self, x: Tensor, conv: Any, learns: bool) -> TransposedLaunch | None:
        """The kernels that are faster than PyTorch's for this call."""
        channels_last = is_channels_last(x) or is_channels_last(conv.weight)
        arguments: Any = (conv.stride, conv.padding, conv.output_padding, channels_last)
        arguments = (*arguments, not learns)
        key = (x.shape, conv.weight.shape, precision.get_conv_precision(), *arguments)
        if key not in self.launches:
            if len(self.launches) >= _MOST_LAUNCHES:
                self.launches.clear()
            try:
                self.launches[key] = TransposedLaunch(
                    tuple(x.shape), tuple(conv.weight.shape), *arguments
                )
            except (NotImplementedError, ValueError):  # what PyTorch says of it is its affair
                self.launches[key] = None
        return self.launches[key]
