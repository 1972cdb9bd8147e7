"""Fully connected layers of few rows against float64, and fuse's use of them."""

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
from crossmedia_fast.ops import linear as module
from crossmedia_fast.ops import memory
from crossmedia_fast.ops.linear import linear

from .conv_native_launch import threads

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

# sums of chunks of 1024 products, in vectors: the rounding of a few additions
TOLERANCE = 2e-6


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Every output within the tolerance of its products' magnitudes."""
    want = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    scale = x.double().abs() @ weight.double().abs().t() + 1e-30
    if bias is not None:
        scale += bias.double().abs()
    assert ((actual.double() - want).abs() <= TOLERANCE * scale).all()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any size are ours."""
    monkeypatch.setattr(module, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr("crossmedia_fast.fusion.linear.LEAST_WEIGHTS", 0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rows", range(1, 17))
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (3, 5), (16, 4), (37, 9), (1024, 7), (1030, 8), (2500, 33)]
)
def test_values(rows: int, inputs: int, outputs: int) -> None:
    x, weight = numbers(rows, inputs), numbers(outputs, inputs, seed=1)
    for bias in (None, numbers(outputs, seed=2)):
        found = []
        for count in (1, 2, 3):
            with threads(count):
                found.append(linear(x, weight, bias))
        close(found[0], x, weight, bias)
        assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.usefixtures("small")
def test_what_is_not_finite_stays_in_its_row() -> None:
    x, weight = numbers(5, 40), numbers(9, 40, seed=1)
    x[1, 3], x[3, 39], weight[8, 0] = float("nan"), float("inf"), -float("inf")
    want = F.linear(x.double(), weight.double())
    torch.testing.assert_close(
        linear(x, weight, None).double(), want, equal_nan=True, rtol=1e-5, atol=1e-5
    )


@pytest.mark.usefixtures("small")
def test_nothing_beside_the_result_is_written() -> None:
    memory = torch.full((4 * 7 + 64,), 7.0)
    x, weight = numbers(4, 33), numbers(7, 33, seed=1)
    native.module.linear_forward(
        x.data_ptr(), weight.data_ptr(), 0, memory.data_ptr() + 128, 4, 33, 7, 2
    )
    assert (memory[:32] == 7).all()
    assert (memory[32 + 28 :] == 7).all()
    close(memory[32 : 32 + 28].view(4, 7), x, weight, None)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (37, 9), (300, 150), (4096, 1100)])
def test_weight_gradients(rows: int, inputs: int, outputs: int) -> None:
    x, weight = numbers(rows, inputs), numbers(outputs, inputs, seed=1)
    dy = numbers(rows, outputs, seed=2)
    want = dy.double().t() @ x.double()
    scale = dy.double().abs().t() @ x.double().abs() + 1e-30
    found = []
    for count in (1, 2, 3):
        weight.grad = None
        with threads(count):
            linear(x, weight.requires_grad_(), None).backward(dy)
            assert weight.grad is not None
            assert ((weight.grad.double() - want).abs() <= TOLERANCE * scale).all()
            if rows > module._MOST_GRADIENT_ROWS:  # PyTorch's, whose bits depend on its threads
                assert torch.equal(weight.grad, dy.t().mm(x))
            else:
                found.append(weight.grad)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_native_calls_check() -> None:
    x = numbers(64)
    p = x.data_ptr()
    call = native.module.linear_forward
    for sizes in ((17, 2, 2), (-1, 2, 2), (2, -1, 2), (2, 1 << 40, 1 << 40), (2, 2, 1 << 62)):
        with pytest.raises(ValueError, match="rows"):
            call(p, p, 0, p, *sizes, 1)
    for pointers in ((0, p, 0, p), (p, 0, 0, p), (p, p, 0, 0), (p + 1, p, 0, p)):
        with pytest.raises(ValueError, match="must"):
            call(*pointers, 2, 2, 2, 1)
    with pytest.raises(ValueError, match="threads"):
        call(p, p, 0, p, 2, 2, 2, 0)
    gradient = native.module.linear_weight_gradient
    for sizes in ((17, 2, 2), (0, 2, 2), (2, 1 << 40, 1 << 40)):
        with pytest.raises(ValueError, match="rows"):
            gradient(p, p, p, *sizes, 1)
    for three in ((0, p, p), (p, 0, p), (p, p, 0), (p, p + 2, p)):
        with pytest.raises(ValueError, match="must"):
            gradient(*three, 2, 2, 2, 1)
    call(0, p, 0, 0, 0, 5, 5, 1)
    for bytes in (-1, 1 << 62):
        with pytest.raises((ValueError, TypeError)):
            native.module.advise_huge_pages((1 << 64) - 4096, bytes)


def test_memory_of_huge_pages_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[int] = []
    advise = native.module.advise_huge_pages

    class Module:
        @staticmethod
        def advise_huge_pages(data: int, size: int) -> bool:
            advised.append(size)
            return advise(data, size)

    monkeypatch.setattr(memory.native, "module", Module)
    like = torch.empty(0)
    assert memory.fresh(like, (5, 3), (3, 1)).stride() == (3, 1)
    assert not advised
    large = memory.fresh(like, (9 << 20, 1), (1, 1))
    assert advised == [36 << 20]
    assert (large.fill_(3) == 3).all()
    half = memory.fresh(like, (17 << 20,), (1,), torch.bfloat16)
    assert half.dtype is torch.bfloat16
    assert len(advised) == 2


def network(inputs: int = 48, outputs: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 5))


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each layer that was ours."""
    seen: list[int] = []
    run = linear

    def record(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.shape[0])
        return run(x, *rest)

    monkeypatch.setattr("crossmedia_fast.fusion.linear.linear", record)
    return seen


