"""The native implicit matrix product, on the processor's matrix unit or on the plain code that
stands for one: exact cases bit by bit, others against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from crossmedia_fast.ops.conv_act_pool.conv_cost import Sizes
from crossmedia_fast.ops.conv_act_pool.plan import matrix_unit_gain, why_not_by_cost

from .conv_native_launch import (
    FORMAT_IDS,
    FORMATS,
    NEEDS_NATIVE,
    After,
    Case,
    Geometry,
    assert_same,
    fits,
    threads,
)
from .tolerances import VALUES, assert_within

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]


# windows that are one run of elements and windows of blocks of channels; one tile of filters and
# panels; strides with one phase and several, paddings that neighbouring rows share and that they
# don't; images smaller and larger than a tile
GEOMETRIES = [
    Geometry(2, 32, 32, (14, 14), (3, 3), padding=(1, 1)),
    Geometry(1, 64, 17, (9, 11), (1, 1)),
    Geometry(2, 33, 70, (8, 7), (1, 1), (2, 3)),
    Geometry(1, 40, 16, (9, 9), (3, 3), (2, 2), (1, 1)),
    Geometry(1, 35, 48, (10, 13), (4, 4), (2, 2), (1, 1)),
    Geometry(1, 34, 33, (13, 12), (3, 2), (1, 1), (2, 0), (2, 3)),
    Geometry(1, 33, 20, (12, 15), (3, 3), (2, 2), (4, 4), (3, 2)),
    Geometry(2, 48, 33, (3, 3), (3, 3), (1, 1), (2, 2)),
    Geometry(1, 32, 5, (6, 130), (3, 5), (3, 1), (0, 2)),
    Geometry(1, 3, 64, (15, 18), (7, 7), (2, 2), (3, 3)),
    Geometry(2, 1, 6, (12, 12), (5, 5), padding=(2, 2)),
    Geometry(1, 3, 40, (23, 21), (11, 11), (4, 4), (2, 2)),
    Geometry(2, 12, 31, (7, 9), (3, 3), (1, 2), (1, 3)),
]
AFTER = [
    After("identity"),
    After("leaky_relu", 0.25),
    After("silu"),
    After("relu", pool="max", size=2),
    After("tanh", pool="max", size=(3, 2), stride=(2, 1), padding=1),
    After("leaky_relu", 0.25, pool="avg", size=2, padding=1, count_include_pad=False),
]


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_exact_values(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    """Also that nothing is read or written beside the tensors."""
    for after in AFTER:
        if not fits("implicit_gemm", geometry, after):
            continue
        case = Case("implicit_gemm", geometry, after, formats, exact=True)
        for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
            assert_same(ours, theirs)
        assert_same(case.guarded_forward(), case.forward()[0])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_values(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    for bias in (True, False):
        case = Case("implicit_gemm", geometry, After("identity"), formats, bias=bias)
        assert_within(case.forward()[0], case.reference(), VALUES[torch.float32])


def test_rounds_no_more_than_float32_does() -> None:
    """Six products of parts lose less than 2^-24 of each product: what is left is the rounding of
    the sums, and one of 288 terms in any order is within 6 times what PyTorch's differs by. Three
    products, or parts in the wrong order, would be off by 2^-17: fifty times as much."""
    case = Case("implicit_gemm", GEOMETRIES[0], After("identity"))
    exact = case.reference()
    theirs = case.convolve(case.x, case.w, case.bias)
    ours = case.forward()[0]
    assert (ours - exact).pow(2).mean() < 36 * (theirs - exact).pow(2).mean()


def test_values_of_any_size() -> None:
    """Parts are cut at any exponent; beside the smallest normal numbers the last one is lost."""
    for scale in (2.0**-80, 2.0**60):
        case = Case("implicit_gemm", GEOMETRIES[1], After("identity"), bias=False)
        case.x = case.x * scale
        assert_within(case.forward()[0] / scale, case.reference() / scale, VALUES[torch.float32])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_nan_and_infinity_reach_what_they_reach(formats: tuple[bool, bool]) -> None:
    for geometry in (GEOMETRIES[0], GEOMETRIES[5], GEOMETRIES[10]):
        for after in AFTER:
            case = Case("implicit_gemm", geometry, after, formats, exact=True)
            case.x[0, 0, 4, 5] = float("nan")
            case.x[0, -1, 0, 10] = float("inf")
            case.x[-1, 0, 11, 7] = -float("inf")
            for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
                assert_same(ours, theirs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.finfo(torch.float32).max])
def test_weights_of_any_value(value: float) -> None:
    case = Case("implicit_gemm", GEOMETRIES[1], After("identity"), exact=True)
    case.w[3, 2] = value
    case.x[0, 2, 4:] = 0
    assert_same(case.forward()[0], case.unfused(False)[0])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    geometries = (
        Geometry(3, 40, 100, (37, 25), (3, 3), padding=(1, 1)),
        Geometry(1, 300, 500, (5, 7), (1, 1)),
        Geometry(5, 64, 32, (4, 4), (3, 3), padding=(1, 1)),
    )
    for geometry in geometries:
        case = Case("implicit_gemm", geometry, AFTER[3], formats)
        results = []
        for count in (1, 2, 5):
            with threads(count):
                prepared = case.launch.prepare("implicit_gemm", case.w, keep=False)
                assert prepared is not None
                size = case.launch.prepared_size("implicit_gemm", keep=False)
                results.append((case.forward()[0], prepared[:size].view(torch.int32).clone()))
        for y, prepared in results[1:]:
            assert torch.equal(y, results[0][0])
            assert torch.equal(prepared, results[0][1])


def test_weights_that_are_kept_fit_every_call_on_them() -> None:
    w = torch.randn(40, 40, 3, 3)
    for dilation in ((1, 1), (2, 1)):
        for formats in FORMATS * 2:
            geometry = Geometry(1, 40, 40, (9, 7), (3, 3), dilation=dilation)
            case = Case("implicit_gemm", geometry, AFTER[1], formats)
            case.w = w
            assert_within(case.forward()[0], case.reference(), VALUES[torch.float32])


def test_an_empty_batch() -> None:
    geometry = dataclasses.replace(GEOMETRIES[1], batch=0)
    assert case_shape(geometry) == (0, 17, 9, 11)


def case_shape(geometry: Geometry) -> tuple[int, ...]:
    return tuple(Case("implicit_gemm", geometry, After()).forward()[0].shape)


@pytest.mark.parametrize(
    ("geometry", "after", "reason"),
    [
        (Geometry(1, 4, 4, (5, 5), (1, 1), groups=2), After(), "group"),
        (Geometry(1, 4, 4, (33, 33), (33, 33)), After(), "taps"),
        (Geometry(1, 4, 4, (20, 20), (1, 1)), After(pool="max", size=16), "255"),
        (Geometry(1, 4000, 1, (1, 1), (3, 3), padding=(4000, 4000)), After(), "MiB"),
    ],
    ids=["groups", "taps", "window", "size"],
)
def test_refuses(geometry: Geometry, after: After, reason: str) -> None:
    case = Case("implicit_gemm", dataclasses.replace(geometry, batch=0), after)
    assert reason in case.launch.refusal("implicit_gemm")
    with pytest.raises(ValueError, match=reason):
        case.launch.prepare("implicit_gemm", case.w, keep=False)


def refusal(
    w: tuple[int, ...],
    size: int,
    stride: int = 1,
    precision: str = "high",
    takes: tuple[str, ...] = ("winograd", "implicit_gemm"),
    unit: bool = True,
) -> str:
    x_shape, z_shape = (4, w[1], size * stride, size * stride), (4, w[0], size, size)
    sizes = Sizes(x_shape, w, z_shape, (stride, stride))
    why = why_not_by_cost(sizes, precision, False, False, False, takes, unit)
    return why["implicit_gemm"]


def test_is_chosen_where_it_saves_most() -> None:
    others = ("implicit_gemm",)
    assert "matrix unit" in refusal((256, 256, 3, 3), 28, unit=False)
    assert "Winograd" in refusal((256, 256, 3, 3), 28)
    assert "few input channels" in refusal((64, 3, 7, 7), 56, takes=("few_channels",))
    assert "positions" in refusal((256, 256, 3, 3), 4, takes=others)
    assert "1×1" in refusal((1000, 512, 1, 1), 20, takes=("pointwise", *others))
    assert "saves too little" in refusal((4, 64, 3, 3), 56, takes=others)
    assert refusal((256, 256, 3, 3), 28, takes=others) == ""
    assert refusal((256, 256, 3, 3), 28, precision="highest") == ""


def test_gain_counts_what_fills_no_tile() -> None:
    assert matrix_unit_gain((33, 64, 3, 3), (1, 1)) < matrix_unit_gain((64, 64, 3, 3), (1, 1))
    assert matrix_unit_gain((64, 33, 3, 3), (1, 1)) < matrix_unit_gain((64, 64, 3, 3), (1, 1))
    assert 1.4 < matrix_unit_gain((256, 256, 3, 3), (1, 1)) < 16 / 9
