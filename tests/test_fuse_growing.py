"""Dense blocks: what a layer adds lies in the tensor of all, whose beginning the next one reads."""

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
from crossmedia_fast.fusion.bound import BoundCalls
from crossmedia_fast.fusion.joining import Concatenation, Joint

from .conv_native_launch import After, Case, pointwise
from .fuse_cases import FORMATS, TOLERANCE
from .fuse_models import settle
from .tolerances import assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason="binds calls of the native module")
each_format = pytest.mark.parametrize("format", FORMATS)


class Layer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 48, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(48)
        self.conv2 = nn.Conv2d(48, growth, 3, padding=1, bias=False)

    def forward(self, features: Any) -> Tensor:
        features = [features] if isinstance(features, Tensor) else features
        z = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(z)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """A dense block between a convolution and one that takes all."""

    def __init__(self, growth: int = 20, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.layers = nn.ModuleList(Layer(24 + i * growth, growth) for i in range(layers))
        self.head = nn.Conv2d(24 + layers * growth, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [F.relu(self.stem(x))]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(torch.cat(features, 1))  # type: ignore[no-any-return]


class Nested(Dense):
    """The same, as layers that each add to what they take."""

    def forward(self, x: Tensor) -> Tensor:
        z = F.max_pool2d(F.relu(self.stem(x)), 1)
        for layer in self.layers:
            z = torch.cat((z, layer(z)), 1)
        return self.head(z)  # type: ignore[no-any-return]


class Shown(Dense):
    """What a layer adds is seen by others."""

    def forward(self, x: Tensor) -> Any:
        features = [F.relu(self.stem(x))]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(torch.cat(features, 1)), features[2]


class Changed(Dense):
    """What a layer adds changes in between."""

    def forward(self, x: Tensor) -> Any:
        features = [F.relu(self.stem(x))]
        for place, layer in enumerate(self.layers):
            features.append(layer(features))
            if place == 2:
                features[1].mul_(2)
        return self.head(torch.cat(features, 1))


class ReadOtherwise(Dense):
    """Others than the layers take what they take."""

    def forward(self, x: Tensor) -> Any:
        features = [F.relu(self.stem(x))]
        sums = 0
        for layer in self.layers:
            features.append(layer(features))
            sums = sums + torch.cat(features, 1).sum()
        return self.head(torch.cat(features, 1)) + sums


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each concatenation but the last: whether it is a part of the last."""
    seen: list[bool] = []
    begin = Joint.begin

    def record(self: Joint, tensors: list[Tensor]) -> Tensor | None:
        y = begin(self, tensors)
        seen.append(y is not None)
        return y

    monkeypatch.setattr(Joint, "begin", record)
    return seen


def network(format: str, make: Callable[[], nn.Module] = Dense) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = settle(make()).eval().to(memory_format=FORMATS[format])
    return cmf.fuse(copy.deepcopy(plain)), plain


def image(format: str, batch: int = 2, size: int = 12, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, size, width or size, generator=generator)
    return x.to(memory_format=FORMATS[format])


def same(fused: nn.Module, plain: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        y, want = fused(x), plain(x)
    for a, e in zip(
        y if isinstance(y, tuple) else (y,),
        want if isinstance(want, tuple) else (want,),
        strict=True,
    ):
        assert_within(a, e, TOLERANCE)
        if a.shape[2:] != (1, 1):  # whose strides say nothing
            assert a.stride() == e.stride()
    return y


def settled(fused: nn.Module, plain: nn.Module, x: Tensor, begun: list[bool]) -> None:
    for _ in range(2):
        same(fused, plain, x)
    begun.clear()
    first = same(fused, plain, x)
    assert begun == [True] * 4
    assert torch.equal(same(fused, plain, x), first)
    begun.clear()


@each_format
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [7, 12, 33])
def test_values(format: str, batch: int, size: int, begun: list[bool]) -> None:
    fused, plain = network(format)
    settled(fused, plain, image(format, batch, size), begun)


@each_format
@pytest.mark.parametrize("make", [Dense, Nested])
def test_nothing_is_concatenated_or_bound_anew(
    format: str,
    make: Callable[[], nn.Module],
    begun: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused, plain = network(format, make)
    x = image(format)
    for _ in range(3):
        same(fused, plain, x)
    assert True in begun

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("torch.cat was called, or a call bound anew")

    monkeypatch.setattr(torch, "cat", refuse)
    monkeypatch.setattr(BoundCalls, "keep", refuse)
    with torch.no_grad():
        fused(x)


def test_shapes_and_formats_in_turn(begun: list[bool]) -> None:
    fused, plain = network("channels_last")
    inputs = [
        image(format, batch, size, width)
        for format in FORMATS
        for batch, size, width in ((2, 12, 12), (1, 12, 12), (3, 5, 12), (2, 1, 12), (1, 1, 1))
    ]
    for _ in range(4):
        for x in inputs:
            same(fused, plain, x)
    assert True in begun


def test_shapes_whose_convolutions_take_their_input_as_it_is() -> None:
    """Of few positions PyTorch's convolution runs, which normalises nothing."""
    fused, plain = network("channels_last")
    for size in (12, 1, 12, 2, 1, 3):
        for batch in (1, 3):
            for _ in range(3):
                same(fused, plain, image("channels_last", batch, size))


@each_format
@pytest.mark.parametrize("size", [7, 12, 33])
def test_layers_that_add_to_what_they_take(format: str, size: int, begun: list[bool]) -> None:
    fused, plain = network(format, Nested)
    for batch in (1, 3, 1):
        x = image(format, batch, size)
        for _ in range(2):
            same(fused, plain, x)
        begun.clear()
        first = same(fused, plain, x)
        assert begun == [True] * 7  # its layers concatenate what is one tensor, too
        assert torch.equal(same(fused, plain, x), first)


@each_format
def test_what_changes_is_seen(format: str, begun: list[bool]) -> None:
    fused, plain = network(format)
    x = image(format)
    settled(fused, plain, x, begun)
    for change in (
        lambda m: m.layers[1].conv1.weight.data.mul_(2),
        lambda m: m.layers[2].norm1.running_mean.add_(1),
        lambda m: m.layers[0].conv2.weight.data.neg_(),
        lambda m: m.stem.bias.data.add_(1),
    ):
        for m in (fused, plain):
            change(m)
        settled(fused, plain, x, begun)


@each_format
def test_not_a_number_comes_out_where_it_does(format: str, begun: list[bool]) -> None:
    fused, plain = network(format)
    settled(fused, plain, image(format), begun)
    x = image(format)
    x[0, 1, 3, 4] = float("nan")
    with torch.no_grad():
        assert torch.equal(fused(x).isnan(), plain(x).isnan())


@pytest.mark.parametrize("make", [Shown, Changed, ReadOtherwise])
@each_format
def test_what_others_see_is_concatenated(
    format: str, make: Callable[[], nn.Module], begun: list[bool]
) -> None:
    fused, plain = network(format, make)
    for _ in range(4):
        same(fused, plain, image(format))
    assert not begun


def test_results_are_of_their_own(begun: list[bool]) -> None:
    fused, plain = network("channels_last", lambda: Dense(growth=16))
    fused.head, plain.head = nn.Identity(), nn.Identity()
    settled(fused, plain, image("channels_last"), begun)
    with torch.no_grad():
        x = image("channels_last")
        first = fused(x)
        kept = first.clone()
        fused(2 * x)
        assert torch.equal(first, kept)


def test_with_gradients_and_types_of_its_own(begun: list[bool]) -> None:
    fused, plain = network("channels_last")
    x = image("channels_last")
    settled(fused, plain, x, begun)
    ours, theirs = fused(x), plain(x)
    assert_within(ours, theirs, TOLERANCE)
    for y in (ours, theirs):
        y.square().sum().backward()
    for a, e in zip(fused.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        assert e.grad is not None
        assert (a.grad - e.grad).abs().max() <= 1e-3 * e.grad.abs().max()
    assert not begun
    same(fused.double(), plain.double(), x.double())
    fused.float()
    plain.float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(x).dtype == plain(x).dtype
    with torch.no_grad():
        settled(fused, plain, x, begun)
        mapped = torch.func.vmap(lambda one: fused(one[None])[0])(x)
        assert_within(mapped, plain(x), TOLERANCE)


def test_copies_and_files(begun: list[bool]) -> None:
    fused, plain = network("channels_last")
    x = image("channels_last")
    settled(fused, plain, x, begun)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        settled(twin, plain, x, begun)
    assert pickle.loads(pickle.dumps(Concatenation("name", True))).grows


@each_format
def test_a_part_of_a_larger_tensor_gives_the_bits_of_a_copy(format: str) -> None:
    """Few pixels, few filters and many of both."""
    module: Any = native.module
    last = format == "channels_last"
    for geometry in (
        pointwise(2, 21, (7, 9), 40),
        pointwise(3, 16, (8, 8), 33, stride=(2, 1)),
        pointwise(2, 40, (12, 12), 3),
        pointwise(4, 33, (1, 1), 40),
        pointwise(1, 600, (6, 6), 700),
    ):
        case = Case("pointwise", geometry, After("relu"), (last, last))
        channels = geometry.channels + 11
        whole = torch.randn(geometry.batch, channels, *geometry.size)
        whole = whole.contiguous(memory_format=FORMATS[format])
        whole[:, : geometry.channels] = case.x
        scale, shift = torch.randn(geometry.channels), torch.randn(geometry.channels)
        prepared = case.launch.prepare("pointwise", case.w, keep=True)
        results = []
        for x, count in ((case.x, 0), (whole, channels)):
            y = torch.empty_strided(
                case.launch.pool_launch.y_shape, case.launch.pool_launch.y_strides
            )
            module.conv_act_pool2d_forward(
                *("pointwise", case.launch.native, x.data_ptr(), case.w.data_ptr()),
                *(0 if prepared is None else prepared.data_ptr(), case.bias.data_ptr()),
                *(y.data_ptr(), 0, 0, 2, 0, scale.data_ptr(), shift.data_ptr()),
                x_channels=count,
            )
            results.append(y)
        assert torch.equal(*results)


@pytest.mark.parametrize("channels", [-1, 20, 1 << 60])
def test_native_calls_refuse_channels_that_cannot_be(channels: int) -> None:
    module: Any = native.module
    case = Case("pointwise", pointwise(2, 21, (7, 9), 40), After("relu"))
    pointer = torch.randn(40 * 21).data_ptr()
    with pytest.raises(ValueError, match="x_channels"):
        module.conv_act_pool2d_forward(
            *("pointwise", case.launch.native, *([pointer] * 5), 0, 0, 1), x_channels=channels
        )


def test_native_calls_of_other_algorithms_refuse_them() -> None:
    module: Any = native.module
    case = Case("patches", pointwise(2, 21, (7, 9), 40), After("relu"))
    pointer = torch.randn(40 * 21).data_ptr()
    with pytest.raises(ValueError, match="x_channels"):
        module.conv_act_pool2d_forward(
            *("patches", case.launch.native, *([pointer] * 5), 0, 0, 1), x_channels=40
        )
