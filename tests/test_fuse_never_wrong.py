"""What fuse must leave alone, or follow: each with its reason in the report."""

from __future__ import annotations

import copy
import random
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import crossmedia_fast as cmf

from .fuse_models import VGG11BN, BasicBlock, ConvBlock, ResNet18, settle
from .tolerances import WINOGRAD, assert_within

TOLERANCE = WINOGRAD[5]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(), *layers)


def rows(model: nn.Module) -> dict[str, Any]:
    return {row.path: row for row in cmf.fusion_report(model)}


def same(fused: nn.Module, plain: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        actual, expected = fused(*inputs), plain(*inputs)
    for a, e in zip(
        actual if isinstance(actual, tuple) else (actual,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert_within(a, e, TOLERANCE)


class Written(nn.Module):
    """Two convolutions and what the tests' forwards use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.conv2 = conv()
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.block = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2))
        self.flag = True
        self.sizes = [1, 2]
        self.count = 0
        self.anything: Any = None


def written(forward: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    return settle(type("Written_", (Written,), {"forward": forward})())


# ---- values used elsewhere


def test_a_convolution_used_twice_is_not_fused(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.pool(self.relu(y)), y

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    row = rows(fused)["conv"]
    assert not row.fused
    assert row.reason == "its result is used 2 times"
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
    assert not rows(fused)["conv"].fused
    same(fused, model, x)


def test_another_computed_value_is_not_a_constant(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].reason == "add takes another value that the model computes"
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


def test_results_changed_in_place(x: Tensor) -> None:
    """Backward needs the pooled output: who adds to it in place must still be able to."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.pool(self.relu(self.conv(x)))
        y += 1
        return y

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert "changed in place" in rows(fused)["conv"].reason
    fused(x).sum().backward()
    same(fused, model, x)


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


class OwnConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


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
    assert row.fused == ("->" in pattern)
    assert row.reason or row.fused
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


# ---- modules that change after fuse


def test_batch_norm_in_training_is_pytorchs(x: Tensor) -> None:
    model = settle(chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))
    fused = cmf.fuse(copy.deepcopy(model))
    for training in (True, False, True, False):
        model.train(training)
        fused.train(training)
        assert torch.equal(model[1].running_mean, fused[1].running_mean)
        same(fused, model, x * 1.5)
    assert torch.equal(model[1].num_batches_tracked, fused[1].num_batches_tracked)


def test_folded_weights_are_never_stale(x: Tensor) -> None:
    model = settle(chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))
    fused = cmf.fuse(copy.deepcopy(model))
    same(fused, model, x)

    def both(change: Callable[[nn.Module], None]) -> None:
        for m in (model, fused):
            change(m)
        same(fused, model, x)

    both(lambda m: m[0].weight.data.mul_(1.5))  # moves no version counter
    both(lambda m: m[0].bias.data.add_(1.0))
    both(lambda m: m[1].running_mean.add_(0.5))
    both(lambda m: m[1].running_var.data.mul_(2.0))
    both(lambda m: m[1].weight.data.neg_())
    both(lambda m: m[1].bias.detach().add_(1.0))
    both(lambda m: setattr(m[1], "eps", 0.1))
    both(lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach() * 0.5)))
    both(lambda m: m[0].weight.data.numpy().__imul__(2))
    both(lambda m: m.load_state_dict({k: v * 0.9 for k, v in m.state_dict().items()}))
    both(lambda m: m.double().float() and None)


def test_layers_replaced_after_fuse(x: Tensor) -> None:
    model = settle(chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))
    fused = cmf.fuse(copy.deepcopy(model))

    def both(place: int, layer: Callable[[], nn.Module]) -> None:
        for m in (model, fused):
            torch.manual_seed(place)
            m[place] = layer().eval()
        same(fused, model, x)

    both(2, nn.GELU)
    both(3, lambda: nn.MaxPool2d(3))
    both(1, nn.Identity)
    both(0, lambda: nn.Conv2d(4, 4, 1))
    both(0, lambda: OwnConv(4, 4, 3))
    for m in (model, fused):
        m.append(nn.Tanh())
    same(fused, model, x)
    for m in (model, fused):
        del m[2]
    same(fused, model, x)


