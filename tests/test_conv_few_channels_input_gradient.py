"""The input's gradient of the native convolution for few channels, beside those of its weights."""

from __future__ import annotations

from collections.abc import Iterator

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
    random_dy,
    threads,
)

pytestmark = [NEEDS_NATIVE, pytest.mark.usefixtures("one_thread")]


# runs of taps of less than a vector, of one and of several; one group of columns and more; strides
# that skip input rows and columns; a padding that no tap reaches, and input that none reaches;
# rows longer than a tile, images of several bands
GEOMETRIES = [
    Geometry(2, 3, 20, (9, 11), (3, 3), padding=(1, 1)),
    Geometry(2, 3, 64, (12, 14), (4, 4), (2, 2), (1, 1)),
    Geometry(1, 1, 6, (12, 12), (5, 5), padding=(2, 2)),
    Geometry(1, 6, 16, (14, 14), (5, 5)),
    Geometry(1, 8, 33, (13, 17), (7, 7), (2, 2), (3, 3)),
    Geometry(1, 3, 17, (23, 21), (11, 11), (4, 4), (2, 2)),
    Geometry(2, 2, 5, (7, 10), (2, 3), (3, 4)),
    Geometry(1, 4, 40, (6, 40), (3, 1), (1, 2), (0, 2)),
    Geometry(1, 5, 12, (5, 5), (1, 1), (2, 2)),
    Geometry(1, 3, 130, (70, 60), (3, 3), padding=(1, 1)),
    Geometry(1, 3, 9, (5, 6), (5, 5), (1, 1), (4, 4)),
]
AFTER = [
    After("identity"),
    After("leaky_relu", 0.25),
    After("relu", pool="max", size=2),
    After("tanh", pool="max", size=(3, 2), stride=(2, 1), padding=1),
    After("gelu", pool="max", size=2),
    After("relu", pool="avg", size=2),
    After("leaky_relu", 0.25, pool="avg", size=2, padding=1, count_include_pad=False),
]


def cases(geometry: Geometry, formats: tuple[bool, bool]) -> Iterator[Case]:
    for after in AFTER:
        try:
            yield Case("few_channels", geometry, after, formats)
        except ValueError:  # a pooling that the convolution's output is too small for
            assert after.pool != "none"


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradients(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    for case in cases(geometry, formats):
        dy = random_dy(case)
        gradients = case.backward(dy)
        assert_gradients(case, dy, gradients)
        dx, dw, dbias = case.backward(dy, (True, False, False))
        assert_same(dx, gradients[0])
        assert dw is None
        assert dbias is None


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("geometry", GEOMETRIES[:6], ids=str)
def test_nothing_beside_the_tensors(geometry: Geometry, formats: tuple[bool, bool]) -> None:
    for case in cases(geometry, formats):
        dy = random_dy(case)
        for guarded, plain in zip(case.guarded_backward(dy), case.backward(dy), strict=True):
            assert_same(guarded, plain)


@pytest.mark.parametrize("formats", FORMATS, ids=FORMAT_IDS)
def test_any_number_of_threads_gives_the_same_bits(formats: tuple[bool, bool]) -> None:
    for geometry in (GEOMETRIES[9], Geometry(5, 3, 70, (40, 33), (4, 4), (2, 2), (1, 1))):
        case = Case("few_channels", geometry, AFTER[2], formats)
        dy = random_dy(case)
        results = []
        for count in (1, 2, 5):
            with threads(count):
                results.append(case.backward(dy))
        for result in results[1:]:
            for a, b in zip(result, results[0], strict=True):
                assert_same(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_what_it_reaches(value: float) -> None:
    case = Case("few_channels", GEOMETRIES[1], After("identity"))
    dy = random_dy(case)
    dy[0, 5, 2, 3] = value
    dx = case.backward(dy)[0]
    expected = case.reference_backward(dy)[0]
    assert dx is not None
    assert expected is not None
    assert torch.equal(dx.isfinite(), expected.isfinite())
