"""Transposed convolutions: values, gradients of every order, and what is left to PyTorch."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.fusion.bound import BoundCall
from crossmedia_fast.ops.conv_act_pool import transposed
from crossmedia_fast.ops.conv_act_pool.transposed import TransposedLaunch

from .fuse_models import settle
from .tolerances import WINOGRAD, assert_within

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

LAST = torch.channels_last
FORMATS = [torch.contiguous_format, LAST]
FORMAT_IDS = ["planes", "last"]
# C, K, kernel, stride, padding, output_padding, H, W
CASES = [
    (16, 24, 4, 2, 1, 0, 9, 7),
    (24, 16, 4, 2, 1, 1, 8, 8),
    (33, 17, 3, 1, 1, 0, 13, 6),
    (16, 32, 5, 1, 2, 0, 11, 12),
    (16, 16, 3, 2, 1, 1, 10, 9),
    (32, 3, 4, 2, 1, 0, 12, 5),
    (20, 1, 5, 2, 2, 1, 6, 7),
    (16, 16, (3, 5), (1, 1), (1, 2), 0, 9, 14),
    (33, 40, 2, 2, 0, 0, 9, 7),
    (48, 64, 2, 2, 0, 0, 5, 35),
    (20, 70, (3, 1), (3, 1), 0, 0, 6, 18),
    (16, 24, 4, 4, 0, 0, 7, 1),
    (100, 37, 4, 1, 0, 0, 1, 1),
    (16, 3, (5, 2), (1, 2), 0, 0, 1, 17),
]
APART = CASES[8:]  # without overlaps
IDS = ["-".join(str(v) for v in case) for case in CASES]
Launches = list[str]


@pytest.fixture(autouse=True)
def gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' problems are small: PyTorch may be faster."""
    monkeypatch.setattr(transposed, "LEAST_GAIN", 0.0)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """The algorithms of the calls that ran by our kernels."""
    seen: Launches = []
    forward, run = TransposedLaunch.forward, BoundCall.run

    def record(self: TransposedLaunch, *arguments: Any, **rest: Any) -> Tensor:
        seen.append(self.algorithm)
        return forward(self, *arguments, **rest)

    def record_bound(self: BoundCall, *arguments: Any) -> Tensor | None:
        y = run(self, *arguments)
        if y is not None:
            seen.append("bound")
        return y

    monkeypatch.setattr(TransposedLaunch, "forward", record)
    monkeypatch.setattr(BoundCall, "run", record_bound)
    return seen


def layers(case: Any, bias: bool = True, norm: bool = True, act: Any = nn.ReLU) -> nn.Sequential:
    C, K, kernel, stride, padding, extra = case[:6]
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(C, K, kernel, stride, padding, extra, bias=bias)
    rest = [*([nn.BatchNorm2d(K)] if norm else []), *([act()] if act else [])]
    return settle(nn.Sequential(conv, *rest)).eval()


def images(case: Any, batch: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, case[0], *case[6:], generator=generator)


def within(found: Tensor, model: nn.Sequential, x: Tensor) -> None:
    """Of the model in float64; relative to what its activation is applied to, which tanh hides."""
    before = copy.deepcopy(model).double()
    activation = before.pop(-1) if len(before) > 1 and not _is_norm(before[-1]) else nn.Identity()
    with torch.no_grad():
        z = before(x.double())
        expected = activation(z)
    assert found.shape == expected.shape
    hidden = max(1.0, float(z.abs().max() / expected.abs().max()))
    assert_within(found, expected, hidden * WINOGRAD[max(model[0].kernel_size)])


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("act", [None, nn.ReLU, nn.Tanh])
def test_values(
    case: Any, format: torch.memory_format, norm: bool, act: Any, launches: Launches
) -> None:
    model = layers(case, not norm, norm, act)
    x = images(case).contiguous(memory_format=format)
    fused = cmf.fuse(copy.deepcopy(model).to(memory_format=format))
    with torch.inference_mode():
        y = fused(x)
        again = fused(x)
        stride = copy.deepcopy(model).to(memory_format=format)(x).stride()
    assert len(launches) == 2
    assert launches[1] == "bound"
    assert torch.equal(y, again)
    if y.shape[1] > 1:
        assert y.stride() == stride
    within(y, model, x)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
