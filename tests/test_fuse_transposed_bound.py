"""Bound calls of transposed convolutions, whose transformed weights are kept: used again, and never
when any of what they were made of changed."""

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
from crossmedia_fast.ops.conv_act_pool import transposed

from .fuse_models import settle
from .tolerances import WINOGRAD, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")

LAST = torch.channels_last
FORMATS = pytest.mark.parametrize("format", [torch.contiguous_format, LAST], ids=["planes", "last"])
Models = tuple[nn.Sequential, nn.Sequential]
# the algorithm: C, K, kernel, stride, padding, H, W
LAYERS = {
    "winograd": (16, 24, 4, 2, 1, 9, 8),
    "few_channels": (16, 3, 4, 2, 1, 9, 8),
    "patches": (16, 24, 2, 2, 0, 9, 8),
    "one pixel": (16, 24, 4, 2, 0, 1, 1),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)
# The model's own values are float32's too, and a sigmoid's largest is 1 where its sums reach 6, of
# whose error it leaves a quarter.
TOLERANCE = 2 * WINOGRAD[4]


@pytest.fixture(autouse=True)
def gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' problems are small: PyTorch may be faster."""
    monkeypatch.setattr(transposed, "LEAST_GAIN", 0.0)


def network(kind: str, format: torch.memory_format, norm: bool = True) -> Models:
    C, K, kernel, stride, padding = LAYERS[kind][:5]
    torch.manual_seed(1)
    conv = nn.ConvTranspose2d(C, K, kernel, stride, padding)
    layers = [conv, *([nn.BatchNorm2d(K)] if norm else []), nn.LeakyReLU(0.2)]
    model = settle(nn.Sequential(*layers)).eval().to(memory_format=format)
    return cmf.fuse(copy.deepcopy(model)), model


def images(kind: str, format: torch.memory_format, batch: int = 3) -> Tensor:
    C, *_, H, W = LAYERS[kind]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, C, H, W, generator=generator).contiguous(memory_format=format)


def same(models: Models, x: Tensor) -> None:
    fused, model = models
    with torch.no_grad():
        y, expected = fused(x), model(x)
    assert_within(y, expected, TOLERANCE)
    assert y.stride() == expected.stride()


def settled(models: Models, x: Tensor, again: list[bool]) -> None:
    """The call is bound, and right."""
    same(models, x)
    again.clear()
    same(models, x)
    assert again == [True]
    again.clear()


@KINDS
@FORMATS
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("batch", [1, 16])
def test_the_same_bits_as_the_first_call(
    kind: str, format: torch.memory_format, norm: bool, batch: int, again: list[bool]
) -> None:
    fused, _ = network(kind, format, norm)
    x = images(kind, format, batch)
    with torch.inference_mode():
        first = fused(x)
        for _ in range(2):
            y = fused(x)
            assert torch.equal(y, first)
            assert y.stride() == first.stride()
        assert y.data_ptr() != first.data_ptr()
    assert again == [True, True]


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "weight by data": lambda m: m[0].weight.data.mul_(1.5),
    "weight in place": lambda m: m[0].weight.detach().copy_(m[0].weight.detach() * 1.5),
    "bias by data": lambda m: m[0].bias.data.add_(1),
    "one element": lambda m: m[0].weight.detach()[7, 1, 1, 0].add_(1),
    "weight's storage": lambda m: setattr(m[0].weight, "data", m[0].weight.data * 2),
    "weight's strides": lambda m: setattr(m[0].weight, "data", m[0].weight.data.transpose(2, 3)),
    "weight replaced": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.data + 1)),
    "bias removed": lambda m: setattr(m[0], "bias", None),
    "copied": lambda m: m.load_state_dict({k: v + 0.5 for k, v in m.state_dict().items()}),
    "optimised": lambda m: optimise(m),
    "output_padding": lambda m: setattr(m[0], "output_padding", (1, 1)),
    "dilation": lambda m: setattr(m[0], "dilation", (2, 2)),
    "slope": lambda m: setattr(m[-1], "negative_slope", 0.5),
    "activation": lambda m: m.__setitem__(-1, nn.Sigmoid()),
    "hook": lambda m: m[0].register_forward_hook(lambda *a: a[2] * 2),
    "forward replaced": lambda m: setattr(m[-1], "forward", lambda y: y[..., ::2]),
}
OF_NORMS: dict[str, Callable[[nn.Sequential], Any]] = {
    "scale": lambda m: m[1].weight.data.neg_(),
    "mean": lambda m: m[1].running_mean.add_(0.5),
    "variance": lambda m: setattr(m[1], "running_var", m[1].running_var * 2),
    "eps": lambda m: setattr(m[1], "eps", 0.1),
    "norm trains": lambda m: m[1].train(),
    "no norm": lambda m: m.__setitem__(1, nn.Identity()),
}


