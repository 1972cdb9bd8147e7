"""A gate before a 1x1 convolution: multiplied in its packing where it may be."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native

from .conv_native_launch import threads
from .fuse_cases import FORMATS, TOLERANCE, noise, pair, recorded, same_layout, settled
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")


class Squeeze(nn.Module):
    """Squeeze and excitation, as torchvision writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 6, 1)
        self.fc2 = nn.Conv2d(6, channels, 1)
        self.activation = nn.SiLU()
        self.scale_activation = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x


class Turned(Squeeze):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x, self.gate(x))


class ByImage(Squeeze):
    """A gate of each image, not of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).mean(1, keepdim=True)


class Twice(Squeeze):
    """The product is somebody else's too."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.gate(x)
        return y + y.mean()


class Block(nn.Module):
    def __init__(
        self,
        squeeze: type[Squeeze] = Squeeze,
        channels: int = 40,
        filters: int = 24,
        kernel: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, groups=channels), nn.SiLU()),
            squeeze(channels),
            nn.Sequential(
                nn.Conv2d(channels, filters, kernel, stride, bias=False), nn.BatchNorm2d(filters)
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Its gate is one that what is not finite does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.linspace(-1, 1, 120).view(3, 40, 1, 1))
        self.conv = nn.Conv2d(40, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * self.values)  # type: ignore[no-any-return]


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of a bound convolution that gave something, whether it multiplied its input."""
    return recorded(monkeypatch, "affine")


def image(format: str = "channels_last", channels: int = 40, size: int = 13) -> Tensor:
    return noise(format, channels, size)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("squeeze", [Squeeze, Turned])
@pytest.mark.parametrize(("channels", "filters"), [(16, 32), (21, 40), (37, 4), (130, 129)])
@pytest.mark.parametrize("stride", [1, 2])
def test_values(
    squeeze: type[Squeeze],
    format: str,
    channels: int,
    filters: int,
    stride: int,
    gated: list[bool],
) -> None:
    models = pair(Block(squeeze, channels, filters, stride=stride))
    settled(*models, image(format, channels, 31), gated)
    settled(*models, image(format, channels, 32), gated)  # whose planes fill vectors


def test_what_is_no_gate_is_the_layers(gated: list[bool]) -> None:
    for model in (Block(ByImage), Block(Twice), Block(kernel=3)):
        models = pair(model)
        for _ in range(2):
            same_layout(*models, image())
    fused, plain = pair(Block())
    same_layout(fused.double(), plain.double(), image().double())
    assert True not in gated


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bits_for_any_thread_count(format: str) -> None:
    fused, _ = pair(Block(Squeeze, 64, 96))
    x = image(format, 64, 30)
    found = []
    for count in (1, 2, 3):
        with threads(count), torch.no_grad():
            fused(x)
            found.append(fused(x))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_comes_out_where_it_does(format: str, gated: list[bool]) -> None:
    fused, plain = pair(Gated())
    x = image(format)
    settled(fused, plain, x, gated)
    with torch.no_grad():
        x[0, 3, 4, 5], x[1, 7, 0, 0], x[1, 2, 6, 6] = float("nan"), float("inf"), -float("inf")
        y, want = fused(x), plain(x)
    assert gated == [True]
    assert torch.equal(y.isnan(), want.isnan())
    torch.testing.assert_close(y, want, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_gates_of_any_strides(gated: list[bool]) -> None:
    fused, plain = pair(Gated())
    settled(fused, plain, image(), gated)
    for model in (fused, plain):
        turned = model.values.data.transpose(0, 1).contiguous().transpose(0, 1)
        model.values.data = turned
    same_layout(fused, plain, image())
    same_layout(fused, plain, image())
    assert True not in gated


def test_what_changes_is_seen(gated: list[bool]) -> None:
    models = pair(Block())
    settled(*models, image(), gated)
    for model in models:
        with torch.no_grad():
            model.block[1].fc2.weight.data.mul_(2)
            model.block[2][0].weight.data.neg_()
            model.block[2][1].running_mean.add_(1)
    for _ in range(3):
        same_layout(*models, image())
    for model in models:
        model.block[1].register_forward_hook(lambda *_: torch.ones(3, 40, 13, 13))
    for _ in range(2):
        same_layout(*models, image())


def test_with_gradients_the_layers_run(gated: list[bool]) -> None:
    fused, plain = pair(Block())
    settled(fused, plain, image(), gated)
    gradients = []
    for model in (fused, plain):
        x = image().requires_grad_()
        model(x).square().sum().backward()
        gradients.append([p.grad for p in (x, *model.parameters())])
    assert True not in gated
    for actual, want in zip(*gradients, strict=True):
        assert_within(actual, want, TOLERANCE)


def test_copies_and_pickles_multiply_too(gated: list[bool]) -> None:
    fused, plain = pair(Block())
    settled(fused, plain, image(), gated)
    settled(copy.deepcopy(fused), plain, image(), gated)
    settled(pickle.loads(pickle.dumps(fused)), plain, image(), gated)


def test_unfused_is_as_before() -> None:
    fused, plain = pair(Block())
    assert torch.equal(cmf.unfuse(fused)(image()), plain(image()))
