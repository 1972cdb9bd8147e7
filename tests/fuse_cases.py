"""What the tests of fuse share: small models, and how they are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast.fusion.bound import BoundCall

from .fuse_models import settle
from .tolerances import WINOGRAD, assert_within

TOLERANCE = WINOGRAD[5]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(), *layers)


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model in eval mode, fused and plain."""
    plain = settle(model).eval()
    return cmf.fuse(copy.deepcopy(plain)), plain


def rows(model: nn.Module) -> dict[str, Any]:
    return {row.path: row for row in cmf.fusion_report(model)}


def same(fused: nn.Module, plain: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        actual, expected = fused(*inputs), plain(*inputs)
    for a, e in zip(
        actual if isinstance(actual, tuple) else (actual,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert_within(a, e, TOLERANCE)


class Written(nn.Module):
    """Two convolutions and what the tests' forwards use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.conv2 = conv()
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.block = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2))
        self.flag = True
        self.sizes = [1, 2]
        self.count = 0
        self.anything: Any = None


def written(forward: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    return settle(type("Written_", (Written,), {"forward": forward})())


class OwnConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def watch_runs(
    monkeypatch: pytest.MonkeyPatch, note: Callable[[BoundCall, Tensor | None, Any], None]
) -> None:
    """Tell `note` of each run of a bound call: the call, its result, what was given by name."""
    run = BoundCall.run

    def record(self: BoundCall, *arguments: Any, **named: Any) -> Tensor | None:
        y = run(self, *arguments, **named)
        note(self, y, named)
        return y

    monkeypatch.setattr(BoundCall, "run", record)


def recorded(monkeypatch: pytest.MonkeyPatch, argument: str) -> list[bool]:
    """For each call of a bound convolution that gave something, whether it was given `argument`."""
    seen: list[bool] = []

    def note(call: BoundCall, y: Tensor | None, named: Any) -> None:
        if y is not None:
            seen.append(named.get(argument) is not None)

    watch_runs(monkeypatch, note)
    return seen


def noise(format: str, channels: int, size: int) -> Tensor:
    x = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(3))
    return x.to(memory_format=FORMATS[format])


def same_layout(fused: nn.Module, plain: nn.Module, x: Tensor) -> Tensor:
    """The fused model's result: values and strides are the plain one's, and x is as it was."""
    kept = x.clone()
    with torch.no_grad():
        y, want = fused(x), plain(x)
    assert_within(y, want, TOLERANCE)
    assert y.stride() == want.stride()
    assert torch.equal(x, kept)
    return y  # type: ignore[no-any-return]


def settled(fused: nn.Module, plain: nn.Module, x: Tensor, seen: list[bool]) -> None:
    """One bound call of a later run is given what is `recorded`, and the bits are the first's."""
    first = same_layout(fused, plain, x)
    seen.clear()
    assert torch.equal(same_layout(fused, plain, x), first)
    assert seen.count(True) == 1
    seen.clear()
