"""`explain`: the plan of a call, without the call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .ops.conv_act_pool import explain_conv_act_pool2d
from .ops.gan_loss.plan import make_plan as make_loss_plan

_LOSSES = ("gan_discriminator_loss", "gan_generator_loss", "log_loss")


def explain(*arguments: Any, op: str = "conv_act_pool2d", **keywords: Any) -> Any:
    """Which backend and algorithm a call would run, and why the others would not.

    Takes the arguments of :func:`conv_act_pool2d`, checks them as the call would, and runs nothing.
    ``op`` names another operation (``"gan_discriminator_loss"``, ``"gan_generator_loss"``,
    ``"log_loss"``) whose arguments are then expected.

    Returns:
        A plan with the attributes ``backend``, ``algorithm``, ``reason``, ``rejected_backends``
        and, for the convolution, ``rejected_algorithms``; ``print`` shows it line by line.
    """
    if op == "conv_act_pool2d":
        return explain_conv_act_pool2d(*arguments, **keywords)
    if op not in _LOSSES:
        raise ValueError(f"op must be one of conv_act_pool2d, {', '.join(_LOSSES)}, got {op!r}")
    names = ("real", "fake", "input")
    first = arguments[0] if arguments else next((keywords[n] for n in names if n in keywords), None)
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"{op} must be explained for tensors, got {type(first).__name__}")
    return make_loss_plan(first.dtype, first.device, keywords.get("backend"))