@pytest.mark.usefixtures("small")
def test_gradients(ours: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 0)
    plain = network()
    fused = cmf.fuse(copy.deepcopy(plain))
    gradients = []
    for model in (fused, plain.double()):
        x = numbers(6, 48).to(next(model.parameters()).dtype).requires_grad_()
        model(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    assert ours == [6, 6]
    for actual, want in zip(*gradients, strict=True):
        torch.testing.assert_close(actual.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small")
def test_gradients_of_gradients() -> None:
    x, weight, bias = numbers(3, 8), numbers(4, 8, seed=1), numbers(4, seed=2)
    x, weight, bias = (t.requires_grad_() for t in (x, weight, bias))
    penalties = []
    for function in (linear, F.linear):
        (dx,) = torch.autograd.grad(function(x, weight, bias).tanh().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(dx.square().sum(), (x, weight, bias)))
    for actual, want in zip(*penalties, strict=True):
        torch.testing.assert_close(actual, want)


@pytest.mark.usefixtures("small")
def test_frozen_parameters_have_no_gradients() -> None:
    fused = cmf.fuse(network())
    fused[0].weight.requires_grad_(False)
    fused[2].bias.requires_grad_(False)
    fused(numbers(4, 48)).sum().backward()
    assert fused[0].weight.grad is None
    assert fused[2].bias.grad is None
    assert fused[0].bias.grad is not None


OTHERS: dict[str, Callable[[Any], Any]] = {
    "hook": lambda m: m[0].register_forward_hook(lambda *_: torch.ones(4, 24)),
    "forward": lambda m: m[0].__setattr__("forward", lambda x: x[:, :24]),
    "another layer": lambda m: m.__setitem__(0, nn.Linear(48, 24)),
    "a subclass": lambda m: m[0].__setattr__("__class__", type("Other", (nn.Linear,), {})),
    "strided": lambda m: m[0].__setattr__("weight", nn.Parameter(torch.randn(48, 24).t())),
    "half": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("change", OTHERS)
def test_what_is_no_longer_so_is_seen(change: str) -> None:
    plain = network()
    fused = cmf.fuse(copy.deepcopy(plain))
    x = numbers(4, 48)
    for model in (fused, plain):
        torch.manual_seed(3)
        OTHERS[change](model)
    x = x.to(plain[2].weight.dtype)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small")
def test_other_inputs_are_pytorchs(ours: list[int]) -> None:
    plain = network()
    fused = cmf.fuse(copy.deepcopy(plain))
    for x in (
        numbers(0, 48),
        numbers(17, 48),
        numbers(2, 3, 48),
        numbers(48),
        numbers(4, 96)[:, ::2],
        numbers(48, 4).t(),
    ):
        torch.testing.assert_close(fused(x), plain(x))
    assert 0 not in ours
    assert 17 not in ours
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(numbers(4, 48)).dtype is torch.bfloat16
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fused(numbers(4, 47))
    jacobian = torch.func.jacrev(fused)(numbers(4, 48))
    torch.testing.assert_close(jacobian, torch.func.jacrev(plain)(numbers(4, 48)))


@pytest.mark.usefixtures("small")
def test_copies_and_modes(ours: list[int]) -> None:
    plain = network()
    fused = cmf.fuse(copy.deepcopy(plain))
    for model in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        ours.clear()
        torch.testing.assert_close(model(numbers(4, 48)), plain(numbers(4, 48)))
        assert ours
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert cmf.fusion_report(fused).linears == (("0", "Linear"), ("2", "Linear"))
    assert "fully connected layers" in str(cmf.fusion_report(fused))
    ours.clear()
    with cmf.use_backend("reference"):
        fused(numbers(4, 48))
    assert not ours


def test_small_layers_are_left_alone(ours: list[int]) -> None:
    fused = cmf.fuse(network())
    fused(numbers(4, 48))
    assert not ours
