"""The fused CUDA convolution through the public function, where its algorithm is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import crossmedia_fast as cmf

from . import tolerances
from .conv_act_pool_cases import algorithm, gradients, make
from .cuda_calls import DEVICE, runs_kernels

pytestmark = runs_kernels


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with algorithm("implicit_gemm"):
        yield


def tensors(**arguments: Any) -> list[Tensor]:
    return [t.to(DEVICE) for t in make(**arguments)]


def assert_planned(x: Tensor, w: Tensor, b: Tensor | None, **arguments: Any) -> None:
    assert "algorithm implicit_gemm:" in str(cmf.explain(x, w, b, backend="cuda", **arguments))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_values_and_gradients(pool: str, channels_last: bool) -> None:
    x, w, b = tensors(in_channels=8, out_channels=6, channels_last=channels_last)
    arguments: dict[str, Any] = {"padding": 1, "activation": "leaky_relu", "pool": pool}
    assert_planned(x, w, b, **arguments)
    want = cmf.conv_act_pool2d_reference(x.double(), w.double(), b.double(), **arguments)
    dy = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    y, actual = gradients(cmf.conv_act_pool2d, (x, w, b), dy, backend="cuda", **arguments)
    doubles = [t.double() for t in (x, w, b)]
    _, wanted = gradients(cmf.conv_act_pool2d_reference, doubles, dy, **arguments)
    tolerances.assert_within(y, want, tolerances.VALUES[torch.float32])
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format)
    for gradient, expected in zip(actual, wanted, strict=True):
        tolerances.assert_within(gradient, expected, tolerances.GRADIENTS[torch.float32])


def test_only_what_is_asked_for() -> None:
    """Any subset of the gradients, with and without a bias."""
    x, w, b = tensors(in_channels=3, out_channels=6)
    for bias in (None, b):
        leaves = [t.clone().requires_grad_() for t in (x, w) if t is not None]
        y = cmf.conv_act_pool2d(*leaves, bias, backend="cuda")
        whole = torch.autograd.grad(y.sum(), leaves)
        for i, tensor in enumerate((x, w)):
            inputs = [x, w]
            inputs[i] = tensor.clone().requires_grad_()
            y = cmf.conv_act_pool2d(*inputs, bias, backend="cuda")
            (gradient,) = torch.autograd.grad(y.sum(), inputs[i])
            assert torch.equal(gradient, whole[i])


def test_second_derivatives() -> None:
    x, w, b = (t.requires_grad_() for t in tensors(in_channels=3, out_channels=4, size=(6, 6)))
    assert_planned(x, w, b, activation="tanh")
    results = []
    for function, named in (
        (cmf.conv_act_pool2d, {"backend": "cuda"}),
        (cmf.conv_act_pool2d_reference, {}),
    ):
        y = function(x, w, b, activation="tanh", **named)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), (w, b)))
    for actual, expected in zip(*results, strict=True):
        tolerances.assert_within(actual, expected, 1e-4)


def test_one_image_without_a_batch() -> None:
    x, w, b = tensors(in_channels=8, out_channels=4)
    assert_planned(x[0], w, b)
    y = cmf.conv_act_pool2d(x, w, b, backend="cuda")
    assert torch.equal(cmf.conv_act_pool2d(x[0], w, b, backend="cuda"), y[0])


def test_autocast() -> None:
    x, w, b = tensors(in_channels=8, out_channels=4)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    with torch.autocast(DEVICE, torch.bfloat16):
        assert_planned(*leaves)
        y = cmf.conv_act_pool2d(*leaves, backend="cuda")
    assert y.dtype == torch.bfloat16
    want = cmf.conv_act_pool2d_reference(*(t.double() for t in leaves))
    tolerances.assert_within(y, want, tolerances.VALUES[torch.bfloat16])
    for gradient in torch.autograd.grad(y.float().sum(), leaves):
        assert gradient.dtype == torch.float32


def test_what_it_refuses_is_said() -> None:
    x, w, b = tensors(in_channels=8, out_channels=4)
    text = str(cmf.explain(x, w, b, backend="cuda", pool_size=3))
    assert "not algorithm implicit_gemm: pools windows of 2x2" in text
