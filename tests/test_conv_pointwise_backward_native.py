"""The gradients of the native 1x1 convolution against float64."""

from __future__ import annotations

import pytest

from .conv_native_launch import (
    FORMAT_IDS,
    FORMATS,
    NEEDS_NATIVE,
    After,
    Case,
    Geometry,
    assert_gradients,
    assert_same,
    fits,
    random_dy,
    threads,
)

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]


def pointwise(
    batch: int,
    channels: int,
    size: tuple[int, int],
    filters: int,
    stride: tuple[int, int] = (1, 1),
) -> Geometry:
    return Geometry(batch, channels, filters, size, (1, 1), stride)


# channels and filters around a vector and a panel; images that share a chunk, and images of more;
# strides that leave rows and columns behind the last pixel; the last: filters in groups
GEOMETRIES = [
    pointwise(2, 16, (9, 9), 16),
    pointwise(1, 5, (3, 2), 3),
    pointwise(7, 37, (6, 7), 33),
    pointwise(1, 48, (11, 17), 31, stride=(2, 2)),
    pointwise(2, 17, (12, 5), 65, stride=(1, 3)),
    pointwise(5, 20, (5, 4), 18, stride=(3, 2)),
    pointwise(1, 3, (40, 41), 48),
    pointwise(1, 1, (5, 600), 17),
    pointwise(5, 33, (1, 1), 40),
    pointwise(1, 20, (4, 300), 1),
    pointwise(3, 260, (7, 7), 600),
]
AFTER = [
    After("identity"),
    After("relu"),
    After("leaky_relu", 0.25),
    After("tanh"),
    After("relu", pool="max", size=2),
    After("gelu", pool="max", size=(3, 2), stride=(2, 1), padding=1),
    After("leaky_relu", 0.25, pool="avg", size=2, padding=1, count_include_pad=False),
    After("identity", pool="avg", size=3, stride=2),
]


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_matches_float64(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    tried = 0
    for after in AFTER:
        if fits("pointwise", geometry, after):
            case = Case("pointwise", geometry, after, formats)
            dy = random_dy(case)
            assert_gradients(case, dy, case.backward(dy))
            tried += 1
    assert tried >= 4


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_touches_nothing_else(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    for after in (AFTER[1], AFTER[4]):
        if fits("pointwise", geometry, after):
            case = Case("pointwise", geometry, after, formats)
            dy = random_dy(case)
            for guarded, expected in zip(case.guarded_backward(dy), case.backward(dy), strict=True):
                assert_same(guarded, expected)


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    for geometry in (pointwise(3, 68, (37, 25), 100), pointwise(5, 300, (5, 7), 500)):
        for after in (AFTER[1], AFTER[4]):
            case = Case("pointwise", geometry, after, formats)
            dy = random_dy(case)
            results = []
            for count in (1, 2, 5):
                with threads(count):
                    results.append(case.backward(dy))
            for one, two, five in zip(*results, strict=True):
                assert_same(two, one)
                assert_same(five, one)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "geometry", [pointwise(2, 40, (9, 11), 50), pointwise(3, 260, (7, 7), 600)], ids=str
)
def test_only_the_gradients_that_are_needed(geometry: Geometry, channels_last: bool) -> None:
    case = Case("pointwise", geometry, After("tanh"), (channels_last,) * 2)
    dy = random_dy(case)
    full = case.backward(dy)
    for need in (
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, True, False),
    ):
        for j, part in enumerate(case.backward(dy, need)):
            assert_same(part, full[j] if need[j] else None)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_nan_and_infinity_reach_what_they_reach(channels_last: bool) -> None:
    case = Case(
        "pointwise", pointwise(2, 18, (12, 11), 37), After("identity"), (channels_last,) * 2
    )
    dy = random_dy(case)
    case.x[0, 3, 4, 5] = float("nan")
    case.x[0, 17, 11, 10] = float("inf")
    dy[1, 36, 11, 10] = float("nan")
    dy[1, 5, 0, 0] = float("inf")
    assert_gradients(case, dy, case.backward(dy))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_large_gradients_are_stored_another_way(channels_last: bool) -> None:
    geometry = pointwise(2, 64, (144, 128), 16)
    case = Case("pointwise", geometry, After("relu"), (channels_last,) * 2)
    dy = random_dy(case)
    assert_gradients(case, dy, case.backward(dy))


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (After("silu"), "convolution output"),
        (After("relu", pool="avg", size=3), "convolution output"),
    ],
    ids=["silu", "average"],
)
def test_refuses(after: After, reason: str) -> None:
    case = Case("pointwise", pointwise(1, 4, (6, 6), 4), after)
    assert case.launch.refusal("pointwise") == ""
    assert reason in case.launch.refusal("pointwise", True)
