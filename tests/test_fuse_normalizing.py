"""BatchNorm2d that trains, in fused models: values, gradients, statistics, what is PyTorch's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.batch_norm_act.cpu import Launch

from .fuse_normalizing_cases import MODELS, TOLERANCE, agree, images, make, step
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

LAST = torch.channels_last
FORMATS = [torch.contiguous_format, LAST]
FORMAT_IDS = ["planes", "last"]
Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The activations of the norms that ran by our kernels."""
    seen: Calls = []
    forward = Launch.forward

    def record(self: Launch, *args: Any) -> Any:
        seen.append(self.norm.activation)
        return forward(self, *args)

    monkeypatch.setattr(Launch, "forward", record)
    return seen


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
def test_values_gradients_and_statistics(
    name: str, format: torch.memory_format, calls: Calls
) -> None:
    model = make(name, format)
    fused = cmf.fuse(copy.deepcopy(model))
    agree(fused, model, images(format))
    assert calls == MODELS[name][1]
    with torch.no_grad():
        y = fused(images(format))
        assert y.stride() == model(images(format)).stride()
    assert calls == 2 * MODELS[name][1]
    model.eval(), fused.eval()
    with torch.no_grad():
        fused(images(format))
    assert calls == 2 * MODELS[name][1]


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_statistics_over_several_steps(momentum: float | None, calls: Calls) -> None:
    model = make("dense")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    fused = cmf.fuse(copy.deepcopy(model))
    exact = copy.deepcopy(model).double()
    for number in range(4):
        x = images() * (1 + number) - number
        for m in (model, fused):
            m(x)
        exact(x.double())
    assert len(calls) == 4 * 5
    expected = exact.state_dict()
    for name, found in fused.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert int(found) == int(expected[name]) == 4
        else:
            assert_within(found, expected[name], TOLERANCE)
    assert list(fused.state_dict()) == list(model.state_dict())
    loaded = make("dense")
    loaded.load_state_dict(fused.state_dict())
    fused.eval(), loaded.eval()
    with torch.no_grad():
        assert_within(fused(x), loaded(x), TOLERANCE)


