"""A sum, and the activation behind it, in the pass of the convolution before them."""

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
from crossmedia_fast import native

from .conv_native_launch import threads
from .fuse_cases import FORMATS, TOLERANCE, noise, pair, recorded, same_layout, settled
from .test_fuse_gate import Squeeze
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")

Forward = Callable[[Any, Tensor], Tensor]


class Block(nn.Module):
    """Two branches; what the tests' forwards make of them."""

    def __init__(
        self, kernel: int = 1, channels: int = 24, filters: int = 32, groups: int = 1
    ) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, filters, kernel, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut = nn.Conv2d(channels, filters, 1)
        self.relu = nn.ReLU(inplace=True)


def block(forward: Forward, *arguments: Any, **named: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return pair(type("Block_", (Block,), {"forward": forward})(*arguments, **named))


def _into(self: Any, x: Tensor) -> Tensor:  # as torchvision's ResNet
    out = self.main(x)
    identity = self.shortcut(x)
    out += identity
    return self.relu(out)  # type: ignore[no-any-return]


def _turned(self: Any, x: Tensor) -> Tensor:
    identity = self.shortcut(x)
    return F.relu6(identity + self.main(x))


def _called(self: Any, x: Tensor) -> Tensor:
    return F.leaky_relu(torch.add(self.main(x), torch.cat((x, x), 1)[:, :32] + 0), 0.2)


def _method(self: Any, x: Tensor) -> Tensor:
    return self.main(x).add_(F.pad(x, (0, 0, 0, 0, 0, 8)))  # type: ignore[no-any-return]


def _long(self: Any, x: Tensor) -> Tensor:  # whose activation is PyTorch's
    return F.silu(self.main(x) + self.shortcut(x))


FORWARDS = [_into, _turned, _called, _method, _long]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of a bound convolution that gave something, whether it added a residual."""
    return recorded(monkeypatch, "residual")


def image(format: str = "channels_last", channels: int = 24, size: int = 13) -> Tensor:
    return noise(format, channels, size)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize(("kernel", "size"), [(1, 13), (1, 32), (3, 13), (3, 30)])
def test_values(forward: Forward, format: str, kernel: int, size: int, added: list[bool]) -> None:
    models = block(forward, kernel)
    settled(*models, image(format, size=size), added)
    assert len(cmf.fusion_report(models[0]).residuals) == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("channels", "filters", "kernel"), [(19, 5, 1), (40, 129, 1), (37, 70, 3)])
def test_any_number_of_channels(
    channels: int, filters: int, kernel: int, format: str, added: list[bool]
) -> None:
    models = block(_into, kernel, channels, filters)
    settled(*models, image(format, channels, 31), added)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [7, 60])
def test_what_is_stored_past_the_caches(format: str, size: int, added: list[bool]) -> None:
    for kernel in (1, 3):
        models = block(_into, kernel, 64, 256)
        settled(*models, image(format, 64, size), added)


def test_groups(added: list[bool]) -> None:
    for format in FORMATS:
        models = block(_into, 3, 64, 64, 2)
        settled(*models, image(format, 64, 20), added)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_same_bits_as_in_three_steps(format: str, kernel: int) -> None:
    def forward(self: Any, x: Tensor, added: Tensor) -> Tensor:
        return F.relu(self.main(x) + added)

    fused, _ = block(forward, kernel)  # type: ignore[arg-type]
    x = image(format)
    added = torch.randn(3, 32, 13, 13).to(memory_format=FORMATS[format])
    with torch.no_grad():
        z = fused(x, torch.zeros_like(added).sub(1e9)) + 0  # bound, and nothing left of z
        assert not z.any()
        y = fused(x, added)
        plain = cmf.fuse(copy.deepcopy(cmf.unfuse(fused)).main)
        assert torch.equal(y, F.relu(plain(x) + added))


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bits_for_any_thread_count(format: str) -> None:
    for kernel in (1, 3):
        fused, _ = block(_into, kernel, 64, 96)
        x = image(format, 64, 30)
        found = []
        for count in (1, 2, 3):
            with threads(count), torch.no_grad():
                fused(x)
                found.append(fused(x))
        assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_not_finite_comes_out_where_it_does(
    format: str, kernel: int, added: list[bool]
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.leaky_relu(self.main(x) + F.pad(x, (0, 0, 0, 0, 8, 0)), 0.1)

    fused, plain = block(forward, kernel)
    x = image(format)
    settled(fused, plain, x, added)
    x[0, 3, 4, 5], x[1, 7, 0, 0], x[1, 2, 6, 6] = float("nan"), float("inf"), -float("inf")
    with torch.no_grad():
        y, want = fused(x), plain(x)
    assert added.count(True) == 1
    torch.testing.assert_close(y, want, equal_nan=True, rtol=1e-4, atol=1e-4)


class Gated(nn.Module):
    """MobileNetV3's: gate, 1x1 convolution, sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(Squeeze(24), nn.Conv2d(24, 24, 1), nn.BatchNorm2d(24))

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        result += x
        return result  # type: ignore[no-any-return]


@pytest.mark.parametrize("format", FORMATS)
def test_a_gate_before_it(format: str, added: list[bool]) -> None:
    settled(*pair(Gated()), image(format), added)


def _shared(self: Any, x: Tensor) -> Tensor:  # z is somebody else's too
    z = self.main(x)
    return (z + self.shortcut(x)) * z.mean()  # type: ignore[no-any-return]


def _into_shortcut(self: Any, x: Tensor) -> Tensor:  # what is changed is somebody else's too
    kept = F.relu(x)
    kept += self.main[0](x)[:, :24]
    return kept.sum(1, keepdim=True)  # type: ignore[no-any-return]


def _changed_between(self: Any, x: Tensor) -> Tensor:
    x = x * 1
    z = self.main(x)
    x.zero_()
    return z + self.shortcut(x)  # type: ignore[no-any-return]


def _scaled(self: Any, x: Tensor) -> Tensor:
    return torch.add(self.main(x), F.pad(x, (0, 0, 0, 0, 0, 8)), alpha=2)


def _twice(self: Any, x: Tensor) -> Tensor:
    z = self.main(x)
    return z + z  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [_shared, _into_shortcut, _changed_between, _scaled, _twice])
