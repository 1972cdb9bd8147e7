"""The activations: names, parameters, values and derivatives in plain PyTorch.

The formulas that the compiled kernels implement stand in csrc/common/activation.h; these twins
serve
the reference and every derivative beyond the first, so they must be differentiable themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# name -> default of activation_param, None where the activation takes none
ACTIVATIONS: dict[str, float | None] = {
    "identity": None,
    "relu": None,
    "leaky_relu": 0.01,
    "relu6": None,
    "elu": 1.0,
    "silu": None,
    "gelu": None,
    "gelu_tanh": None,
    "tanh": None,
    "sigmoid": None,
    "softplus": 1.0,
    "hardswish": None,
}

# What activation_param is called where it means something.
PARAM_NAMES = {"leaky_relu": "negative_slope", "elu": "alpha", "softplus": "beta"}

# torch.nn.functional.softplus: linear above this value of beta * z.
SOFTPLUS_THRESHOLD = 20.0


def identity(z: Tensor, param: float) -> Tensor:
    return z


_ACTIVATE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": identity,
    "relu": lambda z, param: F.relu(z),
    "leaky_relu": F.leaky_relu,
    "relu6": lambda z, param: F.relu6(z),
    "elu": F.elu,
    "silu": lambda z, param: F.silu(z),
    "gelu": lambda z, param: F.gelu(z),
    "gelu_tanh": lambda z, param: F.gelu(z, approximate="tanh"),
    "tanh": lambda z, param: torch.tanh(z),
    "sigmoid": lambda z, param: torch.sigmoid(z),
    "softplus": F.softplus,
    "hardswish": lambda z, param: F.hardswish(z),
}


def activate(z: Tensor, activation: str, param: float) -> Tensor:
    """act(z), by PyTorch's own function."""
    return _ACTIVATE[activation](z, param)


def backward_from_output(dy: Tensor, y: Tensor, activation: str, param: float) -> Tensor:
    """dy · act'(z), where the derivative follows from y = act(z).

    Where a derivative is 0 by definition the gradient is 0, not 0 · dy: an infinite dy behind a
    dead unit stays out, as in PyTorch's threshold_backward.
    """
    if activation == "identity":
        return dy
    if activation == "relu":
        return torch.where(y <= 0, torch.zeros_like(dy), dy)
    if activation == "leaky_relu":
        return torch.where(y > 0, dy, dy * param)
    if activation == "relu6":
        return torch.where((y <= 0) | (y >= 6), torch.zeros_like(dy), dy)
    if activation == "elu":
        # z <= 0: d/dz alpha (e^z - 1) = y + alpha
        return torch.where(y > 0, dy, dy * (y + param))
    if activation == "tanh":
        return dy * (1 - y * y)
    if activation == "sigmoid":
        return dy * ((1 - y) * y)
    if activation == "softplus":
        # sigmoid(beta z) = 1 - e^(-beta y)
        return torch.where(y * param > SOFTPLUS_THRESHOLD, dy, dy * -torch.expm1(-param * y))
    raise AssertionError(f"the derivative of {activation} does not follow from its output")


def backward_from_input(dy: Tensor, z: Tensor, activation: str, param: float) -> Tensor:
    """dy · act'(z), for every activation, differentiable to any order."""
    if activation in ("identity", "relu", "relu6", "tanh", "sigmoid"):
        return backward_from_output(dy, activate(z, activation, param), activation, param)
    if activation == "leaky_relu":
        return torch.where(z > 0, dy, dy * param)
    if activation == "elu":
        # exp only where z <= 0: elsewhere it could overflow, and 0 · inf would reach the gradient
        negative = torch.where(z > 0, torch.zeros_like(z), z)
        return torch.where(z > 0, dy, dy * (param * torch.exp(negative)))
    if activation == "softplus":
        return torch.where(z * param > SOFTPLUS_THRESHOLD, dy, dy * torch.sigmoid(param * z))
    if activation == "silu":
        s = torch.sigmoid(z)
        return dy * (s * (1 + z * (1 - s)))
    if activation == "gelu":
        cdf = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
        pdf = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
        return dy * (cdf + z * pdf)
    if activation == "gelu_tanh":
        # u = sqrt(2/pi) (z + 0.044715 z^3); d/dz z/2 (1 + tanh u)
        scale = math.sqrt(2 / math.pi)
        t = torch.tanh(scale * (z + 0.044715 * z * z * z))
        inner = scale * (1 + 3 * 0.044715 * z * z)
        return dy * (0.5 * (1 + t) + 0.5 * z * (1 - t * t) * inner)
    if activation == "hardswish":
        # -3 < z < 3: (2 z + 3) / 6; at the corners PyTorch takes the flat and the straight side
        inside = dy * (z / 3 + 0.5)
        return torch.where(z <= -3, torch.zeros_like(dy), torch.where(z >= 3, dy, inside))
    raise AssertionError(f"unknown activation {activation}")
