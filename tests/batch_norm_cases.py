"""Problems of batch normalization in training, their exact results, and those of the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmedia_fast.ops.batch_norm_act.cpu import Launch, Norm, launch_for
from crossmedia_fast.ops.batch_norm_act.reference import batch_norm_act
from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS
from crossmedia_fast.ops.conv_act_pool.memory_format import is_channels_last

LAST = torch.channels_last
FORMATS = [torch.contiguous_format, LAST]
FORMAT_IDS = ["planes", "last"]
KINKS = {"relu": (0,), "leaky_relu": (0,), "relu6": (0, 6), "elu": (0,), "hardswish": (-3, 3)}
EPS = 1e-5
MOMENTUM = 0.1


class Case(NamedTuple):
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    dy: Tensor


class Results(NamedTuple):
    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    running_mean: Tensor
    running_var: Tensor


def make_case(
    shape: tuple[int, ...],
    format: torch.memory_format = torch.contiguous_format,
    affine: bool = True,
    mean: float = 0.5,
    activation: str = "identity",
) -> Case:
    """Random values, none within rounding of where the activation has a kink."""
    g = torch.Generator().manual_seed(sum(shape))
    channels = shape[1]
    spread = 0.5 + torch.rand(channels, 1, 1, generator=g)
    x = mean + spread * torch.randn(shape, generator=g)
    weight = 0.5 + torch.rand(channels, generator=g) if affine else None
    bias = torch.randn(channels, generator=g) if affine else None
    for _ in range(3):
        near = near_kink(x, weight, bias, activation)
        x = torch.where(near, x + 0.01, x)
    return Case(
        x.contiguous(memory_format=format),
        weight,
        bias,
        torch.randn(channels, generator=g),
        0.5 + torch.rand(channels, generator=g),
        torch.randn(shape, generator=g).contiguous(memory_format=format),
    )


def norm_of(activation: str, eps: float = EPS) -> Norm:
    return Norm(eps, activation, ACTIVATIONS[activation] or 0.0)


def preactivation(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """In float64."""
    parameters = [None if t is None else t.double() for t in (weight, bias)]
    return batch_norm_act(x.double(), *parameters, None, None, 0.0, *norm_of("identity"))


def near_kink(x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str) -> Tensor:
    z = preactivation(x, weight, bias)
    near = torch.zeros_like(x, dtype=torch.bool)
    for kink in KINKS.get(activation, ()):
        near |= (z - kink).abs() < 1e-4
    return near


def launch_of(x: Tensor, norm: Norm) -> Launch:
    return launch_for(x.shape, is_channels_last(x), norm)


def run_kernels(case: Case, norm: Norm, momentum: float = MOMENTUM) -> Results:
    launch = launch_of(case.x, norm)
    mean, variance = case.running_mean.clone(), case.running_var.clone()
    y, statistics = launch.forward(case.x, case.weight, case.bias, mean, variance, momentum)
    gradients: Any = launch.backward(
        case.dy, case.x, statistics, case.weight, case.bias, (True, True, True)
    )
    return Results(y, *gradients, mean, variance)


def run_reference(
    case: Case, norm: Norm, momentum: float = MOMENTUM, dtype: torch.dtype = torch.float64
) -> Results:
    channels = case.x.shape[1]
    given = (
        case.x,
        torch.ones(channels) if case.weight is None else case.weight,
        torch.zeros(channels) if case.bias is None else case.bias,
    )
    leaves = [t.to(dtype).clone().requires_grad_() for t in given]
    mean, variance = (t.to(dtype).clone() for t in (case.running_mean, case.running_var))
    y = batch_norm_act(*leaves, mean, variance, momentum, *norm)
    gradients = torch.autograd.grad(y, leaves, case.dy.to(dtype))
    return Results(y.detach(), *gradients, mean, variance)
