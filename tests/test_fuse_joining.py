"""Concatenated channels: written in place where that holds, copied where it doesn't."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.fusion.joining import Joint
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool
from crossmedia_fast.ops.conv_act_pool.cpu_conv import ConvLaunch

from .tolerances import WINOGRAD, assert_within

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

LAST = torch.channels_last
TOLERANCE = WINOGRAD[5]
Joins = list[tuple[int, bool]]


class Branches(nn.Module):
    """An inception block: 1×1, 3×3, 5×5, and a pooling's projection; or a value as it is."""

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        self.ones = nn.Sequential(nn.Conv2d(32, 24, 1), nn.ReLU())
        self.threes = nn.Sequential(nn.Conv2d(32, 33, 3, padding=1), nn.ReLU())
        self.fives = nn.Sequential(nn.Conv2d(32, 16, 5, padding=2), nn.LeakyReLU(0.1))
        self.projection = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(32, 20, 1), nn.Tanh())
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.ones(x), self.threes(x), self.fives(x)]
        parts.append(self.projection(x) if self.whole else x)
        return torch.cat(parts, 1)


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> Joins:
    """For each concatenation: how many parts were in their place, and whether it held."""
    seen: Joins = []
    complete = Joint.complete

    def record(self: Joint, tensors: list[Tensor]) -> Tensor | None:
        y = complete(self, tensors)
        seen.append(
            (sum(t is self.parts.get(i, (None,))[0] for i, t in enumerate(tensors)), y is not None)
        )
        return y

    monkeypatch.setattr(Joint, "complete", record)
    return seen


def images(batch: int = 2, size: int = 14, format: torch.memory_format = LAST) -> Tensor:
    x = torch.randn(batch, 32, size, size, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=format)


def network(whole: bool = True) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Branches(whole).eval().to(memory_format=LAST)
    return cmf.fuse(copy.deepcopy(model)), model


@pytest.mark.parametrize("whole", [True, False], ids=["branches", "with a value"])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("size", [7, 14, 33])
def test_values(whole: bool, batch: int, size: int, joins: Joins) -> None:
    fused, model = network(whole)
    x = images(batch, size)
    with torch.inference_mode():
        expected = model(x)
        results = [fused(x) for _ in range(4)]
        for y in results:
            assert_within(y, expected, TOLERANCE)
            assert y.stride() == expected.stride()
        assert all(torch.equal(y, results[0]) for y in results)
        assert len({y.data_ptr() for y in results}) == 4  # nobody writes into another call's
    assert joins[0] == (0, False)  # the first call finds out
    written, held = joins[-1]
    assert held
    # of few positions some filters are PyTorch's affair
    assert written >= (1 if batch * size < 14 else 3 if whole else 2)


