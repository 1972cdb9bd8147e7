"""Checks the arguments of the GAN losses once and brings every loss into one form.

Every loss here is a weighted sum of reduced elementwise functions: a :class:`Problem`. The kernels,
the autograd rule and the registered op know that form alone; the names of the losses end here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LOSSES = ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic")
REDUCTIONS = ("none", "mean", "sum")

# The elementwise functions, and how many tensors a term of each takes.
OPERANDS = {
    "log_loss_logits": 1,  # binary cross-entropy of a logit with a constant target
    "log_loss_probabilities": 1,  # the same from a probability
    "least_squares": 1,  # (x - label)² / 2
    "hinge": 1,  # max(0, 1 + sign · x)
    "linear": 1,  # x
    "relativistic": 2,  # softplus(x - y)
    "log_loss_logits_target": 2,  # binary cross-entropy with a tensor of targets
    "log_loss_probabilities_target": 2,
    "log_loss_logits_target_weight": 3,  # and a weight an element
    "log_loss_probabilities_target_weight": 3,
}


@dataclass(frozen=True)
class Problem:
    """Σ over terms of scale · reduce(function(operands of the term; parameter)).

    Operands lie flat, a term after the other: [x₀, y₀, x₁, y₁, …] for a function of two.
    """

    function: str
    parameters: tuple[float, ...]  # a term each: the target, the label or the sign
    scales: tuple[float, ...]  # a term each
    reduction: str


def _type_name(value: Any) -> str:
    return type(value).__name__


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {_type_name(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_choices(loss: Any, from_logits: Any, reduction: Any) -> None:
    """ValueError or TypeError where one of the three is not what it must be."""
    _choice("loss", loss, LOSSES)
    _choice("reduction", reduction, REDUCTIONS)
    check_boolean("from_logits", from_logits)


def check_boolean(name: str, value: Any) -> bool:
    """`value` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {_type_name(value)}")
    return value


def check_reduction(reduction: Any) -> str:
    """`reduction` if it is one."""
    return _choice("reduction", reduction, REDUCTIONS)


def check_label(name: str, label: Any, loss: str, from_logits: bool) -> float:
    """A label as a float; where it is the target of a probability it must be one itself."""
    if not isinstance(label, (int, float)):
        raise TypeError(f"{name} must be a number, got {_type_name(label)}")
    label = float(label)
    if not -math.inf < label < math.inf:  # math.isfinite can't be traced with a symbolic number
        raise ValueError(f"{name} must be finite, got {label}")
    is_target = loss in ("minimax", "non_saturating") and not from_logits
    if is_target and not 0.0 <= label <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1 with from_logits=False, got {label}")
    return label


def check_tensor(name: str, tensor: Any) -> None:
    """TypeError or NotImplementedError unless `tensor` is dense and of a floating dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {_type_name(tensor)}")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise NotImplementedError(f"{name} must be a dense (strided) tensor, got {kind}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")


def as_scales(name: str, value: Any) -> list[Tensor]:
    """A discriminator's output as the list of its scales, each checked."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f"{name} must hold a tensor a scale, got an empty {_type_name(value)}")
        for index, tensor in enumerate(value):
            check_tensor(f"{name}[{index}]", tensor)
        return list(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or a list of them, got {_type_name(value)}")
    check_tensor(name, value)
    return [value]


def check_same_device(name: str, tensors: list[Tensor], first: Tensor) -> None:
    """ValueError where one of `tensors` is on another device than `first`."""
    for tensor in tensors:
        if tensor.device != first.device:
            raise ValueError(
                f"{name} must be on the first argument's device {first.device}, got {tensor.device}"
            )


def check_pairs(name: str, tensors: list[Tensor], other: str, others: list[Tensor]) -> None:
    """ValueError where two lists of scales differ in length or one pair in shape."""
    if len(tensors) != len(others):
        raise ValueError(
            f"{name} must have as many scales as {other} ({len(others)}), got {len(tensors)}"
        )
    for index, (tensor, match) in enumerate(zip(tensors, others, strict=True)):
        if tensor.shape != match.shape:
            at = f"[{index}]" if len(tensors) > 1 else ""
            raise ValueError(
                f"{name}{at} must have the shape of {other}{at}, {tuple(match.shape)}, "
                f"got {tuple(tensor.shape)}"
            )


def discriminator_problem(
    loss: str,
    from_logits: bool,
    real_label: float,
    fake_label: float,
    reduction: str,
    shares: tuple[float, ...],  # a scale each: what its loss is multiplied by
) -> Problem:
    """The discriminator's loss; operands [real…, fake…], relativistic [fake, real]… in pairs."""
    scales = len(shares)
    if loss == "relativistic":
        return Problem("relativistic", (0.0,) * scales, shares, reduction)
    function, real, fake, sign = {
        "minimax": (_log_loss(from_logits), real_label, fake_label, 1.0),
        "non_saturating": (_log_loss(from_logits), real_label, fake_label, 1.0),
        "least_squares": ("least_squares", real_label, fake_label, 1.0),
        "hinge": ("hinge", -1.0, 1.0, 1.0),
        "wasserstein": ("linear", 0.0, 0.0, -1.0),
    }[loss]
    return Problem(
        function,
        (real,) * scales + (fake,) * scales,
        tuple(sign * share for share in shares) + shares,
        reduction,
    )


def generator_problem(
    loss: str, from_logits: bool, real_label: float, reduction: str, shares: tuple[float, ...]
) -> Problem:
    """The generator's loss; operands [fake…], relativistic [real, fake]… in pairs."""
    function, parameter, sign = {
        "minimax": (_log_loss(from_logits), 0.0, -1.0),
        "non_saturating": (_log_loss(from_logits), 1.0, 1.0),
        "least_squares": ("least_squares", real_label, 1.0),
        "hinge": ("linear", 0.0, -1.0),
        "wasserstein": ("linear", 0.0, -1.0),
        "relativistic": ("relativistic", 0.0, 1.0),
    }[loss]
    return _same_for_all(function, parameter, sign, reduction, shares)


def target_problem(
    loss: str,
    from_logits: bool,
    label: float,
    is_real: bool,
    for_discriminator: bool,
    reduction: str,
    shares: tuple[float, ...],
) -> Problem:
    """One prediction held against real or fake, as ``criterion(prediction, target_is_real)`` does.

    Least squares is the whole (x - label)² there: twice the function's half.
    """
    function, parameter, factor = {
        "minimax": (_log_loss(from_logits), label, 1.0),
        "non_saturating": (_log_loss(from_logits), label, 1.0),
        "least_squares": ("least_squares", label, 2.0),
        "hinge": ("hinge", -1.0 if is_real else 1.0, 1.0),
        "wasserstein": ("linear", 0.0, -1.0 if is_real else 1.0),
    }[loss]
    if loss == "hinge" and not for_discriminator:
        function, parameter, factor = "linear", 0.0, -1.0
    return _same_for_all(function, parameter, factor, reduction, shares)


def _same_for_all(
    function: str, parameter: float, factor: float, reduction: str, shares: tuple[float, ...]
) -> Problem:
    scales = tuple(factor * share for share in shares)
    return Problem(function, (parameter,) * len(shares), scales, reduction)


def log_loss_problem(from_logits: bool, weighted: bool, reduction: str) -> Problem:
    """Binary cross-entropy with a tensor of targets; operands [input, target] or with a weight."""
    function = _log_loss(from_logits) + ("_target_weight" if weighted else "_target")
    return Problem(function, (0.0,), (1.0,), reduction)


def _log_loss(from_logits: bool) -> str:
    return "log_loss_logits" if from_logits else "log_loss_probabilities"