def optimise(model: nn.Sequential) -> None:
    with torch.enable_grad():
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()


@KINDS
@FORMATS
@pytest.mark.parametrize(
    ("change", "norm"),
    [*((c, False) for c in CHANGES), *((c, True) for c in (*CHANGES, *OF_NORMS))],
)
def test_a_change_is_noticed(
    change: str, kind: str, format: torch.memory_format, norm: bool, again: list[bool]
) -> None:
    models = network(kind, format, norm)
    x = images(kind, format)
    settled(models, x, again)
    with torch.no_grad():
        before = models[1](x)
        for model in models:
            {**CHANGES, **OF_NORMS}[change](model)
        assert models[1](x).shape != before.shape or not torch.equal(models[1](x), before)
    same(models, x)
    assert True not in again
    same(models, x)  # bound anew, or never again


@KINDS
def test_other_inputs(kind: str, again: list[bool]) -> None:
    models = network(kind, torch.contiguous_format)
    x = images(kind, torch.contiguous_format)
    settled(models, x, again)
    same(models, x[:1])
    assert again == []  # another shape is another call
    same(models, x[:0])
    same(models, x.expand(3, *x.shape)[1])
    if kind != "one pixel":
        same(models, torch.cat([x, x], 3)[..., ::2])  # strides of nobody's format
        again.clear()
        same(models, x.contiguous(memory_format=LAST))
        assert again == [False]
    doubled = (models[0].double(), models[1].double())
    again.clear()
    same(doubled, x.double())
    assert again == [False]


@KINDS
@FORMATS
def test_an_input_that_is_not_dense(kind: str, format: torch.memory_format) -> None:
    models = network(kind, format)
    x = images(kind, format)
    sparse = torch.cat([x, x], 1)[:, ::2]
    for _ in range(3):
        same(models, sparse)


@KINDS
def test_modes_of_the_process(kind: str, again: list[bool]) -> None:
    models = network(kind, LAST)
    fused, model = models
    x = images(kind, LAST)
    settled(models, x, again)
    assert fused(x).requires_grad  # with gradients no call is bound
    assert again == []
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fused(x).dtype == model(x).dtype
        with cmf.use_backend("reference"):
            assert_within(fused(x), model(x), TOLERANCE)
        with cmf.conv_precision("highest"):
            assert_within(fused(x), model(x), TOLERANCE)
        assert again == [False] * 3
        settled(models, x, again)
        mapped = torch.func.vmap(lambda one: fused(one[None])[0])(x)
        assert_within(mapped, model(x), TOLERANCE)
        _, tangent = torch.func.jvp(fused, (x,), (torch.ones_like(x),))
        assert_within(tangent, torch.func.jvp(model, (x,), (torch.ones_like(x),))[1], TOLERANCE)
        assert True not in again


@KINDS
def test_copies_have_calls_of_their_own(kind: str, again: list[bool]) -> None:
    fused, model = network(kind, torch.contiguous_format)
    x = images(kind, torch.contiguous_format)
    settled((fused, model), x, again)
    twin, twin_model = copy.deepcopy(fused), copy.deepcopy(model)
    stored = pickle.loads(pickle.dumps(fused))
    for m in (twin, twin_model):
        m[0].weight.data.neg_()
    for _ in range(2):  # in turn
        same((twin, twin_model), x)
        same((fused, model), x)
        same((stored, model), x)


@KINDS
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_bound_calls_keep_nothing_alive(kind: str, norm: bool, again: list[bool]) -> None:
    fused, model = network(kind, torch.contiguous_format, norm)
    x = images(kind, torch.contiguous_format)
    settled((fused, model), x, again)
    twin = copy.deepcopy(fused)  # shares the program, which holds the calls
    same((twin, model), x)
    gone = [weakref.ref(fused[0]), weakref.ref(fused[0].weight)]
    del fused
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


@KINDS
def test_weights_are_transformed_once(
    kind: str, monkeypatch: pytest.MonkeyPatch, again: list[bool]
) -> None:
    models = network(kind, LAST, norm=False)
    x = images(kind, LAST)
    count = 0
    module: Any = native.module
    prepare = module.conv_transposed2d_prepare

    def counted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        prepare(*arguments)

    monkeypatch.setattr(module, "conv_transposed2d_prepare", counted)
    for _ in range(3):
        same(models, x)
    same(models, x[:2])  # another batch's are the same
    assert count == 1
    for model in models:
        model[0].weight.data.mul_(2)
    for _ in range(2):
        same(models, x)
    assert count == 2
    models[0](x)  # with gradients they change at every step
    assert count == 2
