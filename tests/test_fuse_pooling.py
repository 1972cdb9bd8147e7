"""Pooling that follows no convolution, and what follows a BatchNorm that trains."""

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
from crossmedia_fast.fusion import pooling
from crossmedia_fast.fusion.trust import TRUST

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)


class Branches(nn.Module):
    """An inception block's and a U-Net's poolings: of values that others take too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.average = nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        z = torch.cat([self.pool(y), y], 1)
        return F.max_pool2d(self.average(z) + 1, 2)


class Normed(nn.Module):
    """Of VGG with BatchNorm and of a ResNet's stem."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=inplace),
            nn.MaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


FORMATS = [torch.contiguous_format, torch.channels_last]
Launches = list[tuple[Any, ...]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """What runs as one pass: shape and pooling."""
    found: Launches = []
    run = pooling.PoolSteps.run

    def noted(self: pooling.PoolSteps, x: Any, modules: Any) -> Tensor | None:
        y = run(self, x, modules)
        if y is not None:
            found.append((tuple(x.shape), self.activated))
        return y

    monkeypatch.setattr(pooling.PoolSteps, "run", noted)
    return found


def images(format: torch.memory_format = torch.contiguous_format) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(2, 16, 20, 22).contiguous(memory_format=format)


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])]


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model, cmf.fuse(copy.deepcopy(model))


@pytest.mark.parametrize("format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("make", [Branches, Normed, lambda: Normed(False)])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_results_and_gradients(
    make: Callable[[], nn.Module], training: bool, format: torch.memory_format
) -> None:
    plain, fused = pair(make().double().train(training))
    x = images(format).double()
    for a, e in zip(results(fused, x), results(plain, x), strict=True):
        torch.testing.assert_close(a, e)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
        assert fused(x).stride() == plain(x).stride()


def test_what_runs_as_one_pass(launches: Launches) -> None:
    fused = cmf.fuse(Branches())
    fused(images())
    assert launches == [
        ((2, 16, 20, 22), False),
        ((2, 32, 20, 22), False),
    ]  # the last one's input is too small to gain
    launches.clear()
    with torch.no_grad():
        fused(images(torch.channels_last))
    assert [shape for shape, _ in launches] == [(2, 16, 20, 22)]  # maxima alone
    launches.clear()
    fused(images(torch.channels_last))
    assert not launches  # nor those with gradients


def test_behind_a_batch_norm_that_trains(launches: Launches) -> None:
    for format in FORMATS:
        fused = cmf.fuse(Normed())
        fused.train()(images(format))
        assert launches == [((2, 24, 20, 22), True)]
        launches.clear()
        fused.eval()(images(format))
        assert not launches  # all of it is one operation then


def test_the_report_names_them() -> None:
    report = cmf.fusion_report(cmf.fuse(nn.Sequential(Branches(), nn.MaxPool2d(2))))
    assert [row.path for row in report] == ["0.conv"]
    assert dict(report.pools) == {
        "0.pool": "MaxPool2d",
        "0.average": "AvgPool2d",
        "0.max_pool2d": "max_pool2d",
        "1": "MaxPool2d",
    }
    assert "0.average (AvgPool2d)" in str(report)
    assert cmf.fusion_report(cmf.fuse(Normed())).pools == ()  # its convolution's row has it
    copied = pickle.loads(pickle.dumps(report))
    assert (copied, copied.pools) == (report, report.pools)


def test_nan_infinity_and_ties(launches: Launches) -> None:
    x = torch.randint(-2, 2, (2, 16, 20, 22)).float()
    x[0, 0, 3, 3], x[0, 1, 4, 4], x[1, 2] = float("nan"), float("inf"), -float("inf")
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True))
    for a, e in zip(results(cmf.fuse(copy.deepcopy(model)), x), results(model, x), strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)  # gradients of 4 windows, in any order
    assert launches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, launches: Launches) -> None:
    model = nn.Sequential(nn.MaxPool2d(3, 2))
    x = images().to(dtype)
    assert torch.equal(cmf.fuse(copy.deepcopy(model))(x), model(x))
    assert launches


@pytest.mark.parametrize("size", [1, 2, (5, 11), (None, 2), 7], ids=str)
def test_adaptive_pooling(size: Any, launches: Launches) -> None:
    """7 does not divide 20: PyTorch's windows are of several sizes then."""
    for kind in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        model = nn.Sequential(kind(size))
        fused = cmf.fuse(copy.deepcopy(model))
        torch.testing.assert_close(fused(images()), model(images()))
    assert bool(launches) == (size != 7)


def test_left_to_pytorch(launches: Launches) -> None:
    model = nn.Sequential(nn.MaxPool2d(2))
    x = images()
    hooked = cmf.fuse(copy.deepcopy(model))
    hooked[0].register_forward_hook(lambda module, inputs, output: output + 1)
    assert torch.equal(hooked(x), model(x) + 1)
    changed = cmf.fuse(copy.deepcopy(model))
    changed[0].kernel_size = 3
    assert changed(x).shape == (2, 16, 9, 10)
    fused = cmf.fuse(copy.deepcopy(model))
    with cmf.use_backend("reference"):
        fused(x)
    fused(x[:, :, ::2, ::2])  # neither of the two formats
    fused(x[0, 0, None])
    fused(x.to(torch.int32).float()[:, :1])
    torch.func.vmap(fused)(x[None])
    torch.func.jvp(fused, (x,), (x,))
    torch.compile(fused, backend="eager")(x)
    assert not launches
    fused(x)
    assert launches


def test_errors_are_pytorchs() -> None:
    fused = cmf.fuse(nn.Sequential(nn.MaxPool2d(4, padding=3)))
    with pytest.raises(RuntimeError, match="pad"):
        fused(images())
    fused = cmf.fuse(nn.Sequential(nn.MaxPool2d(30)))
    with pytest.raises(RuntimeError, match="too small"):
        fused(images())


class Changing(nn.Module):
    """What is not shielded fails in backward: the pooled result was kept, and is changed."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.norm, self.pool, self.shared = nn.BatchNorm2d(16), nn.MaxPool2d(2), shared

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = self.pool(F.relu_(y))
        z += 1
        return z + y.mean() if self.shared else z


@pytest.mark.parametrize("shared", [False, True])
def test_changes_in_place(shared: bool) -> None:
    plain, fused = pair(Changing(shared).double())
    x = images().double()
    for a, e in zip(results(fused, x), results(plain, x), strict=True):
        torch.testing.assert_close(a, e)


def test_life_with_a_fused_pooling(launches: Launches) -> None:
    fused = cmf.fuse(Branches())
    x = images()
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(other(x), fused(x))
    count = len(launches)
    assert count == 8
    cmf.unfuse(fused)(x)
    assert len(launches) == count
    assert type(fused) is Branches


def test_bound_calls_see_what_changes() -> None:
    plain = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    fused: Any = cmf.fuse(copy.deepcopy(plain))
    x = torch.randn(2, 24, 40, 40)
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(fused(x), plain(x))
        assert fused.__dict__[TRUST].known is not None
        for model in (fused, plain):
            model[0].kernel_size = 3
        for _ in range(4):
            torch.testing.assert_close(fused(x), plain(x))
        for other in (x.to(memory_format=torch.channels_last), x.double(), x[:, :, :21]):
            for _ in range(2):
                torch.testing.assert_close(fused(other), plain(other))
        for model in (fused, plain):
            model[2].register_forward_hook(lambda module, given, result: result + 1)
        torch.testing.assert_close(fused(x), plain(x))
