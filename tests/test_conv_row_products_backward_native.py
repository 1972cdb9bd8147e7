"""The gradients of the native convolutions of pixels and of patches against float64."""

from __future__ import annotations

import pytest

from .conv_native_launch import (
    FORMAT_IDS,
    FORMATS,
    NEEDS_NATIVE,
    After,
    Case,
    Geometry,
    as_format,
    assert_gradients,
    assert_same,
    fits,
    pointwise,
    random_dy,
    threads,
)

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]


# channels and filters around a vector and a panel; images that share a chunk, and images of more;
# strides that leave rows and columns behind the last pixel; filters in several passes; groups
POINTWISE = [
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
    Geometry(3, 51, 57, (9, 8), (1, 1), groups=3),
    Geometry(2, 40, 72, (12, 20), (1, 1), groups=2),
]
# phases of strides with and without taps; padding beyond the filter's; borders in runs of taps;
# pixels around a chunk of them; one filter, and filters around a tile of products
PATCHES = [
    Geometry(2, 16, 33, (9, 8), (3, 3), padding=(1, 1)),
    Geometry(1, 5, 3, (6, 7), (2, 3), (1, 2), (1, 2)),
    Geometry(3, 3, 40, (16, 24), (8, 8), (8, 8)),
    Geometry(1, 7, 31, (11, 13), (3, 3), padding=(1, 1), dilation=(2, 3)),
    Geometry(2, 24, 65, (5, 17), (1, 7), padding=(0, 3)),
    Geometry(1, 130, 20, (7, 7), (3, 2), (2, 1), (1, 0)),
    Geometry(2, 1, 17, (12, 9), (5, 5), (3, 1), (2, 4)),
    Geometry(1, 20, 1, (4, 3), (4, 5), padding=(3, 6)),
    Geometry(1, 6, 36, (5, 6), (2, 2), (4, 3), (3, 3)),
    Geometry(5, 33, 48, (9, 9), (3, 3), (2, 2), (1, 1)),
    Geometry(3, 70, 9, (15, 15), (4, 4), (2, 2), (1, 1)),
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


def cases(geometry: Geometry, formats: tuple[bool, bool]) -> list[Case]:
    """Whatever may follow the convolution there."""
    if geometry in PATCHES:
        return [Case("patches", geometry, After("identity"), formats)]
    fitting = (after for after in AFTER if fits("pointwise", geometry, after))
    return [Case("pointwise", geometry, after, formats) for after in fitting]


ALL = [(g, formats) for g in POINTWISE for formats in FORMATS]
ALL += [(g, (True, True)) for g in PATCHES]
each = pytest.mark.parametrize(("geometry", "formats"), ALL, ids=str)


@each
def test_matches_float64(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    every = cases(geometry, formats)
    for case in every:
        dy = random_dy(case)
        assert_gradients(case, dy, case.backward(dy))
    assert len(every) >= (1 if geometry in PATCHES else 4)


@each
def test_touches_nothing_else(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    for case in cases(geometry, formats)[:5]:
        dy = random_dy(case)
        for guarded, expected in zip(case.guarded_backward(dy), case.backward(dy), strict=True):
            assert_same(guarded, expected)


def assert_same_bits_for_any_threads(case: Case) -> None:
    dy = random_dy(case)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(case.backward(dy))
    for one, two, five in zip(*results, strict=True):
        assert_same(two, one)
        assert_same(five, one)


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    grouped = Geometry(3, 150, 200, (13, 7), (1, 1), groups=5)
    for geometry in (pointwise(3, 68, (37, 25), 100), pointwise(5, 300, (5, 7), 500), grouped):
        for after in (AFTER[1], AFTER[4]):
            assert_same_bits_for_any_threads(Case("pointwise", geometry, after, formats))


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(3, 40, 70, (37, 25), (3, 3), (2, 2), (1, 1)),
        Geometry(2, 100, 200, (5, 7), (3, 3), padding=(1, 1)),
    ],
    ids=str,
)
def test_any_number_of_threads_gives_the_same_bits_of_patches(geometry: Geometry) -> None:
    assert_same_bits_for_any_threads(Case("patches", geometry, After("identity"), (True, True)))


@pytest.mark.parametrize("geometry", PATCHES, ids=str)
def test_either_format_of_the_weights(geometry: Geometry) -> None:
    case = Case("patches", geometry, After("identity"), (True, True))
    dy = random_dy(case)
    expected = case.backward(dy)
    case.w = as_format(case.w, True)
    dx, dw, dbias = case.backward(dy)
    for actual, one in zip((dx, dw, dbias), expected, strict=True):
        assert_same(actual, one)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "geometry", [pointwise(2, 40, (9, 11), 50), pointwise(3, 260, (7, 7), 600), PATCHES[0]], ids=str
)
def test_only_the_gradients_that_are_needed(geometry: Geometry, channels_last: bool) -> None:
    case = Case("pointwise", geometry, After("tanh"), (channels_last,) * 2)
    if geometry in PATCHES:
        case = Case("patches", geometry, After("identity"), (True, True))
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
@pytest.mark.parametrize("kernel", [1, 3])
def test_nan_and_infinity_reach_what_they_reach(kernel: int, channels_last: bool) -> None:
    algorithm = "pointwise" if kernel == 1 else "patches"
    geometry = Geometry(2, 18, 37, (12, 11), (kernel, kernel), padding=(kernel // 2,) * 2)
    formats = (channels_last or kernel > 1,) * 2
    case = Case(algorithm, geometry, After("identity"), formats)
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
    ("algorithm", "geometry", "after", "formats", "reason"),
    [
        ("pointwise", POINTWISE[0], After("silu"), (False,) * 2, "convolution output"),
        ("pointwise", POINTWISE[0], After(pool="avg", size=3), (False,) * 2, "convolution output"),
        ("patches", PATCHES[0], After("relu"), (True,) * 2, "gradient of the convolution's"),
        ("patches", PATCHES[0], After("identity"), (False,) * 2, "channels_last"),
        (
            "patches",
            Geometry(1, 7, 31, (11, 13), (3, 3), (2, 1), dilation=(1, 2)),
            After("identity"),
            (True,) * 2,
            "not both",
        ),
    ],
    ids=["silu", "average", "activation", "nchw", "stride and dilation"],
)
def test_refuses(
    algorithm: str, geometry: Geometry, after: After, formats: tuple[bool, bool], reason: str
) -> None:
    case = Case(algorithm, geometry, after, formats)
    assert case.launch.refusal(algorithm) == ""
    assert reason in case.launch.refusal(algorithm, True)
