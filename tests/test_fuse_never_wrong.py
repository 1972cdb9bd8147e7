"""What fuse must leave alone, or follow, as it finds it: each with its reason in the report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import crossmedia_fast as cmf

from .fuse_cases import TOLERANCE, OwnConv, chain, conv, rows, same, written
from .fuse_models import ConvBlock, settle
from .tolerances import assert_within


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


# ---- values used elsewhere


def test_a_convolution_used_twice_ends_the_match(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.pool(self.relu(y)), y

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    row = rows(fused)["conv"]
    assert row.pattern == "Conv2d"
    assert row.reason == "ends here: its result is used 2 times"
    same(fused, model, x)


def test_an_activation_used_twice_ends_the_match(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.relu(self.conv(x))
        return self.pool(y), y

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    row = rows(fused)["conv"]
    assert row.fused
    assert row.pattern == "Conv2d -> ReLU"
    assert "used 2 times" in row.reason
    same(fused, model, x)


def test_a_value_times_itself_is_not_a_constant(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.relu(y * y)

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].pattern == "Conv2d"
    same(fused, model, x)


def test_another_computed_value_is_not_a_constant(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].pattern == "Conv2d"
    assert "ends here: add takes another value" in rows(fused)["conv"].reason
    same(fused, model, x)


def test_a_shared_convolution_and_shared_layers(x: Tensor) -> None:
    """pytorch's own fuser has been wrong here: one convolution, two BatchNorms."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        return self.pool(torch.tanh(self.conv(y))) + self.pool(self.conv2(self.relu(self.conv(x))))

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].fused
    same(fused, model, x)
    shared = nn.Sequential(model.conv, nn.ReLU(), model.conv, nn.Tanh(), nn.MaxPool2d(2))
    same(cmf.fuse(copy.deepcopy(shared)), shared, x)


def test_tied_weights_stay_tied(x: Tensor) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU())
    model[2].weight = model[0].weight
    fused = cmf.fuse(copy.deepcopy(model))
    assert fused[2].weight is fused[0].weight
    same(fused, model, x)