class Upwards(nn.Module):
    """Where a U-Net's halves meet."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(32, 24, 3, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(24, 40, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        past = self.down(x)
        return torch.cat((past, self.up(self.pool(past))), 1)


@pytest.mark.parametrize("format", [torch.contiguous_format, LAST], ids=["planes", "last"])
def test_a_transposed_convolution_writes_in_place(
    format: torch.memory_format, joins: Joins
) -> None:
    torch.manual_seed(0)
    model = Upwards().eval().to(memory_format=format)
    fused = cmf.fuse(copy.deepcopy(model))
    x = images(format=format)
    with torch.inference_mode():
        for _ in range(4):
            y, expected = fused(x), model(x)
            assert_within(y, expected, TOLERANCE)
            assert y.stride() == expected.stride()
        assert joins[-1] == ((1, True) if format is LAST else (0, False))
        for m in (fused, model):
            m.up.weight.data.mul_(-1)
        for _ in range(3):
            assert_within(fused(x), model(x), TOLERANCE)


def test_shapes_in_turn(joins: Joins) -> None:
    fused, model = network()
    with torch.no_grad():
        for _ in range(3):
            for x in (images(), images(3), images(2, 17), images(2, 14, torch.contiguous_format)):
                y, expected = fused(x), model(x)
                assert_within(y, expected, TOLERANCE)
                if x.stride(1) == 1:
                    assert y.stride() == expected.stride()
    assert {held for _, held in joins[-4:]} == {True, False}  # planes are copied


def test_with_gradients_all_is_copied(joins: Joins) -> None:
    fused, model = network()
    x = images()
    with torch.no_grad():
        fused(x)
        fused(x)
    joins.clear()
    xs = [x.clone().requires_grad_() for _ in range(2)]
    ys = [m(value) for m, value in zip((fused, model), xs, strict=True)]
    assert_within(ys[0], ys[1], TOLERANCE)
    for y in ys:
        y.square().sum().backward()
    assert_within(xs[0].grad, xs[1].grad, 1e-4)
    assert joins == []


def test_changes_between_calls(joins: Joins) -> None:
    fused, model = network()
    x = images()

    def same() -> None:
        with torch.no_grad():
            for _ in range(3):
                assert_within(fused(x), model(x), 2 * TOLERANCE)

    same()
    for m in (fused, model):
        m.ones[0].weight.data.mul_(-1)
    same()
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(32, 40, 1), nn.ReLU()).eval().to(memory_format=LAST)
    for m in (fused, model):
        m.ones = copy.deepcopy(other)  # more channels than before, at the first place
    same()
    for m in (fused, model):
        m.threes[0].register_forward_hook(lambda *a: a[2] * 2)
    same()
    assert joins[-1][1]


def test_places_that_do_not_fit_together() -> None:
    places = ((40, 0), (33, 24), (17, 40))
    known = {(i, (1, count, 4, 4)): (57, first, True) for i, (count, first) in enumerate(places)}
    joint, x = Joint(known), torch.zeros(1)
    first = joint.part(0, (1, 40, 4, 4), x)
    assert first is not None
    assert first.stride() == (57 * 16, 1, 57 * 4, 57)
    assert joint.part(1, (1, 33, 4, 4), x) is None  # overlaps
    assert joint.part(2, (1, 17, 4, 4), x) is not None
    assert joint.complete([first, torch.zeros(1, 33, 4, 4)]) is None


class Shared(nn.Module):
    """A branch that somebody else takes too, twice the same one, other dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(32, 32, 1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        c = torch.cat([a, b], dim=1)
        a = a.add(1)
        d = torch.cat([F.relu(self.b(x)), F.relu(self.a(x))], -3)
        e = torch.cat([F.relu(self.b(x)), F.relu(self.a(x))], 2)
        f = torch.cat((F.relu(self.a(x)),), 1)
        b2 = F.relu(self.b(x))
        g = torch.cat([b2, b2], 1)
        return torch.cat([c, d, g], 1) + e.sum() + f.mean() + a.mean()


def test_values_that_others_take(joins: Joins) -> None:
    torch.manual_seed(0)
    model = Shared().eval().to(memory_format=LAST)
    fused = cmf.fuse(copy.deepcopy(model))
    with torch.no_grad():
        for _ in range(3):
            assert_within(fused(images()), model(images()), TOLERANCE)
    assert any(held for _, held in joins)


def test_copies_and_files(joins: Joins) -> None:
    fused, model = network()
    x = images()
    twins = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
    for m in (twins[0], model):
        m.ones[0].weight.data.neg_()
    with torch.no_grad():
        for _ in range(3):
            assert_within(twins[0](x), model(x), TOLERANCE)
            fused(x)
        model.ones[0].weight.data.neg_()
        for _ in range(3):
            assert_within(twins[1](x), model(x), TOLERANCE)
    assert joins[-1][1]


def test_inside_torch_compile() -> None:
    fused, model = network()
    torch._dynamo.reset()
    with torch.no_grad():
        fused(images())
        fused(images())
        compiled = torch.compile(fused, backend="eager", fullgraph=True)
        assert_within(compiled(images()), model(images()), TOLERANCE)


@pytest.mark.parametrize("algorithm", ["depthwise", "implicit_gemm"])
def test_native_calls_refuse_a_pitch_they_cannot_keep(algorithm: str) -> None:
    pool = check_pool("relu", None, "none", 2, None, 0, False, True)
    groups = 32 if algorithm == "depthwise" else 1
    shapes = (1, 32, 8, 8), (32, 32 // groups, 3, 3), (1, 32, 8, 8)
    conv = check_conv(1, 1, 1, groups)
    launch = ConvLaunch(*shapes, torch.float32, conv, pool, True, True)
    x, w = torch.zeros(shapes[0]), torch.zeros(shapes[1])
    kept = launch.prepare(algorithm, w, keep=False)
    pointers = [t.data_ptr() if t is not None else 0 for t in (x, w, kept, None, x)]
    forward = native.module.conv_act_pool2d_forward  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="y_pixel must be 0"):
        forward(algorithm, launch.native, *pointers, 0, 0, 1, 64)


@pytest.mark.parametrize("pixel", [31, -64, 1 << 61])
def test_native_calls_refuse_a_pitch_that_cannot_be(pixel: int) -> None:
    pool = check_pool("relu", None, "none", 2, None, 0, False, True)
    shapes = (1, 32, 8, 8), (32, 32, 1, 1), (1, 32, 8, 8)
    forward = native.module.conv_act_pool2d_forward  # type: ignore[union-attr]
    x, w = torch.zeros(shapes[0]), torch.zeros(shapes[1])
    for channels_last in (True, False):
        formats = channels_last, channels_last
        launch = ConvLaunch(*shapes, torch.float32, check_conv(1, 0, 1, 1), pool, *formats)
        kept = launch.prepare("pointwise", w, keep=False)
        assert kept is not None
        pointers = [t.data_ptr() for t in (x, w, kept)]
        with pytest.raises(ValueError, match="y_pixel"):
            forward("pointwise", launch.native, *pointers, 0, x.data_ptr(), 0, 0, 1, pixel)
