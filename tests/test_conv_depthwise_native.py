"""The native depthwise convolution: exact cases bit by bit, others against float64."""

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
    assert_gradients,
    assert_same,
    fits,
    random_dy,
    threads,
)
from .tolerances import VALUES, assert_within

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]


def depthwise(
    batch: int,
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    filters: int = 1,  # a channel
) -> Geometry:
    return Geometry(
        batch, channels, channels * filters, size, kernel, stride, padding, dilation, channels
    )


# one vector of every instruction set and its neighbours, along the channels and along a row; rows
# that fill no strip; kernels with a loop of their own and without
GEOMETRIES = [
    depthwise(2, 16, (9, 33)),
    depthwise(1, 5, (3, 2)),
    depthwise(2, 37, (6, 17), padding=(0, 0)),
    depthwise(1, 48, (11, 70), stride=(2, 2)),
    depthwise(1, 17, (12, 39), stride=(2, 2), padding=(0, 2)),
    depthwise(1, 18, (9, 20), kernel=(5, 5), padding=(2, 2)),
    depthwise(1, 16, (10, 41), kernel=(5, 5), stride=(2, 2), padding=(2, 1)),
    depthwise(1, 33, (8, 24), kernel=(7, 7), padding=(3, 3)),
    depthwise(1, 4, (15, 75), kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    depthwise(1, 20, (7, 19), kernel=(2, 4), padding=(1, 0)),
    depthwise(1, 6, (9, 40), stride=(1, 2), padding=(2, 2)),
    depthwise(1, 19, (11, 23), stride=(3, 3)),
    depthwise(1, 16, (12, 35), dilation=(2, 3), padding=(2, 3)),
    depthwise(1, 16, (5, 9), kernel=(1, 1), padding=(0, 0)),
    depthwise(1, 32, (4, 4), kernel=(3, 3), padding=(3, 3)),
    depthwise(1, 1, (40, 100)),
]
AFTER = [
    After("identity"),
    After("relu6"),
    After("leaky_relu", 0.25),
    After("silu"),
    After("relu", pool="max", size=2),
    After("tanh", pool="max", size=(3, 2), stride=(2, 1), padding=1),
    After("gelu", pool="max", size=2, ceil_mode=True),
    After("leaky_relu", 0.25, pool="avg", size=2, padding=1, count_include_pad=False),
    After("sigmoid", pool="avg", size=3, stride=2),
]


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_exact_cases_have_the_bits_of_the_unfused(
    geometry: Geometry, formats: tuple[bool, bool]
) -> None:
    tried = 0
    for after in AFTER:
        if not fits("depthwise", geometry, after):
            continue
        for save in (False, True):
            case = Case("depthwise", geometry, after, formats, exact=True, bias=save)
            for ours, theirs in zip(case.forward(save), case.unfused(save), strict=True):
                assert_same(ours, theirs)
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_matches_float64_and_touches_nothing_else(geometry: Geometry, channels_last: bool) -> None:
    formats = (channels_last, channels_last)
    for after in AFTER[:5]:
        if fits("depthwise", geometry, after):
            case = Case("depthwise", geometry, after, formats)
            assert_within(case.guarded_forward(), case.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_several_filters_a_channel(formats: tuple[bool, bool]) -> None:
    geometry = depthwise(2, 5, (9, 37), filters=4)
    for after in AFTER:
        case = Case("depthwise", geometry, after, formats, exact=True)
        for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    for after in AFTER[1:5]:
        case = Case("depthwise", depthwise(3, 36, (37, 45)), after, formats)
        results = []
        for count in (1, 2, 5):
            with threads(count):
                results.append(case.forward()[0])
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_nan_and_infinity_reach_what_they_reach(channels_last: bool) -> None:
    formats = (channels_last, channels_last)
    for after in AFTER:
        case = Case("depthwise", depthwise(1, 18, (12, 40)), after, formats, exact=True)
        case.x[0, 3, 4, 5] = float("nan")
        case.x[0, 4, 0, 39] = float("inf")
        case.x[0, 17, 11, 17] = -float("inf")
        for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_large_outputs_are_stored_another_way(channels_last: bool, activation: str) -> None:
    geometry = depthwise(2, 16, (260, 272))
    case = Case("depthwise", geometry, After(activation), (channels_last, channels_last))
    assert_within(case.forward()[0], case.reference(), VALUES[torch.float32])


def test_an_empty_batch() -> None:
    case = Case("depthwise", dataclasses.replace(depthwise(1, 4, (5, 5)), batch=0), After())
    assert case.forward()[0].shape == (0, 4, 5, 5)


@pytest.mark.parametrize(
    ("geometry", "after", "formats", "reason"),
    [
        (Geometry(1, 4, 8, (5, 5), groups=2), After(), (False, False), "groups"),
        (
            depthwise(1, 4, (20, 20)),
            After(pool="max", size=16, padding=0),
            (False, False),
            "255",
        ),
    ],
    ids=["groups", "window"],
)
def test_refuses(geometry: Geometry, after: After, formats: tuple[bool, bool], reason: str) -> None:
    case = Case("depthwise", geometry, after, formats)
    assert reason in case.launch.refusal("depthwise")
    with pytest.raises(ValueError, match=reason):
        case.forward()


def test_refuses_other_dtypes() -> None:
    case = Case("depthwise", depthwise(1, 4, (5, 5)), After())
    launch = type(case.launch)(
        case.launch.x_shape, case.launch.w_shape, (1, 4, 5, 5), torch.float64, case.conv,
        case.pool, False, False,
    )  # fmt: skip
    assert "float32" in launch.refusal("depthwise")


# -- backward -------------------------------------------------------------------------------------

BACKWARD_AFTER = [
    After("identity"),
    After("relu6"),
    After("leaky_relu", 0.25),
    After("tanh"),
    After("silu"),
    After("hardswish"),
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_backward_matches_float64(geometry: Geometry, channels_last: bool) -> None:
    tried = 0
    for after in BACKWARD_AFTER:
        case = Case("depthwise", geometry, after, (channels_last, channels_last))
        if case.launch.refusal("depthwise", True):
            assert geometry.padding[0] > geometry.kernel[0] - 1
            continue
        dy = random_dy(case)
        assert_gradients(case, dy, case.backward(dy))
        tried += 1
    assert tried == len(BACKWARD_AFTER) or geometry.padding == (3, 3)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_any_number_of_threads_gives_the_same_gradients(channels_last: bool) -> None:
    for after in BACKWARD_AFTER[3:5]:
        geometry = depthwise(3, 40, (53, 61), stride=(1, 1))
        case = Case("depthwise", geometry, after, (channels_last, channels_last))
        dy = random_dy(case)
        results = []
        for count in (1, 2, 5):
            with threads(count):
                results.append(case.backward(dy))
        for one, two, five in zip(*results, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, five)
        assert_gradients(case, dy, results[0])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_wide_channels_go_in_groups(channels_last: bool) -> None:
    formats = (channels_last, channels_last)
    case = Case("depthwise", depthwise(1, 200, (9, 90), stride=(2, 2)), After("relu"), formats)
    dy = random_dy(case)
    assert_gradients(case, dy, case.backward(dy))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_only_the_gradients_that_are_needed(channels_last: bool) -> None:
    case = Case("depthwise", depthwise(2, 20, (9, 18)), After("tanh"), (channels_last,) * 2)
    dy = random_dy(case)
    full = case.backward(dy)
    for i in range(3):
        need = (i == 0, i == 1, i == 2)
        for j, part in enumerate(case.backward(dy, need)):
            assert_same(part, full[j] if need[j] else None)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_backward_touches_nothing_else(channels_last: bool) -> None:
    geometry = depthwise(2, 19, (7, 10), stride=(2, 2))
    case = Case("depthwise", geometry, After("relu"), (channels_last, channels_last))
    dy = random_dy(case)
    for guarded, expected in zip(case.guarded_backward(dy), case.backward(dy), strict=True):
        assert_same(guarded, expected)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_nan_reaches_the_gradients_it_reaches(channels_last: bool) -> None:
    case = Case("depthwise", depthwise(1, 18, (12, 40)), After("relu"), (channels_last,) * 2)
    dy = random_dy(case)
    case.x[0, 3, 4, 5] = float("nan")
    dy[0, 5, 6, 7] = float("nan")
    y = case.reference()
    dy[0, 5, 6, 7] = float("nan") if y[0, 5, 6, 7] > 0 else 0.0
    assert_gradients(case, dy, case.backward(dy))


@pytest.mark.parametrize(
    ("geometry", "after", "formats", "reason"),
    [
        (depthwise(1, 4, (6, 6)), After(pool="max", size=2), (False, False), "pooling"),
        (depthwise(1, 4, (6, 6), filters=2), After(), (False, False), "one filter"),
        (depthwise(1, 4, (6, 6)), After(), (False, True), "one memory format"),
        (depthwise(1, 4, (6, 6), padding=(3, 3)), After(), (False, False), "padding"),
    ],
    ids=["pool", "filters", "formats", "padding"],
)
def test_backward_refuses(
    geometry: Geometry, after: After, formats: tuple[bool, bool], reason: str
) -> None:
    case = Case("depthwise", geometry, after, formats)
    assert case.launch.refusal("depthwise") == ""
    assert reason in case.launch.refusal("depthwise", True)