class Adds(nn.Module):
    """Changes its argument, in a forward that can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        self.called = True
        x += 1
        return self.conv(x)


def _adds(self: Any, x: Tensor) -> Tensor:
    y = self.pool(self.relu(self.conv(x)))
    y += 1
    return y


def _adds_to_a_view(self: Any, x: Tensor) -> Tensor:
    y = torch.flatten(self.pool(self.relu(self.conv(x))), 1)
    y += 1
    return y


def _multiplies(self: Any, x: Tensor) -> Tensor:
    return F.leaky_relu(self.conv(x), 0.2).mul_(2)


def _drops(self: Any, x: Tensor) -> Tensor:
    return self.pool(self.drop(F.leaky_relu(self.conv(x), 0.2)))


@pytest.mark.parametrize("forward", [_adds, _adds_to_a_view, _multiplies, _drops])
def test_results_changed_in_place(forward: Callable[..., Any], x: Tensor) -> None:
    """Backward needs the fused result: who adds to it in place must still be able to."""
    model = written(forward)
    model.drop = nn.Dropout(0.0, inplace=True)
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].fused
    for m in model.train(), fused.train():
        m(x).square().sum().backward()
    assert_within(fused.conv.weight.grad, model.conv.weight.grad, 1e-5)
    same(fused, model, x)


def test_results_changed_in_place_by_others(x: Tensor) -> None:
    """By a module that is not looked into, or by whoever called the model."""
    chained = chain(nn.ReLU(), nn.MaxPool2d(2), Adds())
    fused = cmf.fuse(copy.deepcopy(chained))
    for m in chained, fused:
        m(x).square().sum().backward()
    assert_within(fused[0].weight.grad, chained[0].weight.grad, 1e-5)
    y = cmf.fuse(chain(nn.ReLU(), nn.MaxPool2d(2)))(x)
    y += 1
    y.sum().backward()


def test_the_input_changed_in_place_after_the_convolution(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x + 0
        y = self.conv(x)
        x.add_(1)
        return self.pool(self.relu(y)) + self.pool(x)

    model = written(forward)
    same(cmf.fuse(copy.deepcopy(model)), model, x)


def test_an_argument_changed_in_place(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x += 1
        return self.relu(self.conv(x))

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].fused
    a, b = x.clone(), x.clone()
    with torch.no_grad():
        assert_within(fused(a), model(b), TOLERANCE)
    assert torch.equal(a, b)
    assert torch.equal(a, x + 1)


# ---- hooks


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_are_called(place: int, when: str, x: Tensor) -> None:
    model = settle(chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))
    plain, fused = copy.deepcopy(model), model
    if when == "after":
        cmf.fuse(fused)
    seen: list[Tensor] = []
    handle = fused[place].register_forward_hook(lambda m, i, o: seen.append(o))
    if when == "before":
        cmf.fuse(fused)
        if place < 2:
            assert "hooks" in rows(fused)["0"].reason
    same(fused, plain, x)
    assert len(seen) == 1
    assert_within(seen[0], plain[: place + 1](x), TOLERANCE)
    handle.remove()
    same(fused, plain, x)
    assert len(seen) == 1


def test_hooks_that_replace_values(x: Tensor) -> None:
    model = chain(nn.ReLU(), nn.MaxPool2d(2))
    fused = cmf.fuse(copy.deepcopy(model))
    for m in (model, fused):
        m[1].register_forward_hook(lambda m, i, o: o * 3)
        m[0].register_forward_pre_hook(lambda m, i: (i[0] + 1,))
        m[2].register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused(a).sum().backward()
    model(b).sum().backward()
    assert_within(a.grad, b.grad, 1e-5)
    same(fused, model, x)


def test_hooks_on_a_block_inside_a_match(x: Tensor) -> None:
    model = settle(nn.Sequential(ConvBlock(4, 4, kernel_size=3), nn.MaxPool2d(2)))
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["0.conv"].pattern.endswith("MaxPool2d")
    seen: list[Tensor] = []
    fused[0].register_forward_hook(lambda m, i, o: seen.append(o))
    same(fused, model, x)
    assert len(seen) == 1
    assert_within(seen[0], model[0](x), TOLERANCE)


def test_hooks_for_all_modules(x: Tensor) -> None:
    model = chain(nn.ReLU(), nn.MaxPool2d(2))
    cmf.fuse(model)
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.append(type(m).__name__)
    )
    try:
        model(x)
    finally:
        hook.remove()
    assert seen == ["Conv2d", "ReLU", "MaxPool2d", "Sequential"]


# ---- convolutions of another kind


def _weight_norm(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def _replaced_forward(layer: nn.Conv2d) -> nn.Module:
    before = layer.forward
    layer.forward = lambda x: before(x) + 1  # type: ignore[method-assign]
    return layer


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda m, i: None)
    return layer


OTHER = {
    "subclass": (lambda: OwnConv(4, 4, 3), "is a OwnConv, a class of its own"),
    "parametrized": (lambda: _weight_norm(conv()), "has parametrizations"),
    "spectral": (lambda: parametrizations.spectral_norm(conv()), "has parametrizations"),
    "pruned": (lambda: prune.l1_unstructured(conv(), "weight", 0.5), "its weight is computed"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "is lazy: fuse again after its first call"),
    "hooked": (lambda: _hooked(conv()), "has hooks"),
    "replaced forward": (lambda: _replaced_forward(conv()), "forward is replaced"),
    "our own": (
        lambda: cmf.nn.ConvActPool2d(4, 4, 3),
        "is a ConvActPool2d, a class of its own",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_convolutions_left_alone(name: str, x: Tensor) -> None:
    make, reason = OTHER[name]
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU(), nn.MaxPool2d(2)).eval()
    cmf.fuse(model)
    row = rows(model)["0"]
    assert not row.fused
    assert reason in row.reason
    y = model(x)
    cmf.unfuse(model)
    assert torch.equal(y, model(x))


def test_a_convolution_parametrized_afterwards(x: Tensor) -> None:
    model = chain(nn.ReLU(), nn.MaxPool2d(2))
    fused = cmf.fuse(copy.deepcopy(model))
    for m in (model, fused):
        parametrizations.weight_norm(m[0])
    same(fused, model, x)


def test_a_lazy_model_after_its_first_call(x: Tensor) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    model(x)
    model.eval()
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["0"].fused
    same(fused, model, x)


def test_quantised_layers(x: Tensor) -> None:
    try:
        from torch.ao.nn.qat import Conv2d as QatConv
        from torch.ao.quantization import get_default_qat_qconfig
    except ImportError:
        pytest.skip("no torch.ao here")
    layer = QatConv(4, 4, 3, qconfig=get_default_qat_qconfig("x86"))
    model = nn.Sequential(layer, nn.ReLU()).eval()
    cmf.fuse(model)
    assert not rows(model)["0"].fused
    assert "class of its own" in rows(model)["0"].reason


def test_frozen_layers(x: Tensor) -> None:
    model = settle(chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    fused = cmf.fuse(copy.deepcopy(model))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused(a).sum().backward()
    model(b).sum().backward()
    assert_within(a.grad, b.grad, 1e-5)
    assert all(p.grad is None for p in fused.parameters())


# ---- what follows is of another kind


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        ([nn.MaxPool2d(2, dilation=2)], "Conv2d"),
        ([nn.MaxPool2d(2, return_indices=True)], "Conv2d"),
        ([nn.ReLU(), nn.AvgPool2d(2, divisor_override=3)], "Conv2d -> ReLU"),
        ([nn.Softplus(1.0, threshold=1.0)], "Conv2d"),
        ([nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()], "Conv2d"),
        ([nn.InstanceNorm2d(4), nn.ReLU()], "Conv2d"),
        ([nn.AvgPool2d(2), nn.ReLU()], "Conv2d -> AvgPool2d"),
        ([nn.MaxPool2d(2), nn.SiLU()], "Conv2d -> MaxPool2d"),
        ([nn.MaxPool2d(2), nn.LeakyReLU(-0.5)], "Conv2d -> MaxPool2d"),
        ([nn.ReLU(), nn.BatchNorm2d(4)], "Conv2d -> ReLU"),
        ([nn.ReLU(), nn.Tanh()], "Conv2d -> ReLU"),
        ([nn.MaxPool2d(2), nn.MaxPool2d(2)], "Conv2d -> MaxPool2d"),
        ([nn.PReLU(4)], "Conv2d"),
    ],
    ids=str,
)
def test_layers_that_end_a_match(layers: list[nn.Module], pattern: str, x: Tensor) -> None:
    model = settle(chain(*copy.deepcopy(layers)))
    fused = cmf.fuse(copy.deepcopy(model))
    row = rows(fused)["0"]
    assert row.pattern == pattern
    assert row.fused
    same(fused, model, x)


@pytest.mark.parametrize("number", [0, float("inf"), float("nan"), True])
def test_constants_that_can_not_be_folded(number: float, x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) * self.anything)

    model = written(forward)
    model.anything = number
    fused = cmf.fuse(copy.deepcopy(model))
    assert "can't be folded" in rows(fused)["conv"].reason
    same(fused, model, x)


def test_tensors_that_are_no_constant_a_channel(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) * self.mask)

    model = written(forward)
    model.register_buffer("mask", torch.rand(12, 12))
    same(cmf.fuse(copy.deepcopy(model)), model, x)
    model.mask = torch.rand(4, 1, 1, dtype=torch.float64)  # the product is float64 then
    same(cmf.fuse(copy.deepcopy(model)), model, x)
    model.mask = torch.rand(5, 1, 1, 1, 1)  # one more dimension
    same(cmf.fuse(copy.deepcopy(model)), model, x)


def test_folded_weights_that_overflow_are_not_used(x: Tensor) -> None:
    model = settle(chain(nn.BatchNorm2d(4, eps=0.0), nn.ReLU()))
    model[1].running_var.fill_(1e-44)
    model[1].weight.data.fill_(1e30)
    fused = cmf.fuse(copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(fused(x).isnan(), model(x).isnan())
