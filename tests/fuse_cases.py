"""What the tests of fuse share: small models, and how they are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import crossmedia_fast as cmf

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
