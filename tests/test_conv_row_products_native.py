"""The native convolutions of packed pixels and of packed patches: exact cases bit by bit, others
against float64."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import crossmedia_fast as cmf

from .conv_native_launch import (
    FORMAT_IDS,
    FORMATS,
    NEEDS_NATIVE,
    After,
    Case,
    Geometry,
    as_format,
    assert_same,
    fits,
    pointwise,
    threads,
)
from .tolerances import VALUES, assert_within

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]


# one and two vectors of every instruction set and their neighbours, for channels, filters and
# pixels; images that fill no tile, and tiles across several images; pixels that would share sets of
# a cache; at last filters so few that lanes are pixels or channels
POINTWISE = [
    pointwise(2, 16, (9, 9), 16),
    pointwise(1, 5, (3, 2), 3),
    pointwise(3, 37, (6, 7), 33),
    pointwise(1, 48, (11, 17), 31, stride=(2, 2)),
    pointwise(2, 17, (12, 5), 65, stride=(1, 3)),
    pointwise(1, 3, (20, 21), 48),
    pointwise(2, 130, (7, 7), 20),
    pointwise(1, 1, (5, 40), 17),
    pointwise(1, 64, (3, 3), 100),
    pointwise(4, 33, (1, 1), 40),
    pointwise(1, 1024, (3, 5), 20),
    pointwise(1, 1100, (9, 9), 700),  # filters that no second cache keeps, sums by blocks
    pointwise(2, 620, (23, 25), 450),  # and many pixels
    pointwise(1, 20, (4, 300), 1),
    pointwise(2, 9, (40, 41), 1),
    pointwise(2, 37, (9, 13), 2),
    pointwise(1, 70, (11, 17), 3),
    pointwise(3, 16, (5, 6), 4),
    Geometry(2, 48, 72, (9, 7), (1, 1), groups=3),
    Geometry(1, 34, 100, (5, 40), (1, 1), groups=2),
]
# runs of taps, and taps apart; borders that cut runs anywhere; strides below and above the kernel
PATCHES = [
    Geometry(2, 16, 33, (9, 8), (3, 3), padding=(1, 1)),
    Geometry(1, 5, 3, (6, 7), (2, 3), (1, 2), (1, 2)),
    Geometry(3, 3, 40, (16, 24), (8, 8), (8, 8)),
    Geometry(1, 7, 31, (11, 13), (3, 3), (2, 2), (1, 1), (2, 3)),
    Geometry(2, 24, 65, (5, 17), (1, 7), padding=(0, 3)),
    Geometry(2, 3, 33, (6, 150), (2, 16), (2, 5), (1, 3)),  # rows of taps fill a vector
    Geometry(1, 5, 20, (11, 13), (3, 9), padding=(2, 4), dilation=(2, 1)),
    Geometry(1, 130, 20, (7, 7), (3, 2), (2, 1), (1, 0)),
    Geometry(2, 1, 17, (12, 9), (5, 5), (3, 1), (2, 4)),
    Geometry(1, 20, 1, (4, 3), (4, 5), padding=(3, 4)),  # every patch is cut
    Geometry(1, 6, 36, (5, 6), (2, 2), (4, 3), (3, 3)),  # patches of padding alone
    Geometry(2, 33, 48, (9, 9), (3, 3), padding=(4, 4), dilation=(4, 4)),
    Geometry(1, 180, 35, (5, 6), (3, 3), padding=(1, 1)),  # sums by pieces of a run
    Geometry(1, 70, 20, (9, 4), (5, 2), padding=(2, 0)),  # and of several
    Geometry(1, 300, 130, (5, 6), (3, 3), padding=(1, 1)),  # filters that no cache keeps
    Geometry(1, 160, 230, (4, 5), (3, 3), (2, 2), (3, 3)),  # blocks of padding alone
    pointwise(2, 37, (6, 7), 33, stride=(2, 1)),
]
ALL = [("pointwise", geometry) for geometry in POINTWISE]
ALL += [("patches", geometry) for geometry in PATCHES]
each = pytest.mark.parametrize(
    ("algorithm", "geometry"), ALL, ids=[f"{name}-{geometry}" for name, geometry in ALL]
)
AFTER = [
    After("identity"),
    After("relu"),
    After("leaky_relu", 0.25),
    After("silu"),
    After("relu", pool="max", size=2),
    After("tanh", pool="max", size=(3, 2), stride=(2, 1), padding=1),
    After("gelu", pool="max", size=2, ceil_mode=True),
    After("leaky_relu", 0.25, pool="avg", size=2, padding=1, count_include_pad=False),
    After("relu6", pool="avg", size=3, stride=2),
]


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@each
def test_exact_cases_have_the_bits_of_the_unfused(
    algorithm: str, geometry: Geometry, formats: tuple[bool, bool]
) -> None:
    tried = 0
    for after in AFTER:
        if not fits(algorithm, geometry, after):
            continue
        for save in (False, True):
            case = Case(algorithm, geometry, after, formats, exact=True, bias=save)
            for ours, theirs in zip(case.forward(save), case.unfused(save), strict=True):
                assert_same(ours, theirs)
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@each
def test_matches_float64_and_touches_nothing_else(
    algorithm: str, geometry: Geometry, formats: tuple[bool, bool]
) -> None:
    for after in AFTER[:5]:
        if fits(algorithm, geometry, after):
            case = Case(algorithm, geometry, after, formats)
            assert_within(case.guarded_forward(), case.reference(), VALUES[torch.float32])


def test_the_average_of_whole_planes() -> None:
    after = After("relu", pool="avg", size=13, stride=13)
    for formats in FORMATS:
        case = Case("pointwise", pointwise(2, 96, (13, 13), 70), after, formats)
        assert_within(case.guarded_forward(), case.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    for algorithm, geometry in (
        ("pointwise", pointwise(3, 68, (37, 25), 100)),
        ("pointwise", pointwise(1, 300, (5, 7), 500)),
        ("pointwise", pointwise(1, 1100, (9, 9), 700)),
        ("pointwise", pointwise(3, 68, (37, 25), 3)),
        ("pointwise", Geometry(3, 150, 200, (13, 7), (1, 1), groups=5)),
        ("patches", Geometry(3, 40, 70, (37, 25), (3, 3), (2, 2), (1, 1))),
        ("patches", Geometry(1, 100, 300, (5, 7), (3, 3), padding=(1, 1))),
    ):
        for after in AFTER[1:5]:
            case = Case(algorithm, geometry, after, formats)
            results = []
            for count in (1, 2, 5):
                with threads(count):
                    results.append(case.forward()[0])
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])


# one vector of filters and several, frames of one row and of many, of padding alone
GROUPED = [
    Geometry(2, 48, 48, (9, 7), (3, 3), padding=(1, 1), groups=3),
    Geometry(1, 64, 128, (14, 14), (3, 3), (2, 2), (1, 1), groups=2),
    Geometry(3, 51, 63, (6, 17), (2, 5), (1, 3), (0, 2), groups=3),
    Geometry(1, 40, 100, (5, 4), (3, 3), (2, 1), (4, 3), groups=2),
    Geometry(2, 32, 34, (30, 120), (3, 3), padding=(1, 1), groups=2),
    Geometry(1, 32, 64, (4, 600), (4, 4), (2, 2), (1, 1), groups=2),
    Geometry(2, 96, 64, (7, 5), (1, 1), (2, 2), groups=4),
]
LAST = (True, True)


@pytest.mark.parametrize("geometry", GROUPED, ids=str)
def test_groups_in_channels_last(geometry: Geometry) -> None:
    for after in AFTER[:4]:
        for save in (False, True):
            exact = Case("patches", geometry, after, LAST, exact=True, bias=save)
            for ours, theirs in zip(exact.forward(save), exact.unfused(save), strict=True):
                assert_same(ours, theirs)
        case = Case("patches", geometry, after, LAST)
        assert_within(case.guarded_forward(), case.reference(), VALUES[torch.float32])
        expected = case.forward()[0]
        for count in (2, 5):
            with threads(count):
                assert torch.equal(case.forward()[0], expected)
        for w in (case.w, as_format(case.w, True)):
            operands = "patches", case.x, w, case.bias, False
            assert torch.equal(case.launch.forward(*operands, keep=False)[0], expected)


def test_groups_that_are_not_finite() -> None:
    case = Case("patches", GROUPED[0], AFTER[1], LAST, exact=True)
    case.x[0, 3, 4, 5] = float("nan")
    case.x[1, 40, 0, 6] = -float("inf")
    for ours, theirs in zip(case.forward(), case.unfused(False), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_prepares_the_same_weights(formats: tuple[bool, bool]) -> None:
    for algorithm, geometry in (
        ("pointwise", pointwise(2, 300, (9, 10), 333)),
        ("patches", Geometry(2, 50, 333, (9, 10), (3, 2))),
    ):
        case = Case(algorithm, geometry, AFTER[1], formats)
        results = []
        for count in (1, 3):
            with threads(count):
                prepared = case.launch.prepare(algorithm, case.w.clone(), keep=True)
                assert prepared is not None
                results.append(prepared.clone())
        size = case.launch.prepared_size(algorithm, keep=True)
        assert torch.equal(results[0][:size], results[1][:size])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_weights_that_are_not_kept_give_the_same(formats: tuple[bool, bool]) -> None:
    for geometry in PATCHES[4:6]:
        case = Case("patches", geometry, AFTER[1], formats)
        kept, _, _ = case.forward()
        for w in (case.w, as_format(case.w, True)):
            operands = "patches", case.x, w, case.bias, False
            assert torch.equal(case.launch.forward(*operands, keep=False)[0], kept)


def test_weights_that_are_kept_fit_every_call_on_them() -> None:
    for algorithm, kernel in (("pointwise", (1, 1)), ("patches", (2, 3)), ("patches", (1, 8))):
        w = torch.randn(40, 40, *kernel)
        for after, formats in itertools.product((AFTER[1], AFTER[4]), FORMATS * 2):
            case = Case(algorithm, Geometry(1, 40, 40, (6, 11), kernel), after, formats)
            case.w = w
            assert_within(case.forward()[0], case.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_nan_and_infinity_reach_what_they_reach(formats: tuple[bool, bool]) -> None:
    one, three = pointwise(1, 18, (12, 11), 37), Geometry(1, 18, 37, (12, 11), (3, 3))
    both = ("pointwise", one), ("patches", dataclasses.replace(three, padding=(1, 1)))
    for after, (algorithm, geometry) in itertools.product(AFTER, both):
        case = Case(algorithm, geometry, after, formats, exact=True)
        case.x[0, 3, 4, 5] = float("nan")
        case.x[0, 4, 0, 10] = float("inf")
        case.x[0, 17, 11, 7] = -float("inf")
        for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("algorithm", ["pointwise", "patches"])
def test_large_outputs_are_stored_another_way(
    algorithm: str, channels_last: bool, activation: str
) -> None:
    geometry = pointwise(2, 16, (144, 128), 64)
    case = Case(algorithm, geometry, After(activation), (channels_last, channels_last))
    assert_within(case.forward()[0], case.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("algorithm", ["pointwise", "patches"])
def test_an_empty_batch(algorithm: str) -> None:
    case = Case(algorithm, dataclasses.replace(pointwise(1, 4, (5, 5), 6), batch=0), After())
    assert case.forward()[0].shape == (0, 6, 5, 5)


@pytest.mark.parametrize(
    ("algorithm", "geometry", "after", "reason"),
    [
        ("pointwise", Geometry(1, 4, 4, (5, 5), (1, 1), groups=2), After(), "group"),
        ("pointwise", Geometry(1, 64, 64, (5, 5), (1, 1), (2, 2), groups=2), After(), "stride"),
        ("pointwise", Geometry(1, 4, 4, (5, 5), (3, 3)), After(), "1x1"),
        ("pointwise", Geometry(1, 4, 4, (5, 5), (1, 1), padding=(1, 1)), After(), "padding"),
        ("pointwise", pointwise(1, 4, (20, 20), 4), After(pool="max", size=16), "255"),
        ("patches", Geometry(1, 4, 4, (5, 5), (3, 3), groups=2), After(), "group"),
        ("patches", Geometry(1, 64, 64, (5, 5), (3, 3), groups=2), After(), "channels_last"),
        ("patches", pointwise(1, 4, (20, 20), 4), After(pool="max", size=16), "255"),
        ("patches", Geometry(1, 8192, 1, (32, 32), (32, 32)), After(), "smaller filters"),
    ],
    ids=[
        "groups",
        "stride",
        "kernel",
        "padding",
        "window",
        "groups of patches",
        "contiguous ones",
        "their window",
        "long",
    ],
)
def test_refuses(algorithm: str, geometry: Geometry, after: After, reason: str) -> None:
    case = Case(algorithm, geometry, after)
    assert reason in case.launch.refusal(algorithm)
    with pytest.raises(ValueError, match=reason):
        case.forward()


@pytest.mark.parametrize("needs_grad", [False, True])
def test_the_plan_takes_what_a_global_pooling_gives(needs_grad: bool) -> None:
    """The few positions of a squeeze and excitation, of one image too."""
    for images, channels, filters in ((4, 480, 20), (4, 28, 672), (1, 480, 120)):
        w = torch.randn(filters, channels, 1, 1, requires_grad=needs_grad)
        x = torch.randn(images, channels, 1, 1)
        assert cmf.explain(x, w, pool="none").algorithm == "pointwise"


def test_narrow_rows_leave_the_small_convolution_idle() -> None:
    w = torch.randn(8, 32, 1, 1)
    assert cmf.explain(torch.randn(4, 32, 1, 1), w, pool="none").algorithm == "direct"
    assert (
        cmf.explain(torch.randn(4, 320, 1, 1), torch.randn(80, 320, 1, 1), pool="none").algorithm
        != "direct"
    )


@pytest.mark.parametrize("needs_grad", [False, True])
def test_the_plan_takes_strided_groups_in_channels_last(needs_grad: bool) -> None:
    w = torch.randn(512, 16, 3, 3, requires_grad=needs_grad)
    for channels_last in (False, True):
        x = as_format(torch.randn(1, 512, 28, 28), channels_last)
        plan = cmf.explain(x, w, stride=2, padding=1, groups=32, pool="none")
        assert (plan.algorithm == "patches") == (channels_last and not needs_grad)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_the_plan_takes_contiguous_groups(needs_grad: bool) -> None:
    w = torch.randn(96, 24, 1, 1, requires_grad=needs_grad)
    for channels_last in (False, True):
        x = as_format(torch.randn(4, 96, 14, 14), channels_last)
        plan = cmf.explain(x, w, groups=4, pool="none")
        assert (plan.algorithm == "pointwise") != channels_last
