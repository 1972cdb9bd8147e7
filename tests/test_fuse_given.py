"""Calls of F.conv2d with parameters of the module: fused as nn.Conv2d is, or left alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossmedia_fast as cmf

from .fuse_cases import TOLERANCE, rows, same
from .fuse_models import settle
from .tolerances import WINOGRAD_GRADIENTS, assert_within


class Filters(nn.Module):
    """Parameters of its own, and what the tests' forwards use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(32, 32, 3, 3) * 0.06)
        self.bias = nn.Parameter(torch.randn(32))
        self.norm = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2)
        self.stride, self.scale = 1, 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


def make(forward: Callable[..., Any]) -> nn.Module:
    return settle(type("Filters_", (Filters,), {"forward": forward})())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 32, 24, 24, generator=torch.Generator().manual_seed(0))


def _positional(self: Any, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, self.weight, self.bias, 1, 1))


def _keywords(self: Any, x: Tensor) -> Tensor:
    y = F.conv2d(input=x, weight=self.weight, bias=self.bias, stride=self.stride, padding="same")
    return self.pool(torch.tanh(y))


def _without_bias(self: Any, x: Tensor) -> Tensor:
    return F.avg_pool2d(F.leaky_relu(torch.conv2d(x, self.weight, None, (2, 2), [1, 1]), 0.2), 2)


def _folded(self: Any, x: Tensor) -> Tensor:
    y = self.norm(F.conv2d(x, self.weight, self.bias, padding=1) * self.scale)
    return self.pool(F.relu(y))


def _adaptive(self: Any, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.relu(F.conv2d(x, self.weight, padding=1)), 3)


PATTERNS = {
    _positional: "conv2d -> relu",
    _keywords: "conv2d -> tanh -> MaxPool2d",
    _without_bias: "conv2d -> leaky_relu -> avg_pool2d",
    _folded: "conv2d -> mul -> BatchNorm2d -> relu -> MaxPool2d",
    _adaptive: "conv2d -> relu -> adaptive_avg_pool2d",
    Filters.forward: "conv2d",
}


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    used = [p for p in (model.weight, model.bias) if isinstance(p, Tensor)]
    found = torch.autograd.grad((y * y.detach().cos()).sum(), [x, *used], allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("forward", PATTERNS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
def test_what_is_fused(forward: Callable[..., Any], example: bool, x: Tensor) -> None:
    model = make(forward)
    fused = cmf.fuse(copy.deepcopy(model), x if example else None)
    (row,) = cmf.fusion_report(fused)
    assert (row.path, row.pattern, row.fused) == ("weight", PATTERNS[forward], True)
    assert list(fused.state_dict()) == list(model.state_dict())
    for format in (torch.contiguous_format, torch.channels_last):
        same(fused, model, x.contiguous(memory_format=format))
    for a, e in zip(gradients(fused, x), gradients(model, x), strict=True):
        assert_within(a, e, 2 * WINOGRAD_GRADIENTS[3])
    for m in (fused, model):
        m.weight.data.mul_(1.5)  # moves no version counter
        m.weight.data[3, 1, 2, 0] += 4
    same(fused, model, x)
    for m in (fused, model):
        m.train()
    same(fused, model, x)


def test_of_a_block_and_in_a_block(x: Tensor) -> None:
    model = settle(nn.Sequential(Filters(), nn.ReLU(), make(_folded), nn.Conv2d(32, 4, 1)))
    fused = cmf.fuse(copy.deepcopy(model), x)
    found = rows(fused)
    assert found["0.weight"].pattern == "conv2d -> ReLU"
    assert found["2.weight"].fused
    assert found["3"].pattern == "Conv2d"
    same(fused, model, x)
    same(copy.deepcopy(fused), model, x)
    assert type(cmf.unfuse(fused)[0]) is Filters


def test_pickles(x: Tensor) -> None:
    model = settle(nn.Sequential(Filters(), nn.ReLU()))
    fused = pickle.loads(pickle.dumps(cmf.fuse(copy.deepcopy(model))))
    assert rows(fused)["0.weight"].fused
    same(fused, model, x)


def test_parameters_replaced_and_substituted(x: Tensor) -> None:
    model = make(_folded)
    fused = cmf.fuse(copy.deepcopy(model))
    same(fused, model, x)
    flipped = model.weight.detach().flip(0)
    for m in (model, fused):
        m.weight = nn.Parameter(flipped.clone())
    same(fused, model, x)
    state = {"weight": torch.ones_like(model.weight), "bias": torch.zeros(32)}
    with torch.no_grad():
        actual = torch.func.functional_call(fused, state, (x,))
        assert_within(actual, torch.func.functional_call(model, state, (x,)), TOLERANCE)
    for m in (model, fused):
        m.bias = None
        m.scale = 2.0
    same(fused, model, x)


def _computed_weight(self: Any, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, self.weight * self.scale, self.bias, padding=1))


def _given_weight(self: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, weight, self.bias, padding=1))


def _computed_padding(self: Any, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, self.weight, self.bias, padding=x.shape[-1] // 4))


@pytest.mark.parametrize(
    "forward", [_computed_weight, _given_weight, _computed_padding], ids=lambda f: f.__name__
)
def test_what_is_left_alone(forward: Callable[..., Any], x: Tensor) -> None:
    model = make(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert type(fused) is type(model)
    more = (torch.ones(32, 32, 3, 3),) if forward is _given_weight else ()
    same(fused, model, x, *more)


def test_compiled_and_exported(x: Tensor) -> None:
    model = make(_folded)
    fused = cmf.fuse(copy.deepcopy(model), x)
    with torch.no_grad():
        compiled = torch.compile(fused, backend="eager", fullgraph=True)
        assert_within(compiled(x), model(x), TOLERANCE)
        exported = torch.export.export(fused, (x,))
        assert_within(exported.module()(x), model(x), TOLERANCE)