def test_gradients(case: Any, format: torch.memory_format, launches: Launches) -> None:
    model = layers(case, act=nn.Tanh).train()  # no kink where signs could differ
    fused = cmf.fuse(copy.deepcopy(model).to(memory_format=format))
    x = images(case).contiguous(memory_format=format)
    exact = copy.deepcopy(model).double()
    results = []
    for m, value in ((fused, x), (exact, x.double())):
        value = value.clone().requires_grad_()
        y = m(value)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
        y.backward(dy)
        results.append([value.grad, *(p.grad for p in m.parameters())])
    # of patches in NHWC the weights' way into their order takes what is saved
    assert bool(launches) == (case not in APART or format is not LAST or case[6:] == (1, 1))
    for name, found, expected in zip(("x", *dict(model.named_parameters())), *results, strict=True):
        if name == "0.bias":  # BatchNorm takes it out again: 0 but for rounding
            assert float(found.abs().max()) < 1e-3 * float(results[1][1].abs().max())
            continue
        assert_within(found, expected, 4 * WINOGRAD[max(model[0].kernel_size)])


def test_gradients_of_one_pixel_are_no_matter_of_matmul_precision(launches: Launches) -> None:
    case = next(c for c in APART if c[6:] == (1, 1))
    model = layers(case, act=None, norm=False)
    fused = cmf.fuse(copy.deepcopy(model))
    exact = copy.deepcopy(model).double()
    before = torch.get_float32_matmul_precision()
    results = []
    torch.set_float32_matmul_precision("medium")
    try:
        for m, x in ((fused, images(case)), (exact, images(case).double())):
            x = x.clone().requires_grad_()
            m(x).square().sum().backward()
            results.append([x.grad, m[0].weight.grad, m[0].bias.grad])
    finally:
        torch.set_float32_matmul_precision(before)
    assert launches
    for found, expected in zip(*results, strict=True):
        assert_within(found, expected, 4 * WINOGRAD[4])


def test_second_derivatives(launches: Launches) -> None:
    case = CASES[0]
    model = layers(case, norm=False, act=nn.Tanh)
    fused = cmf.fuse(copy.deepcopy(model))
    exact = copy.deepcopy(model).double()
    results = []
    for m, x in ((fused, images(case)), (exact, images(case).double())):
        x = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.norm(), [x, m[0].weight, m[0].bias]))
    assert launches
    for found, expected in zip(*results, strict=True):
        assert_within(found, expected, 1e-4)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=2)))
def test_gradients_that_nobody_asks_for(needs: tuple[bool, bool], launches: Launches) -> None:
    case = CASES[0]
    model = layers(case, norm=False)
    fused = cmf.fuse(copy.deepcopy(model))
    for m in (model, fused):
        m.requires_grad_(False)
        m[0].weight.requires_grad_(needs[0])
    x = images(case)
    xs = [x.clone().requires_grad_(needs[1]) for _ in range(2)]
    ys = [model(xs[0]), fused(xs[1])]
    assert ys[0].requires_grad == ys[1].requires_grad == any(needs)
    assert launches
    if any(needs):
        for y in ys:
            y.sum().backward()
        for a, b in ((xs[0], xs[1]), (model[0].weight, fused[0].weight)):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                assert_within(b.grad, a.grad, 1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]], ids=str)
def test_what_is_not_finite_comes_out_where_it_must(bad: float, case: Any) -> None:
    model = layers(case, norm=False, act=None)
    fused = cmf.fuse(copy.deepcopy(model))
    x = images(case)
    x[1, 2, 3, 4] = bad
    for m in (model, fused):
        m[0].weight.data[1, 0, 1, 1] = bad
    with torch.no_grad():
        y, expected = fused(x), model(x)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isfinite(), expected.isfinite())


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "weight": lambda m: m[0].weight.data.mul_(1.5),
    "bias": lambda m: m[0].bias.data.add_(1),
    "mean": lambda m: m[1].running_mean.add_(1),
    "eps": lambda m: setattr(m[1], "eps", 0.1),
    "norm trains": lambda m: m[1].train(),
    "norm replaced": lambda m: m.__setitem__(1, nn.Identity()),
    "convolution replaced": lambda m: m.__setitem__(0, nn.Conv2d(16, 24, 3)),
    "stride": lambda m: setattr(m[0], "stride", (1, 1)),
    "padding": lambda m: setattr(m[0], "padding", (0, 0)),
    "groups": lambda m: (
        setattr(m[0], "groups", 2),
        setattr(m[0], "weight", nn.Parameter(m[0].weight.data[:, :12].clone())),
    ),
    "dilation": lambda m: setattr(m[0], "dilation", (2, 2)),
    "hook": lambda m: m[0].register_forward_hook(lambda *a: a[2] * 2),
    "hook of the norm": lambda m: m[1].register_forward_hook(lambda *a: a[2] * 2),
    "slope": lambda m: setattr(m[2], "negative_slope", 0.5),
    "frozen": lambda m: m.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    case = CASES[0]
    model = layers(case, act=lambda: nn.LeakyReLU(0.2))
    fused = cmf.fuse(copy.deepcopy(model))
    x = images(case)
    with torch.no_grad():
        assert_within(fused(x), model(x), WINOGRAD[4])
        torch.manual_seed(3)
        CHANGES[change](model)
        torch.manual_seed(3)
        CHANGES[change](fused)
        for _ in range(2):
            assert_within(fused(x), model(x), 2 * WINOGRAD[4])
    assert_within(fused(x), model(x), 2 * WINOGRAD[4])