def test_what_must_not_be_taken_in(forward: Forward) -> None:
    models = block(forward)
    for _ in range(3):
        same_layout(*models, image())


def _given(self: Any, x: Tensor, residual: Tensor) -> Tensor:
    return self.relu(self.main(x) + residual)  # type: ignore[no-any-return]


def test_residuals_of_other_kinds_are_pytorchs(added: list[bool]) -> None:
    fused, plain = block(_given)  # type: ignore[arg-type]
    x = image()
    dense = torch.randn(3, 32, 13, 13)
    others = [
        dense,  # in another memory format
        dense[:, :, :1, :1],
        dense[:1].to(memory_format=torch.channels_last),
        dense.double(),
        torch.randn(3, 64, 13, 13).to(memory_format=torch.channels_last)[:, ::2],
        torch._neg_view(dense.to(memory_format=torch.channels_last)),
    ]
    with torch.no_grad():
        right = dense.to(memory_format=torch.channels_last)
        for _ in range(2):
            assert_within(fused(x, right), plain(x, right), TOLERANCE)
        assert added.count(True) > 0
        added.clear()
        for other in others:
            y, want = fused(x, other), plain(x, other)
            assert y.dtype is want.dtype
            assert y.stride() == want.stride()
            assert_within(y, want, TOLERANCE)
    assert True not in added


def test_what_changes_is_seen(added: list[bool]) -> None:
    models = block(_into)
    settled(*models, image(), added)
    for model in models:
        with torch.no_grad():
            model.main[0].weight.data.neg_()
            model.main[1].running_mean.add_(1)
    for _ in range(3):
        same_layout(*models, image())
    settled(*models, image(), added)  # and adds again
    for model in models:
        model.relu.register_forward_hook(lambda *results: results[-1] + 1)
    for _ in range(2):
        same_layout(*models, image())


def test_training_and_gradients_are_the_layers(added: list[bool]) -> None:
    fused, plain = block(_into, 3)
    settled(fused, plain, image(), added)
    for training in (False, True):
        gradients = []
        for model in (fused.train(training), plain.train(training)):
            x = image().requires_grad_()
            model(x).square().sum().backward()
            gradients.append([x.grad, *(p.grad for p in model.parameters())])
            model.zero_grad()
        for actual, want in zip(*gradients, strict=True):
            assert_within(actual, want, TOLERANCE)
    assert True not in added


def test_copies_and_pickles_add_too(added: list[bool]) -> None:
    fused, plain = pair(Gated())
    settled(fused, plain, image(), added)
    settled(copy.deepcopy(fused), plain, image(), added)
    settled(pickle.loads(pickle.dumps(fused)), plain, image(), added)


def test_other_types_and_devices_are_the_layers(added: list[bool]) -> None:
    fused, plain = block(_into)
    for dtype in (torch.float64, torch.bfloat16):
        for _ in range(2):
            with torch.no_grad():
                y = fused.to(dtype)(image().to(dtype))
                torch.testing.assert_close(
                    y, plain.to(dtype)(image().to(dtype)), rtol=2e-2, atol=5e-2
                )
    assert fused.float().to("meta")(image().to("meta")).shape == (3, 32, 13, 13)
    assert True not in added


class StochasticDepth(nn.Module):
    """As torchvision writes it."""

    __module__ = "torchvision.ops.stochastic_depth"

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 if self.training else x


@pytest.mark.parametrize("format", FORMATS)
def test_stochastic_depth_before_the_sum(format: str, added: list[bool]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        result = self.depth(self.main(x))
        result += self.shortcut(x)
        return result  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = type("Block_", (Block,), {"forward": forward})()
    model.depth = StochasticDepth()
    fused, plain = pair(model)
    settled(fused, plain, image(format), added)
    for model in (fused, plain):
        model.depth.train()
    for _ in range(2):
        same_layout(fused, plain, image(format))


def test_unfused_is_as_before() -> None:
    fused, plain = block(_into)
    assert torch.equal(cmf.unfuse(fused)(image()), plain(image()))
