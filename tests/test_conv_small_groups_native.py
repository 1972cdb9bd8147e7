"""The depthwise kernels on groups of a few channels with as many filters."""

from __future__ import annotations

import pytest
import torch

from .conv_act_pool_cases import algorithm, assert_like_reference, make
from .conv_native_launch import (
    FORMAT_IDS,
    FORMATS,
    NEEDS_NATIVE,
    After,
    Case,
    Geometry,
    assert_same,
    threads,
)
from .tolerances import VALUES, assert_within

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]

SIZES = [2, 4, 8]  # channels of a group
AFTER = [
    After("identity"),
    After("relu6"),
    After("silu"),
    After("relu", pool="max", size=2),
    After("tanh", pool="max", size=(3, 2), stride=(2, 1), padding=1),
    After("leaky_relu", 0.25, pool="avg", size=2, padding=1, count_include_pad=False),
]


def geometry(
    group: int, groups: int, size: tuple[int, int], stride: int = 1, batch: int = 1
) -> Geometry:
    channels = group * groups
    return Geometry(
        batch, channels, channels, size, (3, 3), (stride, stride), (1, 1), (1, 1), groups
    )


def problem(
    geometry: Geometry, after: After, formats: tuple[bool, bool], exact: bool = False
) -> Case:
    case = Case("depthwise", geometry, after, formats, exact=exact)
    reason = case.launch.refusal("depthwise")
    if reason:
        assert "in vectors of at least 8" in reason
        pytest.skip(reason)
    return case


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("group", SIZES)
def test_exact_cases_have_the_bits_of_the_unfused(
    group: int, stride: int, formats: tuple[bool, bool]
) -> None:
    # whole vectors and a part of one, a few columns and several tiles of them
    for groups, size in ((3, (9, 33)), (5, (6, 5)), (32 // group, (7, 18))):
        for after in AFTER:
            case = problem(geometry(group, groups, size, stride), after, formats, exact=True)
            for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
                assert_same(ours, theirs)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("group", SIZES)
def test_matches_float64_and_touches_nothing_else(group: int, channels_last: bool) -> None:
    formats = (channels_last, channels_last)
    for stride in (1, 2):
        for after in AFTER:
            case = problem(geometry(group, 5, (12, 21), stride, batch=2), after, formats)
            assert_within(case.guarded_forward(), case.reference(), VALUES[torch.float32])


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    for after in AFTER[2:4]:
        case = problem(geometry(4, 12, (37, 45), batch=3), after, formats)
        results = []
        for count in (1, 2, 5):
            with threads(count):
                results.append(case.forward()[0])
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("group", SIZES)
def test_nan_and_infinity_stay_in_their_group(group: int, channels_last: bool) -> None:
    formats = (channels_last, channels_last)
    for after in AFTER:
        case = problem(geometry(group, 6, (12, 20)), after, formats, exact=True)
        case.x[0, group, 4, 5] = float("nan")
        case.x[0, 3 * group + 1, 0, 19] = float("inf")
        for ours, theirs in zip(case.forward(True), case.unfused(True), strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("follows", ["relu", "silu"])
def test_gradients_are_pytorchs(follows: str) -> None:
    tensors = make(in_channels=24, out_channels=24, groups=6, size=(14, 15), channels_last=True)
    arguments = {"padding": 1, "groups": 6, "activation": follows, "pool": "none"}
    with algorithm("depthwise"):
        assert_like_reference(tensors, **arguments)


def test_refuses() -> None:
    def reason(group: int, groups: int, filters: int, kernel: int = 3) -> str:
        channels = group * groups
        after, formats = After(), (True, True)
        shape = Geometry(
            1, channels, filters, (9, 9), (kernel, kernel), (1, 1), (1, 1), (1, 1), groups
        )
        refusal: str = Case("depthwise", shape, after, formats).launch.refusal("depthwise")
        return refusal

    assert "groups" in reason(3, 4, 12)  # would straddle vectors
    assert "groups" in reason(4, 4, 32)  # twice as many filters
    assert "groups" in reason(4, 4, 16, kernel=5)
    assert "groups" in reason(32, 2, 64)
