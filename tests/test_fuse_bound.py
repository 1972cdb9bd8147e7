"""Calls that are bound to what they were made of: used again, and never when any of it changed."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.fusion.bound import BoundCalls

from .fuse_cases import TOLERANCE
from .fuse_models import settle
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")

LAST = torch.channels_last
Models = tuple[nn.Sequential, nn.Sequential]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0))


def network(bias: bool = True, norm: bool = True, kernel: int = 3) -> Models:
    torch.manual_seed(1)
    conv = nn.Conv2d(8, 32, kernel, padding=kernel // 2, bias=bias)
    layers = [conv, *([nn.BatchNorm2d(32)] if norm else []), nn.LeakyReLU(0.2), nn.MaxPool2d(2)]
    model = settle(nn.Sequential(*layers)).eval()
    return cmf.fuse(copy.deepcopy(model)), model


def same(models: Models, x: Tensor) -> None:
    fused, model = models
    with torch.no_grad():
        assert_within(fused(x), model(x), TOLERANCE)


def settled(models: Models, x: Tensor, again: list[bool]) -> None:
    """The call is bound, and right."""
    same(models, x)
    again.clear()
    same(models, x)
    assert again == [True]
    again.clear()


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "bias"])
@pytest.mark.parametrize("kernel", [1, 3], ids=["1x1", "3x3"])
@pytest.mark.parametrize("format", [torch.contiguous_format, LAST], ids=["planes", "last"])
@pytest.mark.parametrize("batch", [0, 1, 16])
def test_the_same_bits_as_the_first_call(
    norm: bool, bias: bool, kernel: int, format: torch.memory_format, batch: int
) -> None:
    fused, _ = network(bias, norm, kernel)
    fused.to(memory_format=format)
    x = torch.randn(batch, 8, 20, 20).contiguous(memory_format=format)
    with torch.inference_mode():
        first = fused(x)
        for _ in range(2):
            y = fused(x)
            assert torch.equal(y, first)
            assert y.stride() == first.stride()
        assert y.data_ptr() != first.data_ptr() or not batch


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "weight in place": lambda m: m[0].weight.data.mul_(1.5),
    "bias in place": lambda m: m[0].bias.data.add_(1),
    "one element": lambda m: m[0].weight.detach().view(-1)[7].add_(1),
    "weight's storage": lambda m: setattr(m[0].weight, "data", m[0].weight.data * 2),
    "weight's strides": lambda m: setattr(m[0].weight, "data", m[0].weight.data.transpose(2, 3)),
    "weight's format": lambda m: m.to(memory_format=LAST),
    "weight replaced": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.data + 1)),
    "bias removed": lambda m: setattr(m[0], "bias", None),
    "scale": lambda m: m[1].weight.data.neg_(),
    "shift": lambda m: m[1].bias.data.add_(1),
    "mean": lambda m: m[1].running_mean.add_(0.5),
    "variance": lambda m: setattr(m[1], "running_var", m[1].running_var * 2),
    "no statistics": lambda m: (
        setattr(m[1], "running_mean", None),
        setattr(m[1], "running_var", None),
    ),
    "eps": lambda m: setattr(m[1], "eps", 0.1),
    "norm trains": lambda m: m[1].train(),
    "norm replaced": lambda m: m.__setitem__(1, nn.BatchNorm2d(32).eval()),
    "no norm": lambda m: m.__setitem__(1, nn.Identity()),
    "stride": lambda m: setattr(m[0], "stride", (2, 2)),
    "padding": lambda m: setattr(m[0], "padding", (0, 0)),
    "padding mode": lambda m: setattr(m[0], "padding_mode", "reflect"),
    "dilation": lambda m: setattr(m[0], "dilation", (2, 2)),
    "slope": lambda m: setattr(m[2], "negative_slope", 0.5),
    "pool": lambda m: setattr(m[3], "kernel_size", 3),
    "activation": lambda m: m.__setitem__(2, nn.Sigmoid()),
    "hook": lambda m: m[0].register_forward_hook(lambda *a: a[2] * 2),
    "pre-hook": lambda m: m[2].register_forward_pre_hook(lambda *a: (a[1][0] * -1,)),
    "forward replaced": lambda m: setattr(m[3], "forward", lambda y: y[..., ::2, ::2]),
    "its dict replaced": lambda m: setattr(
        m[2], "__dict__", {**m[2].__dict__, "negative_slope": 0.7}
    ),
    "copied": lambda m: m.load_state_dict({k: v + 0.5 for k, v in m.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str, x: Tensor, again: list[bool]) -> None:
    models = network()
    settled(models, x, again)
    with torch.no_grad():
        before = models[1](x)
        for model in models:
            CHANGES[change](model)
        if change != "weight's format":
            assert models[1](x).shape != before.shape or not torch.equal(models[1](x), before)
    same(models, x)
    assert True not in again
    same(models, x)  # bound anew, or never again


@pytest.mark.parametrize("change", ["weight in place", "bias in place", "weight's storage"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("format", [torch.contiguous_format, LAST], ids=["planes", "last"])
def test_unfolded_weights_may_change(
    change: str, kernel: int, format: torch.memory_format, again: list[bool]
) -> None:
    models = network(norm=False, kernel=kernel)
    x = torch.randn(4, 8, 20, 20).contiguous(memory_format=format)
    for model in models:
        model.to(memory_format=format)
    settled(models, x, again)
    for model in models:
        CHANGES[change](model)
    same(models, x)


def test_other_inputs(x: Tensor, again: list[bool]) -> None:
    models = network()
    settled(models, x, again)
    same(models, x[:1])
    same(models, x[..., 1:])
    assert again == []  # another shape is another call
    same(models, x.contiguous(memory_format=LAST))
    assert again == [False]
    same(models, torch.cat([x, x], 3)[..., ::2])  # strides of nobody's format
    settled(network(norm=False), x[0], again)
    settled(models, x, again)
    doubled = (models[0].double(), models[1].double())
    again.clear()
    same(doubled, x.double())
    assert again == [False]


def test_modes_of_the_process(x: Tensor, again: list[bool]) -> None:
    models = network()
    settled(models, x, again)
    fused, model = models
    y = fused(x)
    assert y.requires_grad  # with gradients no call is bound
    assert again == []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(x).dtype == model(x).dtype
    assert again == [False]
    with torch.no_grad(), cmf.conv_precision("highest"):
        assert_within(fused(x), model(x), TOLERANCE)
    with torch.no_grad():
        with cmf.use_backend("reference"):
            again.clear()
            assert_within(fused(x), model(x), TOLERANCE)
            assert again == [False]
        settled(models, x, again)
        mapped = torch.func.vmap(lambda one: fused(one[None])[0])(x)
        assert_within(mapped, model(x), TOLERANCE)
        again.clear()
        _, tangent = torch.func.jvp(fused, (x,), (torch.ones_like(x),))
        assert True not in again
        assert_within(tangent, torch.func.jvp(model, (x,), (torch.ones_like(x),))[1], TOLERANCE)


def test_copies_have_calls_of_their_own(x: Tensor, again: list[bool]) -> None:
    fused, model = network()
    settled((fused, model), x, again)
    twin, twin_model = copy.deepcopy(fused), copy.deepcopy(model)
    stored = pickle.loads(pickle.dumps(fused))
    for m in (twin, twin_model):
        m[0].weight.data.neg_()
    for _ in range(2):  # in turn
        same((twin, twin_model), x)
        same((fused, model), x)
        same((stored, model), x)


def test_weights_shared_by_two_convolutions(x: Tensor) -> None:
    models = []
    torch.manual_seed(2)
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh()).eval()
    models = cmf.fuse(copy.deepcopy(model)), model
    for _ in range(3):
        same(models, x)
    for m in models:
        m[0].weight.data.mul_(-1)
    same(models, x)


@pytest.mark.parametrize("cycle", [False, True], ids=["tree", "cycle"])
def test_bound_calls_keep_nothing_alive(cycle: bool, x: Tensor, again: list[bool]) -> None:
    fused, model = network()
    settled((fused, model), x, again)
    if cycle:
        fused[0].__dict__["parent"] = fused
        settled((fused, model), x, again)
    else:
        twin = copy.deepcopy(fused)  # shares the program, which holds the calls
        same((twin, model), x)
    gone = [weakref.ref(fused[0]), weakref.ref(fused[0].weight)]
    del fused
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_few_calls_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    models = network()
    monkeypatch.setattr(BoundCalls, "MOST", 3)
    for size in (*range(8, 16), *range(8, 16)):
        same(models, torch.randn(1, 8, size, size))


def test_the_guard_refuses_what_it_does_not_know() -> None:
    guard = native.module.StateGuard  # type: ignore[union-attr]
    with pytest.raises(TypeError):
        guard(((1, int, None),), ())
    with pytest.raises(TypeError):
        guard((), (({}, 1, "is", None),))
    with pytest.raises(ValueError, match="kind must be"):
        guard((), (({}, "a", "was", None),))
    assert guard((), ()).holds(())
    assert not guard((), ()).holds((1,))
    assert not guard((), (({}, "a", "is", None),)).holds(())
    assert not guard((), (({"a": 0}, "a", "empty", None),)).holds(())  # 0 is no dict
    assert guard((), (({"a": {}}, "a", "empty", None),)).holds(())


def test_the_guard_knows_the_order_of_keys() -> None:
    guard = native.module.StateGuard  # type: ignore[union-attr]
    children: dict[str, Any] = {"a": 1, "b": 2}
    watch = guard((), ((children, "", "keys", ("a", "b")),))
    assert watch.holds(())
    assert watch.records == ((children, "", "keys", ("a", "b")),)
    assert watch.owners == ()
    children["a"] = 3
    assert watch.holds(())
    children["b"] = children.pop("b")
    assert watch.holds(())
    children["a"] = children.pop("a")  # behind b
    assert not watch.holds(())
    children.pop("a")
    assert not watch.holds(())
    children.clear()
    children.update({"a": 1, 2: 2})  # type: ignore[dict-item]
    assert not watch.holds(())
    for wrong in (None, "ab", ["a"], (1,)):
        with pytest.raises(TypeError):
            guard((), (({}, "", "keys", wrong),))
