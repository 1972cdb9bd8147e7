"""The average of every plane: modules, functions and calls of mean, in both memory formats."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.fusion import pooling

from .conv_native_launch import threads
from .fuse_cases import FORMATS

pytestmark = pytest.mark.skipif(native.module is None, reason="has a kernel in the native module")

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": lambda x: F.adaptive_avg_pool2d(x, 1),
    "pair": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "method": lambda x: x.mean((2, 3), keepdim=True),
    "negative": lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
}
SHAPES = [(2, 64, 14, 14), (1, 200, 7, 9), (3, 17, 20, 21), (1, 3, 100, 131), (5, 129, 8, 8)]


def fused(name: str) -> nn.Module:
    if name == "module":
        return cmf.fuse(nn.Sequential(nn.AdaptiveAvgPool2d(1)))
    forward = CALLS[name]
    return cmf.fuse(
        type("Average_", (nn.Sequential,), {"forward": lambda _, x: forward(x)})(nn.ReLU())
    )


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    assert native.module is not None
    forward = native.module.act_pool2d_forward

    def record(*arguments: object) -> object:
        seen.append(1)
        return forward(*arguments)

    monkeypatch.setattr(native.module, "act_pool2d_forward", record)
    return seen


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["module", *CALLS])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: tuple[int, ...], name: str, format: str, launched: list[int]) -> None:
    x = (torch.randn(shape) + 3).to(memory_format=FORMATS[format])
    y = fused(name)(x)
    want = nn.AdaptiveAvgPool2d(1)(x) if name == "module" else CALLS[name](x)
    exact = x.double().mean((2, 3), keepdim=True)
    assert bool(launched) == (x.numel() >= pooling._LEAST_ELEMENTS)
    assert y.stride() == want.stride()
    # no worse than PyTorch's by more than a rounding
    error, theirs = ((v.double() - exact).abs().max().item() for v in (y, want))
    assert error <= theirs + 2.0**-23 * 3


def test_long_sums_round_as_short_ones() -> None:
    x = torch.full((1, 32, 512, 512), 0.1).to(memory_format=torch.channels_last)
    assert (fused("module")(x) - 0.1).abs().max() < 1e-7


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bits_for_any_thread_count(format: str) -> None:
    for batch in (1, 2, 3):
        x = torch.randn(batch, 150, 40, 41).to(memory_format=FORMATS[format])
        found = []
        for count in (1, 2, 3, 7):
            with threads(count):
                found.append(fused("module")(x))
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_is_not_finite_comes_out_where_it_does() -> None:
    x = torch.randn(2, 40, 20, 20).to(memory_format=torch.channels_last)
    x[0, 3, 4, 5], x[1, 7, 0, 0], x[1, 39, 19, 19] = float("nan"), float("inf"), -float("inf")
    torch.testing.assert_close(fused("method")(x), x.mean((2, 3), keepdim=True), equal_nan=True)


def test_gradients_and_other_types_are_pytorchs() -> None:
    for name in ("module", "method"):
        x = torch.randn(2, 64, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
        fused(name)(x).square().sum().backward()
        assert x.grad is not None
        want = 2 * x.detach().mean((2, 3), keepdim=True) / 196
        torch.testing.assert_close(x.grad, want.expand_as(x), rtol=1e-4, atol=1e-8)
        half = x.detach().bfloat16()
        assert fused(name)(half).dtype is torch.bfloat16


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((1, 2), keepdim=True),
        lambda x: x.mean(3, keepdim=True),
        lambda x: x.mean(),
        lambda x: x.mean((2, 3), keepdim=True, dtype=torch.float64),
    ],
)
def test_other_means_are_left_alone(call: Callable[[Tensor], Tensor], launched: list[int]) -> None:
    forward = {"forward": lambda _, x: call(x)}
    model = cmf.fuse(type("Mean_", (nn.Sequential,), forward)(nn.ReLU()))
    x = torch.randn(2, 64, 14, 14)
    assert torch.equal(model(x), call(x))
    assert not launched


def test_a_mean_behind_a_convolution_keeps_its_strides() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x)).mean((2, 3), keepdim=True)

    plain = Net()
    for format in FORMATS.values():
        x = torch.randn(2, 8, 40, 40).to(memory_format=format)
        with torch.no_grad():
            want = plain(x)
            y = cmf.fuse(plain)(x)
            cmf.unfuse(plain)
        assert y.stride() == want.stride()
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
