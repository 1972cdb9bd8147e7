"""What fuse must leave alone, or follow: models that change, forwards that no graph stands for."""

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

import crossmedia_fast as cmf

from .fuse_cases import TOLERANCE, OwnConv, Written, chain, rows, same, written
from .fuse_models import settle
from .tolerances import assert_within


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


# ---- modules that change after fuse


def test_batch_norm_in_training(x: Tensor) -> None:
    model = settle(chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))
    fused = cmf.fuse(copy.deepcopy(model))
    for training in (True, False, True, False):
        model.train(training)
        fused.train(training)
        # of the convolution, which in training is fused to nothing, but may be our own
        assert_within(fused[1].running_mean, model[1].running_mean, TOLERANCE)
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


def test_sizes_given_to_functions_in_c(x: Tensor) -> None:
    """They read a number's place as a tensor's where something says that it is one."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.conv2d(self.conv(x), self.conv2.weight, padding=x.shape[-1] // 4)
        y = F.avg_pool2d(y, min(x.size(2), 2), max(1, x.shape[2] // x.shape[3]))
        return F.relu(self.conv2(y)).reshape(x.size(0), -1)

    model = written(forward)
    fused = cmf.fuse(copy.deepcopy(model))
    same(fused, model, x)
    same(fused, model, x[:, :, :8, :8].contiguous())


def test_errors_stay_errors(x: Tensor) -> None:
    model = cmf.fuse(chain(nn.ReLU(), nn.MaxPool2d(2)))
    with pytest.raises((ValueError, RuntimeError)):
        model(x[:, :3])
    with pytest.raises((TypeError, AttributeError)):
        model([1, 2])


def test_example_inputs_of_a_model_that_looks_at_values(x: Tensor) -> None:
    model = written(_data_dependent)
    before = copy.deepcopy(model)
    cmf.fuse(model, x)
    assert rows(model)["block.0"].fused
    same(model, before, x)
