"""The calls of a fused forward are looked at together, and whatever changes is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.fusion.trust import TRUST, Watched

from .fuse_cases import TOLERANCE, pair
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.scale = 2.0
        self.doubled = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x))) * self.scale
        return y + y if self.doubled else y  # type: ignore[no-any-return]


class Network(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.ModuleList(Block(16) for _ in range(blocks))
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call, whether its own guard was asked."""
    found: list[bool] = []
    holds = Watched.holds

    class Asked:
        def __init__(self, guard: Any) -> None:
            self.guard = guard

    def record(self: Watched, modules: tuple[Any, ...]) -> bool:
        asked: list[int] = []
        guard = self.guard

        class Guard:
            def holds(self, modules: tuple[Any, ...]) -> bool:
                asked.append(1)
                return bool(guard.holds(modules))

        self.guard = Guard()
        try:
            return holds(self, modules)
        finally:
            self.guard = guard
            found.append(bool(asked))

    monkeypatch.setattr(Watched, "holds", record)
    return found


def image(size: int = 20, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, 3, size, size, generator=generator)


@torch.no_grad()
def same(fused: nn.Module, plain: nn.Module, x: Tensor | None = None) -> Tensor:
    x = image() if x is None else x
    y = fused(x)
    assert_within(y, plain(x), TOLERANCE)
    return y  # type: ignore[no-any-return]


def trusted(model: nn.Module) -> bool:
    trust = model.__dict__.get(TRUST)
    return trust is not None and trust.known is not None


