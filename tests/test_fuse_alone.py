"""Convolutions that run alone: nothing follows, or what follows is not for this mode."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast.fusion import region

from .fuse_cases import TOLERANCE, rows, same
from .fuse_models import settle
from .tolerances import NORM, WINOGRAD_GRADIENTS, assert_within

CHANNELS = 32  # enough for Winograd


class Branches(nn.Module):
    """Two convolutions whose results meet: nothing can be fused to them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.right = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.left(x), self.right(x)), 1) + 1


def images(size: int = 32) -> Tensor:
    return torch.randn(2, CHANNELS, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keywords of the fused operation's calls."""
    seen: list[dict[str, Any]] = []
    fused = region.conv_act_pool2d

    def record(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(kwargs)
        return fused(*args, **kwargs)

    monkeypatch.setattr(region, "conv_act_pool2d", record)
    # a call that is bound does not come here again
    monkeypatch.setattr(region.BoundCalls, "find", lambda *_: None)
    return seen


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    return list(torch.autograd.grad((y * y.detach().cos()).sum(), [x, *model.parameters()]))


@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
def test_convolutions_without_anything(example: bool, calls: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = Branches()
    x = images()
    fused = cmf.fuse(copy.deepcopy(model), x if example else None)
    found = rows(fused)
    assert [found[name].fused for name in ("left", "right")] == [True, True]
    assert found["left"].pattern == "Conv2d"
    assert found["left"].reason == "ends here: cat is no operation that can be fused"
    for mode in (True, False):
        calls.clear()
        same(fused.train(mode), model.train(mode), x)
        assert [(c["activation"], c["pool"]) for c in calls] == [("identity", "none")] * 2
        for a, e in zip(gradients(fused, x), gradients(model, x), strict=True):
            assert_within(a, e, WINOGRAD_GRADIENTS[3])


def test_a_convolution_that_pytorch_runs_as_well_is_left_alone() -> None:
    """With example_inputs: what the plan leaves to PyTorch costs no look at it."""
    model = Branches().double()  # no kernel of ours takes it
    cmf.fuse(model, images().double())
    for row in rows(model).values():
        assert not row.fused
        assert "PyTorch's convolution alone" in row.reason
    assert type(model) is Branches


def test_the_result_may_be_changed_in_place() -> None:
    class InPlace(Branches):
        def forward(self, x: Tensor) -> Tensor:
            y = self.left(x)
            y += self.right(x)
            return y.mul_(2)

    torch.manual_seed(0)
    model, x = InPlace(), images()
    fused = cmf.fuse(copy.deepcopy(model), x)
    assert rows(fused)["left"].fused
    same(fused, model, x)
    for a, e in zip(gradients(fused, x), gradients(model, x), strict=True):
        assert_within(a, e, WINOGRAD_GRADIENTS[3])


def normalised(size: int) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    layers = [conv, nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.MaxPool2d(2)]
    model, x = settle(nn.Sequential(*layers)), images(size)
    return model, cmf.fuse(copy.deepcopy(model), x), x


def test_in_training_the_convolution_before_a_normalisation(calls: list[dict[str, Any]]) -> None:
    model, fused, x = normalised(32)
    same(fused, model, x)
    assert calls.pop()["pool"] == "max"
    for a, e in zip(
        gradients(fused.train(), x), gradients(copy.deepcopy(model).train(), x), strict=True
    ):
        # the bias before a normalisation has no gradient but rounding
        scale = max(1.0, e.abs().max().item())
        assert (a - e).abs().max().item() < 1e-4 * scale
    assert [(c["activation"], c["pool"]) for c in calls] == [("identity", "none")]


def test_each_mode_has_its_own_plan(calls: list[dict[str, Any]]) -> None:
    """Of dilated groups: in eval passes are saved, in training there is nothing to gain."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, dilation=2, groups=2)
    model = settle(nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)))
    x = torch.randn(2, 16, 32, 32)
    fused = cmf.fuse(copy.deepcopy(model), x)
    assert "in eval mode alone" in rows(fused)["0"].reason
    same(fused, model, x)
    assert len(calls) == 1
    # the same convolution; normalized by our kernel
    assert_within(fused.train()(x), model.train()(x), 2 * NORM)
    assert len(calls) == 1
    same(fused.eval(), model.eval(), x)
    assert len(calls) == 2


def test_single_writes_to_folded_weights_are_noticed() -> None:
    model, fused, x = normalised(32)
    same(fused, model, x)
    for place in ((0, 0, 0, 0), (15, 15, 2, 2), (7, 3, 1, 1)):
        for m in (model, fused):
            m[0].weight.data[place] += 10.0  # moves no version counter
        same(fused, model, x)
    for m in (model, fused):
        m[0].weight.data = m[0].weight.data.transpose(2, 3)  # the same bytes, another order
    same(fused, model, x)
    for m in (model, fused):
        m[0].weight.data = m[0].weight.data.contiguous(memory_format=torch.channels_last)
    same(fused, model, x)


def test_averages_kept_by_hand() -> None:
    """As training loops write them: a copy that is written to through .data."""
    model, fused, x = normalised(32)
    averages = [copy.deepcopy(m).requires_grad_(False) for m in (model, fused)]
    for step in range(3):
        for m, average in zip((model, fused), averages, strict=True):
            with torch.no_grad():
                for p, a in zip(m.parameters(), average.parameters(), strict=True):
                    p.add_(0.1 * (step + 1))
                    a.data.mul_(0.9).add_(p.data, alpha=0.1)
        same(averages[1], averages[0], x)
    with torch.inference_mode():
        assert_within(averages[1](x), averages[0](x), TOLERANCE)