def test_left_to_pytorch(launches: Launches) -> None:
    case = CASES[0]
    model = layers(case)
    fused = cmf.fuse(copy.deepcopy(model))
    x = images(case)
    with torch.no_grad():
        assert torch.equal(fused(x[:0]), model(x[:0]))
        assert torch.equal(fused[0](x[0]), model[0](x[0]))
        assert torch.equal(
            copy.deepcopy(fused).double()(x.double()), copy.deepcopy(model).double()(x.double())
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(fused(x), model(x))
        with cmf.conv_precision("highest"):
            assert torch.equal(fused(x), model(x))
        with cmf.use_backend("reference"):
            assert torch.equal(fused(x), model(x))
        mapped = torch.func.vmap(lambda one: fused(one[None])[0])(x)
        assert_within(mapped, model(x), WINOGRAD[4])
        with pytest.raises(RuntimeError):
            fused(x[:, 1:])
    grouped = nn.Sequential(nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=4), nn.ReLU())
    assert torch.equal(cmf.fuse(copy.deepcopy(grouped))(x), grouped(x))
    assert launches == []


class Upscale(nn.Module):
    """The output's size is an argument of the call; another is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 16, 4, 2, 1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.conv(x), output_size=[19, 15])
        return y + F.conv_transpose2d(x, self.up.weight, None, 2, 1, 1)


def test_calls_with_more_arguments() -> None:
    model = Upscale()
    fused = cmf.fuse(copy.deepcopy(model))
    x = images(CASES[0])
    assert_within(fused(x), model(x), WINOGRAD[4])
    assert cmf.fusion_report(fused).transposed == ()


def test_the_report_and_copies(launches: Launches) -> None:
    case = CASES[0]
    model = layers(case)
    fused = cmf.fuse(copy.deepcopy(model))
    pattern = "ConvTranspose2d -> BatchNorm2d -> ReLU"
    assert cmf.fusion_report(fused).transposed == (("0", pattern),)
    assert pattern in str(cmf.fusion_report(fused))
    assert list(fused.state_dict()) == list(model.state_dict())
    x = images(case)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        with torch.no_grad():
            assert_within(twin(x), model(x), WINOGRAD[4])
    assert len(launches) == 2
    plain = cmf.unfuse(fused)
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))
    assert len(launches) == 2


def test_inside_torch_compile() -> None:
    case = CASES[0]
    model = layers(case)
    fused = cmf.fuse(copy.deepcopy(model))
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(fused, backend="eager", fullgraph=True)
        assert_within(compiled(images(case)), model(images(case)), WINOGRAD[4])


def test_the_plan_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the gain that every other test asks
    rest: Any = (2, 2), (1, 1), (0, 0), False
    assert TransposedLaunch((8, 256, 16, 16), (256, 128, 4, 4), *rest).algorithm == "winograd"
    for kept in (False, True):
        some = TransposedLaunch((10, 512, 4, 4), (512, 256, 4, 4), *rest, kept=kept)
        assert some.algorithm == "winograd"
    with pytest.raises(NotImplementedError, match="saves too little"):
        TransposedLaunch((1, 512, 2, 2), (512, 512, 4, 4), *rest)
    apart: Any = (2, 2), (0, 0), (0, 0)
    for last, kept in ((False, False), (False, True), (True, True)):
        launch = TransposedLaunch((1, 64, 16, 16), (64, 32, 2, 2), *apart, last, kept)
        assert launch.algorithm == "patches"
    with pytest.raises(NotImplementedError, match="weights change"):
        TransposedLaunch((1, 64, 16, 16), (64, 32, 2, 2), *apart, True)
    with pytest.raises(NotImplementedError, match="saves too little"):
        TransposedLaunch((1, 256, 3, 3), (256, 256, 3, 3), *rest)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    case = CASES[0]
    fused = cmf.fuse(layers(case))
    x = images(case)
    before = torch.get_num_threads()
    with torch.no_grad():
        expected = fused(x)
        try:
            torch.set_num_threads(threads)
            assert torch.equal(fused(x), expected)
        finally:
            torch.set_num_threads(before)
