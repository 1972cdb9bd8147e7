"""The native 1x1 convolution: exact cases bit by bit, others against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

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


def pointwise(
    batch: int,
    channels: int,
    size: tuple[int, int],
    filters: int,
    stride: tuple[int, int] = (1, 1),
) -> Geometry:
    return Geometry(batch, channels, filters, size, (1, 1), stride)


# one and two vectors of every instruction set and their neighbours, for channels, filters and
# pixels; images that fill no tile, and tiles across several images
GEOMETRIES = [
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
    pointwise(1, 20, (4, 300), 1),
]
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
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_exact_cases_have_the_bits_of_the_unfused(
    geometry: Geometry, formats: tuple[bool, bool]
) -> None:
    tried = 0
    for after in AFTER:
        if not fits("pointwise", geometry, after):
            continue
        for save in (False, True):
            case = Case("pointwise", geometry, after, formats, exact=True, bias=save)
            for ours, theirs in zip(case.forward(save), case.unfused(save), strict=True):
                assert_same(ours, theirs)
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_matches_float64_and_touches_nothing_else(
    geometry: Geometry, formats: tuple[bool, bool]
) -> None:
    for after in AFTER[:5]:
        if fits("pointwise", geometry, after):
            case = Case("pointwise", geometry, after, formats)
            assert_within(case.guarded_forward(), case.reference(), VALUES[torch.float32])


def test_the_average_of_whole_planes() -> None:
    after = After("relu", pool="avg", size=13, stride=13)
    for formats in FORMATS:
        case = Case("pointwise", pointwise(2, 96, (13, 13), 70), after, formats)
        assert_within(case.guarded_forward(), case.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    for geometry in (pointwise(3, 68, (37, 25), 100), pointwise(1, 300, (5, 7), 500)):
        for after in AFTER[1:5]:
            case = Case("pointwise", geometry, after, formats)
            results = []
            for count in (1, 2, 5):
                with threads(count):
                    results.append(case.forward()[0])
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_prepares_the_same_weights(formats: tuple[bool, bool]) -> None:
    case = Case("pointwise", pointwise(2, 300, (9, 10), 333), AFTER[1], formats)
    results = []
    for count in (1, 3):
        with threads(count):
            prepared = case.launch.prepare("pointwise", case.w, keep=False)
            assert prepared is not None
            results.append(prepared.clone())
    size = case.launch.prepared_size("pointwise", keep=False)
    assert torch.equal(results[0][:size], results[1][:size])


def test_weights_that_are_kept_fit_every_call_on_them() -> None:
    w = torch.randn(40, 40, 1, 1)
    for after in (AFTER[1], AFTER[4]):
        for formats in FORMATS * 2:
            case = Case("pointwise", pointwise(1, 40, (6, 7), 40), after, formats)
            case.w = w
            assert_within(case.forward()[0], case.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_nan_and_infinity_reach_what_they_reach(formats: tuple[bool, bool]) -> None:
    for after in AFTER:
        case = Case("pointwise", pointwise(1, 18, (12, 11), 37), after, formats, exact=True)
        case.x[0, 3, 4, 5] = float("nan")
        case.x[0, 4, 0, 10] = float("inf")
        case.x[0, 17, 11, 7] = -float("inf")
        for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_large_outputs_are_stored_another_way(channels_last: bool) -> None:
    geometry = pointwise(2, 16, (144, 128), 64)
    case = Case("pointwise", geometry, After("relu"), (channels_last, channels_last))
    assert_within(case.forward()[0], case.reference(), VALUES[torch.float32])


def test_an_empty_batch() -> None:
    case = Case("pointwise", dataclasses.replace(pointwise(1, 4, (5, 5), 6), batch=0), After())
    assert case.forward()[0].shape == (0, 6, 5, 5)


@pytest.mark.parametrize(
    ("geometry", "after", "reason"),
    [
        (Geometry(1, 4, 4, (5, 5), (1, 1), groups=2), After(), "group"),
        (Geometry(1, 4, 4, (5, 5), (3, 3)), After(), "1x1"),
        (Geometry(1, 4, 4, (5, 5), (1, 1), padding=(1, 1)), After(), "padding"),
        (pointwise(1, 4, (20, 20), 4), After(pool="max", size=16), "255"),
    ],
    ids=["groups", "kernel", "padding", "window"],
)
def test_refuses(geometry: Geometry, after: After, reason: str) -> None:
    case = Case("pointwise", geometry, after)
    assert reason in case.launch.refusal("pointwise")
    with pytest.raises(ValueError, match=reason):
        case.forward()
