"""Whole models: fused and unfused agree, in both modes and layouts, in values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf

from . import fuse_models
from .fuse_models import MODELS, settle
from .tolerances import WINOGRAD, assert_within

# A dozen layers, each of Winograd's rounding, one behind the other.
TOLERANCE = 5 * WINOGRAD[3]

# model -> fused rows and all rows
EXPECTED = {
    "LeNet": (2, 2),
    "LeNetReLU": (2, 2),
    "VGG11BN": (8, 8),
    "ResNet18": (15, 15),
    "Fire": (3, 3),
    "UNet": (11, 11),
    "DCGANDiscriminator": (4, 4),
    "PatchGAN": (3, 3),
    "DenseBlock": (4, 4),
    "Inception": (5, 5),
}


def tensors(output: Any) -> Iterable[Tensor]:
    return (output,) if isinstance(output, Tensor) else output


@pytest.fixture(params=MODELS, ids=lambda cls: cls.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settle(request.param())


@pytest.fixture
def x(model: nn.Module) -> Tensor:
    return torch.randn(model.shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_inference(model: nn.Module, x: Tensor, format: torch.memory_format) -> None:
    model = model.to(memory_format=format)
    x = x.contiguous(memory_format=format)
    with torch.no_grad():
        expected = model(x)
        fused = cmf.fuse(copy.deepcopy(model), x)
        for a, e in zip(tensors(fused(x)), tensors(expected), strict=True):
            assert_within(a, e, TOLERANCE)
        # once more, from the folded weights that were kept
        for a, e in zip(tensors(fused(x)), tensors(expected), strict=True):
            assert_within(a, e, TOLERANCE)


def test_report(model: nn.Module) -> None:
    fused = cmf.fuse(model)
    report = cmf.fusion_report(fused)
    count = sum(row.fused for row in report)
    assert (count, len(report)) == EXPECTED[type(model).__name__], str(report)
    convolutions = [p for p, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert [row.path for row in report] == convolutions
    for row in report:
        assert row.fused or row.reason, row
        assert row.path in str(report)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradients(model: nn.Module, x: Tensor, training: bool) -> None:
    model.train(training)
    fused = cmf.fuse(copy.deepcopy(model), x)
    z, x = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(3)
    expected = list(tensors(model(x)))
    torch.manual_seed(3)
    actual = list(tensors(fused(z)))
    for a, e in zip(actual, expected, strict=True):
        assert_within(a, e, TOLERANCE)
    sum((e * torch.linspace(-1, 1, e.numel()).reshape(e.shape)).sum() for e in expected).backward()
    sum((a * torch.linspace(-1, 1, a.numel()).reshape(a.shape)).sum() for a in actual).backward()
    assert z.grad is not None
    assert x.grad is not None
    # A maximum, or the side of a ReLU, may tip over where two values differ by less than rounding
    # and take a whole gradient with it: these inputs have no such ties.
    assert_within(z.grad, x.grad, 2e-4)
    # a bias before a normalisation has no gradient but rounding: the scale is the model's
    scale = max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None)
    for (name, a), e in zip(fused.named_parameters(), model.parameters(), strict=True):
        assert (a.grad is None) == (e.grad is None), name
        if e.grad is not None:
            torch.testing.assert_close(a.grad, e.grad, rtol=2e-4, atol=2e-4 * scale, msg=name)
    for a, e in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_state_dict_round_trip(model: nn.Module, x: Tensor) -> None:
    plain = copy.deepcopy(model)
    fused = cmf.fuse(model, x)
    assert fused is model
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in plain.named_modules()]
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.05)
    fused.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        for a, e in zip(tensors(fused(x)), tensors(plain(x)), strict=True):
            assert_within(a, e, TOLERANCE)
    plain.load_state_dict(fused.state_dict(), strict=True)


def test_unfuse(model: nn.Module, x: Tensor) -> None:
    plain = copy.deepcopy(model)
    classes = [type(m) for m in model.modules()]
    dicts = [set(m.__dict__) for m in model.modules()]
    back = cmf.unfuse(cmf.fuse(model, x))
    assert back is model
    assert [type(m) for m in model.modules()] == classes
    assert [set(m.__dict__) for m in model.modules()] == dicts
    with torch.no_grad():
        for a, e in zip(tensors(model(x)), tensors(plain(x)), strict=True):
            assert torch.equal(a, e)


def test_every_model_is_expected() -> None:
    assert set(EXPECTED) == {cls.__name__ for cls in fuse_models.MODELS}
