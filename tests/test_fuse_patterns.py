"""Every pattern that fuse knows: found, and equal to the unfused model in values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossmedia_fast as cmf

from .fuse_models import settle
from .tolerances import GRADIENTS, WINOGRAD, assert_within

TOLERANCE = WINOGRAD[5]  # fused layers may run as Winograd of any filter


class Functional(nn.Module):
    """A convolution, and `tail` written out in forward."""

    def __init__(self, tail: Callable[[Any, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, **kwargs)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1))
        self.register_buffer("offset", torch.linspace(-0.2, 0.2, 8).reshape(1, 8, 1, 1))
        self.tail = tail
        self.factor = 1.5


def _functional(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return type("Functional_", (Functional,), {"forward": forward})(forward)


def fused_patterns(model: nn.Module) -> list[str]:
    return [row.pattern for row in cmf.fusion_report(model) if row.fused]


def check(model: nn.Module, *inputs: Tensor, gradients: bool = True) -> nn.Module:
    """The fused twin of `model`, held against it."""
    fused = cmf.fuse(copy.deepcopy(model))
    x = [t.clone().requires_grad_() for t in inputs]
    z = [t.clone().requires_grad_() for t in inputs]
    expected, actual = model(*x), fused(*z)
    assert_within(actual, expected, TOLERANCE)
    with torch.no_grad():
        assert_within(fused(*inputs), model(*inputs), TOLERANCE)
    if gradients:
        weight = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
        (expected * weight).sum().backward()
        (actual * weight).sum().backward()
        for a, e in zip(z, x, strict=True):
            assert_within(a.grad, e.grad, GRADIENTS[torch.float32] * 5)
        for (name, a), e in zip(fused.named_parameters(), model.parameters(), strict=True):
            assert (a.grad is None) == (e.grad is None), name
            if e.grad is not None:
                assert_within(a.grad, e.grad, GRADIENTS[torch.float32] * 5)
    return fused


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 12, 12, generator=torch.Generator().manual_seed(0))


LAYERS = {
    "relu": [nn.ReLU()],
    "relu in place": [nn.ReLU(inplace=True)],
    "leaky": [nn.LeakyReLU(0.2)],
    "relu6": [nn.ReLU6()],
    "elu": [nn.ELU(0.7)],
    "silu": [nn.SiLU()],
    "gelu": [nn.GELU()],
    "gelu tanh": [nn.GELU(approximate="tanh")],
    "tanh": [nn.Tanh()],
    "sigmoid": [nn.Sigmoid()],
    "softplus": [nn.Softplus(2.0)],
    "hardswish": [nn.Hardswish()],
    "relu, max": [nn.ReLU(), nn.MaxPool2d(2)],
    "relu, max 3/2": [nn.ReLU(), nn.MaxPool2d(3, 2, 1)],
    "relu, max ceil": [nn.ReLU(), nn.MaxPool2d(5, 3, ceil_mode=True)],
    "silu, avg": [nn.SiLU(), nn.AvgPool2d(2)],
    "relu, avg padded": [nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False)],
    "max": [nn.MaxPool2d(2)],
    "avg": [nn.AvgPool2d(2)],
    "max before relu": [nn.MaxPool2d(2), nn.ReLU()],
    "max before tanh": [nn.MaxPool2d(3, 2, 1), nn.Tanh()],
    "norm": [nn.BatchNorm2d(8)],
    "norm without weights": [nn.BatchNorm2d(8, affine=False), nn.ReLU()],
    "norm, relu, max": [nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(), nn.MaxPool2d(2)],
    "norm, max, relu": [nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.ReLU()],
    "dropout": [nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2)],
    "dropout2d": [nn.ReLU(), nn.Dropout2d(0.5), nn.MaxPool2d(2)],
    "identity": [nn.Identity(), nn.ReLU(), nn.Identity(), nn.MaxPool2d(2)],
    "adaptive avg 1": [nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
    "adaptive max": [nn.ReLU(), nn.AdaptiveMaxPool2d((3, 4))],
    "adaptive none": [nn.ReLU(), nn.AdaptiveAvgPool2d((None, 2))],
}


@pytest.mark.parametrize("name", LAYERS)
def test_module_chains(name: str, x: Tensor) -> None:
    layers = LAYERS[name]
    model = settle(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), *copy.deepcopy(layers)))
    fused = check(model, x)
    expected = " -> ".join(["Conv2d", *(type(layer).__name__ for layer in layers)])
    assert fused_patterns(fused) == [expected]


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "F.relu": lambda self, x: F.relu(self.conv(x)),
    "F.relu in place": lambda self, x: F.relu(self.conv(x), inplace=True),
    "F.relu positional in place": lambda self, x: F.relu(self.conv(x), True),
    "torch.relu": lambda self, x: torch.relu(self.conv(x)),
    "x.relu": lambda self, x: self.conv(x).relu(),
    "x.relu_": lambda self, x: self.conv(x).relu_(),
    "F.leaky_relu": lambda self, x: F.leaky_relu(self.conv(x), 0.3),
    "F.leaky_relu named": lambda self, x: F.leaky_relu(self.conv(x), negative_slope=0.3),
    "F.elu": lambda self, x: F.elu(self.conv(x), alpha=0.5),
    "F.relu6": lambda self, x: F.relu6(self.conv(x)),
    "F.hardtanh": lambda self, x: F.hardtanh(self.conv(x), 0.0, 6.0),
    "F.silu": lambda self, x: F.silu(self.conv(x)),
    "F.gelu": lambda self, x: F.gelu(self.conv(x)),
    "F.gelu tanh": lambda self, x: F.gelu(self.conv(x), approximate="tanh"),
    "F.softplus": lambda self, x: F.softplus(self.conv(x), beta=2),
    "F.hardswish": lambda self, x: F.hardswish(self.conv(x)),
    "torch.tanh": lambda self, x: torch.tanh(self.conv(x)),
    "x.tanh": lambda self, x: self.conv(x).tanh(),
    "torch.sigmoid": lambda self, x: torch.sigmoid(self.conv(x)),
    "F.max_pool2d": lambda self, x: F.max_pool2d(F.relu(self.conv(x)), 2),
    "F.max_pool2d named": lambda self, x: F.max_pool2d(
        F.relu(self.conv(x)), kernel_size=3, stride=2, padding=1, ceil_mode=True
    ),
    "torch.max_pool2d": lambda self, x: torch.max_pool2d(F.relu(self.conv(x)), 2),
    "F.avg_pool2d": lambda self, x: F.avg_pool2d(F.relu(self.conv(x)), 3, 2, 1, False, False),
    "F.adaptive_avg_pool2d": lambda self, x: F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1),
    "F.adaptive_max_pool2d": lambda self, x: F.adaptive_max_pool2d(F.relu(self.conv(x)), (3, 3)),
    "pool, then relu": lambda self, x: F.relu(F.max_pool2d(self.conv(x), 2)),
    "F.dropout": lambda self, x: F.max_pool2d(
        F.dropout(F.relu(self.conv(x)), 0.5, self.training), 2
    ),
    "plus a number": lambda self, x: F.relu(self.conv(x) + 0.5),
    "a number minus": lambda self, x: F.relu(0.5 - self.conv(x)),
    "times a number": lambda self, x: F.max_pool2d(torch.tanh(2.5 * self.conv(x)), 2),
    "by a number": lambda self, x: F.relu(self.conv(x) / 3),
    "times an attribute": lambda self, x: F.relu(self.conv(x) * self.factor),
    "plus a buffer": lambda self, x: F.relu(self.conv(x) + self.offset),
    "minus, times, plus": lambda self, x: F.avg_pool2d(
        ((self.conv(x) - 0.1) * self.scale + self.offset).relu(), 2
    ),
    "in place": lambda self, x: F.relu(self.conv(x).mul_(2).add_(0.25)),
    "torch.add": lambda self, x: F.relu(torch.add(self.conv(x), 0.5)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_calls(name: str, x: Tensor) -> None:
    fused = check(_functional(FUNCTIONS[name]).eval(), x)
    patterns = fused_patterns(fused)
    assert len(patterns) == 1
    # each call of the line is part of the match
    text = patterns[0]
    assert text.count("->") >= (2 if "pool" in name or "times, plus" in name else 1), text


@pytest.mark.parametrize(
    "kwargs",
    [
        {"stride": 2, "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": (2, 1), "padding_mode": "circular"},
        {"groups": 4},
        {"kernel_size": 1},
        {"kernel_size": 5, "padding": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_of_every_kind(
    kwargs: dict[str, Any], format: torch.memory_format, x: Tensor
) -> None:
    arguments = {"kernel_size": 3, **kwargs}
    model = settle(
        nn.Sequential(
            nn.Conv2d(4, 8, **arguments), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        ).to(memory_format=format)
    )
    x = x.contiguous(memory_format=format)
    fused = check(model, x)
    assert len(fused_patterns(fused)) == 1
    with torch.no_grad():
        assert fused(x).is_contiguous(memory_format=format)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, x: Tensor) -> None:
    tolerance = {torch.float64: 1e-13, torch.bfloat16: 3.2e-2, torch.float16: 4e-3}[dtype]
    for layers in ([nn.ReLU(), nn.MaxPool2d(2)], [nn.BatchNorm2d(8), nn.ReLU()]):
        model = settle(nn.Sequential(nn.Conv2d(4, 8, 3), *layers)).to(dtype)
        with torch.no_grad():
            expected = model(x.to(dtype))
            actual = cmf.fuse(copy.deepcopy(model))(x.to(dtype))
        assert actual.dtype == dtype
        assert_within(actual, expected, tolerance)


def test_unbatched_images(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    fused = cmf.fuse(copy.deepcopy(model))
    assert_within(fused(x[0]), model(x[0]), TOLERANCE)


def test_across_blocks(x: Tensor) -> None:
    """The pattern begins in one nested block and ends in another."""
    model = settle(
        nn.Sequential(
            nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 3)), nn.BatchNorm2d(8)),
            nn.Sequential(nn.ReLU(), nn.Sequential(nn.MaxPool2d(2))),
        )
    )
    fused = check(model, x)
    assert fused_patterns(fused) == ["Conv2d -> BatchNorm2d -> ReLU -> MaxPool2d"]
    # each part, called alone, is what it was
    inner = fused[0](x)
    assert_within(inner, model[0](x), TOLERANCE)
    assert_within(fused[1](inner), model(x), TOLERANCE)
    assert_within(fused[:1](x), model[:1](x), TOLERANCE)


def test_uneven_adaptive_pooling_is_left_to_pytorch(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(5))
    check(model, x)
