"""BatchNorm and ReLU before a 1x1 convolution: done in its packing where they may be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmedia_fast import native
from crossmedia_fast.fusion.prologue import PrologueCall

from .conv_native_launch import threads
from .fuse_cases import FORMATS, TOLERANCE, pair, watch_runs
from .fuse_models import settle
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")


class Transition(nn.Module):
    """What stands between two blocks of DenseNet, and its input once more."""

    def __init__(self, channels: int = 21, filters: int = 40, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, filters, 1, stride, bias=False)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool(self.conv(self.relu(self.norm(x)))), x


class Functional(Transition):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.silu(self.conv(F.relu(self.norm(x)))), x


class Changing(Transition):
    """x changes between the normalisation and the convolution."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone()
        z = self.relu(self.norm(x))
        x += 1
        return self.conv(z), x


@pytest.fixture
def affine(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of a bound convolution, whether it normalised its input."""
    seen: list[bool] = []
    watch_runs(
        monkeypatch,
        lambda call, y, named: seen.append(named.get("affine") is not None and y is not None),
    )
    return seen


def image(format: str = "channels_last", channels: int = 21, size: int = 13) -> Tensor:
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(3))
    return x.to(memory_format=FORMATS[format])


def same(fused: nn.Module, plain: nn.Module, x: Tensor) -> None:
    kept = x.clone()
    with torch.no_grad():
        (y, there), (want, _) = fused(x), plain(x)
    assert_within(y, want, TOLERANCE)
    assert y.stride() == want.stride()
    assert torch.equal(there, x)
    assert torch.equal(x, kept) or x.isnan().any()


def settled(fused: nn.Module, plain: nn.Module, x: Tensor, affine: list[bool]) -> None:
    """The next call normalises where it packs, and is right."""
    same(fused, plain, x)
    affine.clear()
    same(fused, plain, x)
    assert affine == [True]
    affine.clear()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", [Transition, Functional])
@pytest.mark.parametrize(("channels", "filters"), [(16, 32), (21, 40), (9, 3), (130, 129)])
@pytest.mark.parametrize("stride", [1, 2])
def test_values(
    kind: Any, format: str, channels: int, filters: int, stride: int, affine: list[bool]
) -> None:
    torch.manual_seed(0)
    models = pair(kind(channels, filters, stride))
    settled(*models, image(format, channels, 61), affine)
    settled(*models, image(format, channels, 64), affine)  # whose planes fill vectors


def test_without_weight_and_bias(affine: list[bool]) -> None:
    model = Transition()
    model.norm = nn.BatchNorm2d(21, affine=False)
    settled(*pair(model), image(), affine)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bits_for_any_thread_count(format: str) -> None:
    fused, _ = pair(Transition(64, 96))
    x = image(format, 64, 30)
    found = []
    for count in (1, 2, 3):
        with threads(count), torch.no_grad():
            fused(x)
            found.append(fused(x)[0])
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_comes_out_where_it_does(format: str) -> None:
    fused, plain = pair(Functional())
    x = image(format)
    with torch.no_grad():
        fused(x)
        x[0, 3, 4, 5], x[1, 7, 0, 0], x[1, 2, 6, 6] = float("nan"), float("inf"), -float("inf")
        y, want = fused(x)[0], plain(x)[0]
    assert torch.equal(y.isnan(), want.isnan())
    torch.testing.assert_close(y, want, equal_nan=True, rtol=1e-5, atol=1e-5)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "mean": lambda m: m.norm.running_mean.add_(1),
    "mean's data": lambda m: m.norm.running_mean.data.numpy().__iadd__(1),
    "variance": lambda m: m.norm.running_var.mul_(2),
    "weight's data": lambda m: m.norm.weight.data.mul_(2),
    "bias": lambda m: m.norm.__setattr__("bias", nn.Parameter(torch.ones(21))),
    "eps": lambda m: m.norm.__setattr__("eps", 0.5),
    "swapped": lambda m: m.norm.weight.set_(torch.full((21,), 2.0)),
    "the convolution's weight": lambda m: m.conv.weight.data.mul_(2),
    "another BatchNorm": lambda m: m.__setattr__(
        "norm", settle(nn.BatchNorm2d(21, momentum=0.3)).eval()
    ),
    "in training": lambda m: m.norm.train(),
    "another activation": lambda m: m.__setattr__("relu", nn.SiLU()),
    "hook": lambda m: m.relu.register_forward_hook(lambda *_: torch.ones(2, 21, 13, 13)),
    "hook before": lambda m: m.norm.register_forward_pre_hook(
        lambda *_: (torch.ones_like(_[1][0]),)
    ),
    "forward": lambda m: m.relu.__setattr__("forward", torch.tanh),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_seen(change: str, affine: list[bool]) -> None:
    models = pair(Transition())
    settled(*models, image(), affine)
    for model in models:
        with torch.no_grad():
            torch.manual_seed(5)
            CHANGES[change](model)
    for _ in range(3):
        same(*models, image())


def test_an_input_that_changes_in_between(affine: list[bool]) -> None:
    models = pair(Changing())
    for _ in range(3):
        x = image()
        with torch.no_grad():
            for actual, want in zip(models[0](x), models[1](x), strict=True):
                assert_within(actual, want, TOLERANCE)
    assert True not in affine


def test_with_gradients_the_layers_run(affine: list[bool]) -> None:
    fused, plain = pair(Transition())
    settled(fused, plain, image(), affine)
    gradients = []
    for model in (fused, plain):
        x = image().requires_grad_()
        model(x)[0].square().sum().backward()
        parameters = (x, *model.parameters())
        gradients.append([p.grad for p in parameters])
    assert True not in affine
    for actual, want in zip(*gradients, strict=True):
        assert_within(actual, want, TOLERANCE)


def test_copies_and_pickles_normalise_too(affine: list[bool]) -> None:
    fused, plain = pair(Transition())
    settled(fused, plain, image(), affine)
    settled(copy.deepcopy(fused), plain, image(), affine)
    settled(pickle.loads(pickle.dumps(fused)), plain, image(), affine)


def test_other_shapes_and_types_are_the_layers(affine: list[bool]) -> None:
    fused, plain = pair(Transition())
    settled(fused, plain, image(), affine)
    same(fused, plain, torch.randn(2, 21, 26, 26)[..., ::2, ::2])
    same(fused.double(), plain.double(), image().double())
    same(fused, plain, image().double())
    assert True not in affine


def test_scale_and_shift_are_the_batch_norm() -> None:
    """A BatchNorm's statistics as float32: scale = w / sqrt(v + eps), shift = b - m scale."""
    norm = settle(nn.BatchNorm2d(5)).eval()
    call = PrologueCall(norm, None, None)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 3, 3)
    scale, shift = (value[:, None, None] for value in call.affine)
    torch.testing.assert_close(x * scale + shift, norm(x), rtol=1e-6, atol=1e-6)


def test_native_calls_check() -> None:
    from .test_conv_winograd_native import NONE, Problem

    pointers = [torch.empty(2048).data_ptr() for _ in range(4)]
    for algorithm, size, scale, shift in (
        ("winograd", 3, *pointers[:2]),
        ("winograd", 3, pointers[0], 0),
        ("pointwise", 1, 0, pointers[0]),
    ):
        problem = Problem((1, 4, 6, 6, 8, size, size, 1, 0), NONE, "relu", "contiguous")
        x, w, prepared, y = pointers
        with pytest.raises(ValueError, match="x_shift comes with x_scale"):
            native.module.conv_act_pool2d_forward(  # type: ignore[union-attr]
                algorithm, problem.launch.native, x, w, prepared, 0, y, 0, 0, 1, 0, scale, shift
            )