def settled(model: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    fused, plain = pair(Network() if model is None else model)
    results = [same(fused, plain) for _ in range(4)]
    assert all(torch.equal(results[0], other) for other in results)
    assert trusted(fused)
    return fused, plain


def test_each_call_is_trusted_from_the_third_run_on(looks: list[bool]) -> None:
    fused, plain = pair(Network())
    for run in range(4):
        looks.clear()
        same(fused, plain)
        if run == 1:
            assert looks == [True] * 3
        elif run > 2:
            assert looks == [False] * 3


def _weights(model: Any) -> None:
    model.blocks[1].conv.weight.data.neg_()


def _swapped_data(model: Any) -> None:
    model.blocks[1].conv.weight.data = -model.blocks[1].conv.weight.data


def _layout(model: Any) -> None:
    weight = model.blocks[0].conv.weight
    weight.data = weight.data.transpose(2, 3)


def _parameter(model: Any) -> None:
    model.stem[0].bias = nn.Parameter(torch.linspace(-1, 1, 16))


def _statistics(model: Any) -> None:
    model.blocks[0].bn.running_mean.add_(0.5)


def _epsilon(model: Any) -> None:
    model.blocks[0].bn.eps = 0.5


def _layer(model: Any) -> None:
    torch.manual_seed(1)
    model.blocks[0].conv = nn.Conv2d(16, 16, 3, padding=1)


def _activation(model: Any) -> None:
    model.blocks[1].relu = nn.Tanh()


def _leaf(model: Any) -> None:
    torch.manual_seed(2)
    model.head = nn.Linear(16, 7)


def _longer(model: Any) -> None:
    torch.manual_seed(3)
    model.blocks.append(Block(16).eval())


def _turned(model: Any) -> None:
    first = model.blocks._modules.pop("0")
    model.blocks._modules["0"] = first


def _reordered(model: Any) -> None:
    pool = model.stem._modules.pop("2")
    relu = model.stem._modules.pop("1")
    model.stem._modules["2"], model.stem._modules["1"] = pool, relu
    model.stem[0].weight.data.abs_()


def _attribute(model: Any) -> None:
    model.blocks[0].doubled = True


def _number(model: Any) -> None:
    model.blocks[1].scale = -1.0


def _hook_on_a_layer(model: Any) -> None:
    model.blocks[0].relu.register_forward_hook(lambda module, given, result: result + 1)


def _hook_on_a_block(model: Any) -> None:
    model.blocks[1].register_forward_pre_hook(lambda module, given: (given[0] * 2,))


def _hook_on_what_is_called(model: Any) -> None:
    model.dropout.register_forward_hook(lambda module, given, result: result * 3)


def _own_forward(model: Any) -> None:
    model.blocks[0].forward = lambda x: x * 0


def _class(model: Any) -> None:
    class Other(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model.blocks[0].conv.__class__ = Other


def _dictionary(model: Any) -> None:
    model.blocks[0].conv.__dict__["_parameters"] = {
        "weight": nn.Parameter(torch.ones(16, 16, 3, 3)),
        "bias": None,
    }


CHANGES = [
    *(_weights, _swapped_data, _layout, _parameter, _statistics, _epsilon, _layer, _activation),
    *(_leaf, _longer, _turned, _reordered, _attribute, _number, _hook_on_a_layer),
    *(_hook_on_a_block, _hook_on_what_is_called, _own_forward, _class, _dictionary),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_seen(change: Callable[[Any], None]) -> None:
    fused, plain = settled()
    before = same(fused, plain)
    for model in (fused, plain):
        with torch.no_grad():
            change(model)
    for _ in range(4):
        after = same(fused, plain)
    assert change in (_turned, _reordered) or not torch.equal(before, after)


def test_modes_and_settings_are_seen() -> None:
    fused, plain = settled()
    for model in (fused, plain):
        model.blocks[0].bn.train()  # type: ignore[index]
    same(fused, plain)
    for model in (fused, plain):
        model.eval()
    for _ in range(4):
        same(fused, plain)
    with cmf.use_backend("reference"):
        same(fused, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert fused(image()).dtype is plain(image()).dtype is torch.bfloat16
    for precision in ("highest", "medium", "high"):
        with cmf.conv_precision(precision):
            for _ in range(4):
                same(fused, plain)
    x = image().requires_grad_()
    fused(x).sum().backward()
    assert x.grad is not None
    same(fused, plain)


def test_shapes_in_turns_are_all_trusted(looks: list[bool]) -> None:
    fused, plain = pair(Network())
    inputs = [image(20), image(21), image(20, 5)]
    for _ in range(6):
        for x in inputs:
            same(fused, plain, x)
    looks.clear()
    for x in inputs:
        same(fused, plain, x)
    assert len(looks) == 9
    assert True not in looks


class Meddler(nn.Module):
    """Changes another module's weights: as no layer of PyTorch's does."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        for other in self.others:
            other.conv.weight.data.neg_()
        return x


def test_a_module_that_changes_others_is_seen() -> None:
    class Meddled(Network):
        def __init__(self) -> None:
            super().__init__()
            self.meddler = Meddler()

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks[0](self.stem(x))
            x = self.blocks[1](self.meddler(x))
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    fused, plain = pair(Meddled())
    for model in (fused, plain):
        model.meddler.others.append(model.blocks[1])  # type: ignore[union-attr,operator]
    for _ in range(6):
        same(fused, plain)


def test_a_list_that_a_forward_reads_is_seen() -> None:
    class Listed(Network):
        def __init__(self) -> None:
            super().__init__()
            self.factors = [1.0, 2.0]

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block, factor in zip(self.blocks, self.factors, strict=True):
                x = F.relu(block(x) * factor)
            return x

    fused, plain = pair(Listed())
    for _ in range(4):
        same(fused, plain)
    for model in (fused, plain):
        model.factors[1] = -3.0  # type: ignore[index,operator]
    same(fused, plain)


def test_an_error_inside_leaves_nothing_behind(looks: list[bool]) -> None:
    fused, plain = settled()
    with pytest.raises(ValueError, match="channels"):
        fused(torch.randn(2, 4, 20, 20))
    looks.clear()
    other, _ = pair(Network())
    with torch.no_grad():
        other(image())
        other(image())
    assert looks == [True] * 3
    same(fused, plain)
