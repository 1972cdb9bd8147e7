"""The native transposed convolutions: exact values, what they write, and what they refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import transposed
from crossmedia_fast.ops.conv_act_pool.arguments import Pool2d, check_pool
from crossmedia_fast.ops.conv_act_pool.kernels import launch_for
from crossmedia_fast.ops.conv_act_pool.reference import act_pool2d
from crossmedia_fast.ops.conv_act_pool.transposed import TransposedLaunch

from .conv_native_launch import GUARD, NEEDS_NATIVE
from .tolerances import VALUES, WINOGRAD, assert_within

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' problems are small: PyTorch may be faster."""
    monkeypatch.setattr(transposed, "LEAST_GAIN", 0.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """conv_transpose2d of x [N, C, H, W] by w [C, K, R, S]."""

    x: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return "-".join(
            "x".join(map(str, part))
            for part in (self.x, (self.filters,), self.kernel, self.stride, self.padding)
        )

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.x[1], self.filters, *self.kernel)

    def launch(self, channels_last: bool) -> TransposedLaunch:
        geometry: Any = self.stride, self.padding, self.output_padding, channels_last
        return TransposedLaunch(self.x, self.w_shape, *geometry, kept=True)

    def operands(self, channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Multiples of 1/4 below 2: every sum is exact in float32, in any order."""
        generator = torch.Generator().manual_seed(0)
        sizes = self.x, self.w_shape, (self.filters,)
        x, w, bias = (torch.randint(-7, 8, s, generator=generator) / 4 for s in sizes)
        format = torch.channels_last if channels_last else torch.contiguous_format
        return x.contiguous(memory_format=format), w, bias

    def expected(self, x: Tensor, w: Tensor, bias: Tensor | None, act: Pool2d) -> Tensor:
        b = None if bias is None else bias.double()
        y = F.conv_transpose2d(
            x.double(), w.double(), b, self.stride, self.padding, self.output_padding
        )
        return act_pool2d(y, act)


def activation(name: str, param: float | None = None) -> Pool2d:
    return check_pool(name, param, "none", 2, None, 0, False, True)


# Without overlaps: a line shorter than a tile and longer than a chunk's, several lines of a panel
# of planes, one column, one row, one pixel; patches of one row, of one column, of 2 and 3 columns;
# filters and channels that fill no vector, several panels
PATCHES = [
    Case((2, 33, 9, 7), 40, (2, 2), (2, 2)),
    Case((1, 48, 3, 300), 64, (2, 2), (2, 2)),
    Case((2, 5, 6, 18), 70, (3, 1), (3, 1)),
    Case((3, 17, 7, 1), 24, (4, 4), (4, 4)),
    Case((2, 20, 1, 19), 9, (5, 2), (1, 2)),
    Case((5, 100, 1, 1), 37, (4, 4), (1, 1)),
    Case((16, 16, 1, 1), 3, (3, 2), (2, 5)),
    Case((1, 19, 8, 11), 16, (3, 3), (3, 3)),
    Case((1, 300, 4, 4), 33, (1, 3), (1, 3)),
    Case((1, 64, 5, 5), 50, (1, 1), (1, 1)),
]
FEW = [
    Case((2, 32, 12, 5), 3, (4, 4), (2, 2), (1, 1)),
    Case((2, 20, 6, 7), 1, (5, 5), (2, 2), (2, 2), (1, 1)),
]
WINOGRADS = [
    Case((3, 40, 4, 4), 37, (4, 4), (2, 2), (1, 1)),
    Case((2, 33, 13, 6), 17, (3, 3), (1, 1), (1, 1)),
    Case((2, 16, 9, 10), 16, (3, 3), (2, 2), (1, 1), (1, 1)),
]
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "last"])
ACTIVATIONS = [activation("identity"), activation("leaky_relu", 0.25), activation("tanh")]


def check(case: Case, y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, act: Pool2d) -> None:
    """Exact where no transform and no function rounds; Winograd's error is relative to the largest
    sum, and no activation here is steeper than 1."""
    expected = case.expected(x, w, bias, act)
    tolerance, scale = 0.0, None
    if case in WINOGRADS:
        tolerance = WINOGRAD[max(case.kernel)]
        scale = float(case.expected(x, w, bias, ACTIVATIONS[0]).abs().max())
    elif act.activation == "tanh":
        tolerance = VALUES[torch.float32]
    assert_within(y, expected, tolerance, scale)


@pytest.mark.parametrize("case", [*PATCHES, *FEW, *WINOGRADS], ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda a: a.activation)
@LAYOUTS
def test_values(case: Case, act: Pool2d, channels_last: bool) -> None:
    launch = case.launch(channels_last)
    names = {"patches": PATCHES, "few_channels": FEW, "winograd": WINOGRADS}
    assert case in names[launch.algorithm]
    x, w, bias = case.operands(channels_last)
    for b in (bias, None):
        y = launch.forward(x, w, b, act)
        check(case, y, x, w, b, act)
        # weights that were prepared before, in another format, and by any number of threads
        for weights in (w, w.contiguous(memory_format=torch.channels_last)):
            assert torch.equal(launch.forward(x, weights, b, act, keep=True), y)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("case", [*PATCHES, *FEW, *WINOGRADS], ids=str)
@LAYOUTS
def test_the_same_bits_for_any_number_of_threads(
    case: Case, channels_last: bool, threads: int
) -> None:
    # large enough for each kernel to use them
    case = dataclasses.replace(case, x=(case.x[0] * 8, *case.x[1:]))
    launch = case.launch(channels_last)
    _, w, bias = case.operands(channels_last)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.x, generator=generator)
    w = torch.randn(w.shape, generator=generator)
    y = launch.forward(x, w, bias, ACTIVATIONS[1])
    torch.set_num_threads(threads)
    assert torch.equal(launch.forward(x, w, bias, ACTIVATIONS[1]), y)
    assert torch.equal(launch.forward(x, w.clone(), bias, ACTIVATIONS[1], keep=True), y)


@pytest.mark.parametrize("case", [*PATCHES, *FEW, *WINOGRADS], ids=str)
@LAYOUTS
def test_memory_around_the_output_stays(case: Case, channels_last: bool) -> None:
    launch = case.launch(channels_last)
    x, w, bias = case.operands(channels_last)
    write = launch.writer(w, bias, ACTIVATIONS[1], keep=False)
    count = torch.Size(launch.y_shape).numel()
    for offset in (16, 17):  # aligned and not
        memory = torch.full((count + 64,), GUARD)
        y = memory.as_strided(launch.y_shape, launch.y_strides, offset)
        write(x, y)
        check(case, y, x, w, bias, ACTIVATIONS[1])
        assert torch.all(memory[:offset] == GUARD)
        assert torch.all(memory[offset + count :] == GUARD)


@pytest.mark.parametrize("case", PATCHES, ids=str)
@pytest.mark.parametrize("before", [0, 3, 32])
def test_some_channels_of_a_larger_tensor(case: Case, before: int) -> None:
    launch = case.launch(True)
    x, w, bias = case.operands(True)
    N, K, H, W = launch.y_shape
    whole = torch.full((N, before + K + 5, H, W), GUARD).contiguous(
        memory_format=torch.channels_last
    )
    write = launch.writer(w, bias, ACTIVATIONS[1], keep=False)
    part = whole.narrow(1, before, K)
    write(x, part, whole.shape[1])
    assert torch.equal(part.double(), case.expected(x, w, bias, ACTIVATIONS[1]))
    assert torch.all(whole[:, :before] == GUARD)
    assert torch.all(whole[:, before + K :] == GUARD)


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "last"])
def test_outputs_past_the_caches(channels_last: bool) -> None:
    """More than 8 MiB."""
    case = Case((1, 16, 160, 160), 32, (2, 2), (2, 2))
    launch = case.launch(channels_last)
    x, w, bias = case.operands(channels_last)
    assert torch.equal(
        launch.forward(x, w, bias, ACTIVATIONS[1]).double(),
        case.expected(x, w, bias, ACTIVATIONS[1]),
    )


@pytest.mark.parametrize("case", PATCHES[:1] + PATCHES[5:6], ids=str)
@LAYOUTS
def test_what_is_not_finite_stays_in_its_patch(case: Case, channels_last: bool) -> None:
    launch = case.launch(channels_last)
    x, w, bias = case.operands(channels_last)
    x[0, 1, 0, 0] = float("nan")
    x[1, 2, 0, 0] = float("inf")
    expected = case.expected(x, w, bias, ACTIVATIONS[0])
    y = launch.forward(x, w, bias, ACTIVATIONS[0]).double()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.to(torch.float32).double().nan_to_num())


def arguments(launch: TransposedLaunch) -> dict[str, Any]:
    output: Any = launch_for(
        "cpu", launch.y_shape, torch.float32, launch.channels_last, ACTIVATIONS[1]
    )
    return {
        "algorithm": launch.algorithm,
        "problem": launch.adjoint.native,
        "output": output.native,
        "x": 64,
        "w": 64,
        "prepared": 0,
        "prepared_size": 0,
        "bias": 0,
        "y": 64,
        "threads": 1,
    }


@pytest.mark.parametrize("case", [PATCHES[0], FEW[0], WINOGRADS[0]], ids=str)
def test_the_native_call_checks_what_it_is_given(case: Case) -> None:
    module: Any = native.module
    launch = case.launch(True)
    good = arguments(launch)
    size = launch.prepared_size
    small: Any = launch_for("cpu", (1, 2, 3, 4), torch.float32, True, ACTIVATIONS[1])
    planes: Any = launch_for("cpu", launch.y_shape, torch.float32, False, ACTIVATIONS[1])
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "unknown": ({"algorithm": "nothing"}, "unknown algorithm"),
        "no kernel": ({"algorithm": "depthwise"}, "no such kernel"),
        "null x": ({"x": 0}, "x must be an address"),
        "null w": ({"w": 0}, "w must be an address"),
        "null y": ({"y": 0}, "y must be an address"),
        "odd y": ({"y": 66}, "y must be aligned"),
        "odd bias": ({"bias": 65}, "bias must be aligned"),
        "size": ({"prepared": 64, "prepared_size": size - 1}, f"must have {size} elements"),
        "shape": ({"output": small.native}, "output must have"),
        "format": ({"output": planes.native}, "output must have"),
        "threads": ({"threads": 0}, "threads must be"),
        "pixel": ({"y_pixel": 2}, "y_pixel must be"),
    }
    for change, message in wrong.values():
        with pytest.raises(ValueError, match=message):
            module.conv_transposed2d_forward(**{**good, **change})
    with pytest.raises(ValueError, match=f"must have {size} elements"):
        module.conv_transposed2d_prepare(
            launch.algorithm, launch.adjoint.native, 64, 64, size + 1, 1
        )
    if launch.algorithm != "patches":
        with pytest.raises(ValueError, match="dense tensors"):
            module.conv_transposed2d_forward(**good, y_pixel=1000)


def test_what_overlaps_has_no_patches() -> None:
    module: Any = native.module
    problem = WINOGRADS[0].launch(True).adjoint.native
    assert "neither overlap" in module.conv_transposed2d_refusal("patches", problem)
    # but a gradient, of the convolution whose adjoint it is
    assert module.conv_act_pool2d_refusal("patches", problem, True) == ""