VARIANTS: dict[str, Callable[[nn.BatchNorm2d], Any]] = {
    "affine": lambda n: None,
    "weight frozen": lambda n: n.weight.requires_grad_(False),
    "bias frozen": lambda n: n.bias.requires_grad_(False),
    "all frozen": lambda n: n.requires_grad_(False),
    "not tracking": lambda n: setattr(n, "track_running_stats", False),
    "not counting": lambda n: setattr(n, "num_batches_tracked", None),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("needs_dx", [True, False])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_kinds_of_norm(
    variant: str, kind: dict[str, bool], needs_dx: bool, training: bool, calls: Calls
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(16, **kind), nn.SiLU()).train(training)
    if model[0].affine or "frozen" not in variant:
        VARIANTS[variant](model[0])
    fused = cmf.fuse(copy.deepcopy(model))
    results = []
    for m in (fused, model):
        x = images().requires_grad_(needs_dx)
        y = m(x)
        if y.requires_grad:
            y.square().sum().backward()
        gradients = [x.grad, *(p.grad for p in m.parameters())]
        results.append([y.detach(), *gradients, *m.buffers()])
    assert bool(calls) == (training or model[0].running_mean is None)
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            assert_within(found, expected, 2e-6)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "eps": lambda m: setattr(m[0], "eps", 0.5),
    "tiny eps": lambda m: setattr(m[0], "eps", 1e-35),
    "momentum": lambda m: setattr(m[0], "momentum", 0.7),
    "eval": lambda m: m.eval(),
    "norm alone in eval": lambda m: m[0].eval(),
    "norm replaced": lambda m: m.__setitem__(0, nn.InstanceNorm2d(16)),
    "activation replaced": lambda m: m.__setitem__(1, nn.Sigmoid()),
    "slope": lambda m: setattr(m[1], "negative_slope", 0.5),
    "hook of the norm": lambda m: m[0].register_forward_hook(lambda *a: a[2] * 2),
    "pre-hook of the norm": lambda m: m[0].register_forward_pre_hook(lambda _, a: (a[0] * 2,)),
    "hook of the activation": lambda m: m[1].register_forward_hook(lambda *a: a[2] * 2),
    "forward replaced": lambda m: setattr(m[0], "forward", lambda x: x * 3),
    "no weight": lambda m: setattr(m[0], "weight", None),
    "weight": lambda m: m[0].weight.data.mul_(3),
    "weight on a stride": lambda m: setattr(
        m[0], "weight", nn.Parameter(torch.rand(32, generator=torch.Generator())[::2])
    ),
    "no statistics": lambda m: (
        setattr(m[0], "running_mean", None),
        setattr(m[0], "running_var", None),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.BatchNorm2d(16), nn.LeakyReLU(0.2))
    fused = cmf.fuse(copy.deepcopy(model))
    torch.manual_seed(3)
    CHANGES[change](model)
    torch.manual_seed(3)
    CHANGES[change](fused)
    for _ in range(2):
        assert_within(fused(images()), model(images()), 2e-6)
    for (name, found), expected in zip(fused.named_buffers(), model.buffers(), strict=True):
        assert_within(found, expected, 2e-6), name


class Own(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_left_to_pytorch(calls: Calls) -> None:
    """The very bits of the layers."""
    model = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    fused = cmf.fuse(copy.deepcopy(model))
    x = images()

    def same(m: nn.Module, f: nn.Module, value: Tensor) -> None:
        assert torch.equal(f(value), m(value))
        assert all(map(torch.equal, f.buffers(), m.buffers()))

    same(model, fused, x[..., ::2])
    same(model, fused, x.expand(3, 16, 28, 26)[:, :, :1].expand_as(x))
    with cmf.use_backend("reference"):
        same(model, fused, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(model, fused, x)
    same(model.eval(), fused.eval(), x)
    same(model.train().double(), fused.train().double(), x.double())
    model.float(), fused.float()
    own = nn.Sequential(Own(16), nn.ReLU())
    same(own, cmf.fuse(copy.deepcopy(own)), x)
    same(model, fused, x[:1].contiguous())  # too small to gain
    for wrong in (torch.randn(1, 16, 1, 1), x[:, 1:], x[0], x[:0]):
        errors = []
        for m in (model, fused):
            try:
                m(wrong)
                errors.append("")
            except (RuntimeError, ValueError) as error:
                errors.append(str(error))
        assert errors[0] == errors[1]
        assert all(map(torch.equal, fused.buffers(), model.buffers()))
    assert calls == []


def test_under_transforms(calls: Calls) -> None:
    model = nn.Sequential(nn.BatchNorm2d(16, track_running_stats=False), nn.Tanh())
    fused = cmf.fuse(copy.deepcopy(model))
    x, tangent = images(), images() * 0.5
    for m in (model, fused):
        m.requires_grad_(False)
    for transform in (
        lambda m: torch.func.jvp(m, (x,), (tangent,)),
        lambda m: torch.func.vmap(m)(torch.stack([x, tangent])),
        lambda m: torch.func.grad(lambda v: m(v).square().sum())(x),
    ):
        found, expected = transform(fused), transform(model)
        for a, e in zip(found, expected, strict=True):
            assert torch.equal(a, e)
    assert calls == []


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
def test_second_derivatives(affine: bool, format: torch.memory_format, calls: Calls) -> None:
    model = nn.Sequential(nn.BatchNorm2d(16, affine=affine), nn.Tanh())
    fused = cmf.fuse(copy.deepcopy(model))
    exact = copy.deepcopy(model).double()
    results = []
    for m, x in ((fused, images(format)), (exact, images(format).double())):
        x = x.clone().requires_grad_()
        leaves = [x, *m.parameters()]
        first = torch.autograd.grad(m(x).pow(3).sum(), leaves, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append([*first, *torch.autograd.grad(penalty, leaves)])
    assert calls == ["tanh"]
    for found, expected in zip(*results, strict=True):
        assert_within(found.detach(), expected.detach(), 2e-5)


def test_several_gradients_at_once() -> None:
    model = nn.Sequential(nn.BatchNorm2d(16), nn.SiLU())
    fused = cmf.fuse(copy.deepcopy(model))
    results = []
    for m in (fused, model):
        x = images().requires_grad_()
        y, leaves = m(x), [x, m[0].weight]
        v = torch.stack([images(), images().flip(3), torch.ones_like(x)])

        def gradients(g: Tensor, y: Tensor = y, leaves: list[Tensor] = leaves, **rest: bool) -> Any:
            return torch.autograd.grad(y, leaves, g, retain_graph=True, **rest)

        results.append([*gradients(v, is_grads_batched=True), *torch.func.vmap(gradients)(v)])
    for found, expected in zip(*results, strict=True):
        assert_within(found, expected, 5e-6)


def test_the_result_may_be_changed_in_place() -> None:
    """It is not what backward needs, other than of PyTorch's ReLU."""
    fused = cmf.fuse(nn.Sequential(nn.BatchNorm2d(16), nn.ELU()))
    y = fused(images().requires_grad_())
    y += 1
    y.sum().backward()


def test_what_backward_keeps() -> None:
    """Never more than the layers keep."""
    for name in MODELS:
        kept = []
        for fuse in (False, True):
            model = make(name)
            if fuse:
                cmf.fuse(model)
            storages: dict[int, Tensor] = {}

            def pack(t: Tensor, storages: dict[int, Tensor] = storages) -> Tensor:
                storages[t.untyped_storage().data_ptr()] = t
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                y = model(images())
            kept.append(sum(t.untyped_storage().nbytes() for t in storages.values()))
            del y
        slack = 16 * 40 * 5  # 4 bytes for what a mean's rounding left, of each channel and norm
        assert kept[1] <= kept[0] + slack, name
        if name in ("norm", "stem"):  # elsewhere the next layer keeps it as well
            assert kept[1] < 0.8 * kept[0], name


def test_the_report_and_copies(calls: Calls) -> None:
    model = make("dense")
    fused = cmf.fuse(copy.deepcopy(model))
    report = cmf.fusion_report(fused)
    assert dict(report.norms) == {
        "0.norm1": "BatchNorm2d -> relu",
        "1.norm1": "BatchNorm2d -> relu",
        "2": "BatchNorm2d",
    }
    assert "0.norm1 (BatchNorm2d -> relu)" in str(report)
    assert pickle.loads(pickle.dumps(report)).norms == report.norms
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        before = len(calls)
        agree(twin, model, images())
        assert calls[before:] == MODELS["dense"][1]
    before = len(calls)
    plain = cmf.unfuse(fused)
    assert torch.equal(plain(images()), model(images()))
    assert len(calls) == before


def test_shapes_decide_about_convolutions_alone(calls: Calls) -> None:
    """Convolutions that the plan declines keep their norms fused."""
    conv = nn.Conv2d(16, 24, 3, padding=2, dilation=2)
    model = nn.Sequential(conv, nn.BatchNorm2d(24), nn.ReLU())
    fused = cmf.fuse(copy.deepcopy(model), images())
    agree(fused, model, images())
    assert calls == ["relu"]


def test_inside_torch_compile(calls: Calls) -> None:
    model = make("dense")
    fused = cmf.fuse(copy.deepcopy(model))
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    assert_within(compiled(images()).detach(), model(images()).detach(), TOLERANCE)
    for found, expected in zip(fused.buffers(), model.buffers(), strict=True):
        assert_within(found, expected, TOLERANCE)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    model = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    expected = step(cmf.fuse(copy.deepcopy(model)), images(LAST))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = step(cmf.fuse(copy.deepcopy(model)), images(LAST))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found.values(), expected.values()))