def test_layers_changed_after_fuse(x: Tensor) -> None:
    model = chain(nn.LeakyReLU(0.1), nn.MaxPool2d(2))
    fused = cmf.fuse(copy.deepcopy(model))
    for m in (model, fused):
        m[1].negative_slope = 0.5
    same(fused, model, x)
    for m in (model, fused):
        m[2].kernel_size = 3
        m[2].stride = 1
    same(fused, model, x)
    for m in (model, fused):
        m[0].padding = (0, 0)
        m[0].stride = (2, 1)
    same(fused, model, x)


def test_flags_changed_after_fuse(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.flag:
            y = self.bn(y)
        return self.pool(self.relu(y))

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    for flag in (True, False, True):
        model.flag = fused.flag = flag
        same(fused, model, x)


def test_dropout_in_training(x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.pool(F.dropout(self.relu(self.conv(x)), 0.5, self.training))

    for model in (written(forward), chain(nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2))):
        fused = cmf.fuse(copy.deepcopy(model))
        for training in (True, False, True):
            model.train(training)
            fused.train(training)
            torch.manual_seed(5)
            expected = model(x)
            torch.manual_seed(5)
            assert_within(fused(x), expected, TOLERANCE)


# ---- forwards that a graph can't stand for


def _data_dependent(self: Any, x: Tensor) -> Tensor:
    x = self.block(x)
    if x.mean() > 0:
        x = x * 2
    return self.relu(self.conv(x))


def _counts(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return self.relu(self.conv(self.block(x)))


def _no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = self.relu(self.conv(x))
    return self.block(x)


def _random(self: Any, x: Tensor) -> Tensor:
    x = self.block(x)
    return self.relu(self.conv(x)) if random.random() < 0.5 else x


def _random_tensor(self: Any, x: Tensor) -> Tensor:
    return self.relu(self.conv(self.block(x) + torch.rand(1)))


def _tries(self: Any, x: Tensor) -> Tensor:
    try:
        return self.relu(self.conv(self.block(x)))
    except RuntimeError:
        return x


def _object(self: Any, x: Tensor) -> Tensor:
    return self.relu(self.conv(self.block(x))) * len(self.anything)


def _global(self: Any, x: Tensor) -> Tensor:
    x = self.block(x)
    return self.relu(self.conv(x)) if state["on"] else x


state = {"on": True}


def _grad_mode(self: Any, x: Tensor) -> Tensor:
    x = self.relu(self.conv(self.block(x)))
    return x * 2 if torch.is_grad_enabled() else x


def _direct(self: Any, x: Tensor) -> Tensor:
    return self.relu(self.conv.forward(self.block(x)))


def _checkpoint(self: Any, x: Tensor) -> Tensor:
    x = self.block(x)
    return torch.utils.checkpoint.checkpoint(
        lambda v: self.relu(self.conv(v)), x, use_reentrant=False
    )


def _arguments(self: Any, *x: Tensor) -> Tensor:
    return self.relu(self.conv(self.block(x[0])))


LEFT = {
    _data_dependent: "torch.fx can't trace",
    _counts: "sets an attribute",
    _no_grad: "enters a context (with)",
    _random: "uses random.random",
    _random_tensor: "uses torch.rand",
    _tries: "handles exceptions",
    _object: "reads self.anything",
    _global: "reads the global variable state",
    _grad_mode: "uses torch.is_grad_enabled",
    _direct: "calls another module's forward directly",
    _checkpoint: "uses torch.utils.checkpoint.checkpoint",
    _arguments: "takes *x",
}


@pytest.mark.parametrize("forward", LEFT, ids=lambda f: f.__name__)
def test_forwards_left_alone_and_their_children_fused(
    forward: Callable[..., Any], x: Tensor
) -> None:
    model = written(forward)
    model.anything = {1: object()}
    fused = cmf.fuse(copy.deepcopy(model))
    found = rows(fused)
    assert not found["conv"].fused
    assert LEFT[forward] in found["conv"].reason, found["conv"].reason
    assert found["block.0"].fused
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.manual_seed(1)
            random.seed(1)
            expected = model(x)
            torch.manual_seed(1)
            random.seed(1)
            actual = fused(x)
        assert_within(actual, expected, TOLERANCE)
        assert actual.requires_grad == expected.requires_grad
    assert fused.count == model.count


Output = namedtuple("Output", ["logits", "aux"])


class Guarded(Written):
    """Branches that a graph can't record, which this model does not take."""

    efficient = False

    def helper(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.relu(self.conv2(x)), 2)

    def recomputed(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.utils.checkpoint.checkpoint(self.conv, x)

    def forward(self, x: Tensor) -> Output:
        if self.efficient and torch.is_grad_enabled():
            if torch.jit.is_scripting():
                raise RuntimeError("not in TorchScript")
            y = self.recomputed(x)
        else:
            y = self.conv(x)
        if not self.flag:
            warnings.warn("never", stacklevel=2)
        y = self.relu(self.bn(y))
        return Output(self.helper(y), y.mean() if self.training else None)


def test_branches_that_are_not_taken(x: Tensor) -> None:
    torch.manual_seed(0)
    model = settle(Guarded())
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].pattern == "Conv2d -> BatchNorm2d -> ReLU"
    assert rows(fused)["conv2"].fused
    with torch.no_grad():
        actual, expected = fused(x), model(x)
        assert type(actual) is Output
        assert actual.aux is None
        assert_within(actual.logits, expected.logits, TOLERANCE)
        actual, expected = fused.train()(x), model.train()(x)
        assert_within(actual.aux, expected.aux, TOLERANCE)
        fused.flag = model.flag = False
        with pytest.warns(UserWarning, match="never"):
            fused(x)


def test_other_arguments_than_traced(x: Tensor) -> None:
    def forward(self: Any, x: Tensor, scale: float = 1.0, mask: Any = None) -> Tensor:
        y = self.pool(self.relu(self.conv(x)))
        if mask is not None:
            y = y * mask
        return y * scale

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    assert rows(fused)["conv"].fused
    same(fused, model, x)
    same(fused, model, x, 2.0)
    same(fused, model, x, 2.0, torch.rand(6, 6))
    with torch.no_grad():
        assert_within(fused(x=x), model(x), TOLERANCE)
        assert_within(fused(x, scale=3.0), model(x, scale=3.0), TOLERANCE)
    with pytest.raises(TypeError):
        fused()


def test_optional_tensors_as_positional_arguments(x: Tensor) -> None:
    def forward(self: Any, x: Tensor, other: Any) -> Tensor:
        y = self.pool(self.relu(self.conv(x)))
        return y if other is None else y + other

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    same(fused, model, x, None)
    same(fused, model, x, torch.ones(1))


def test_errors_stay_errors(x: Tensor) -> None:
    model = cmf.fuse(chain(nn.ReLU(), nn.MaxPool2d(2)))
    with pytest.raises((ValueError, RuntimeError)):
        model(x[:, :3])
    with pytest.raises((TypeError, AttributeError)):
        model([1, 2])


# ---- deciding by the plan


def test_the_plan_decides(x: Tensor) -> None:
    model = chain(nn.ReLU(), nn.MaxPool2d(2)).eval()
    cmf.fuse(model, x)
    assert rows(model)["0"].fused
    with cmf.use_backend("reference"):
        cmf.fuse(model, x)
        row = rows(model)["0"]
        assert not row.fused
        assert "reference" in row.reason
        assert type(model) is nn.Sequential


def test_a_branch_that_the_example_does_not_reach(x: Tensor) -> None:
    model = settle(nn.Sequential(BasicBlock(4, 4)))
    model.add_module("spare", chain(nn.ReLU()))
    model.spare.requires_grad_(False)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self[0](x)

    model.__class__ = type("OnlyFirst", (nn.Sequential,), {"forward": forward})
    cmf.fuse(model, x)
    found = rows(model)
    assert found["0.conv1"].fused
    assert not found["spare.0"].fused
    assert "does not reach" in found["spare.0"].reason


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_example_inputs_of_every_form(kind: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    examples = {"tensor": x, "tuple": (x,), "dict": {"x": x}}[kind]
    model = settle(ResNet18())
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    model.train()
    cmf.fuse(model, examples)
    assert any(row.fused for row in cmf.fusion_report(model))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, e in zip(model.state_dict().values(), before.values(), strict=True):
        assert torch.equal(a, e)


def test_example_inputs_of_a_model_that_looks_at_values(x: Tensor) -> None:
    model = written(_data_dependent)
    before = copy.deepcopy(model)
    cmf.fuse(model, x)
    assert rows(model)["block.0"].fused
    same(model, before, x)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="example_inputs must be a tensor"):
        cmf.fuse(VGG11BN(), 3)
    for function in (cmf.fuse, cmf.unfuse, cmf.fusion_report):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
            function(torch.zeros(1))  # type: ignore[arg-type]
