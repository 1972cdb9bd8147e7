"""Weights of the Winograd convolution: kept, transformed part by part, and how many there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import cpu_weights
from crossmedia_fast.ops.conv_act_pool.conv_cost import Sizes, winograd_gain

from .conv_act_pool_cases import algorithm
from .conv_native_launch import kept_weights
from .test_conv_winograd_native import AVG2, FORMATS, MAX2, MAX3, NONE, Problem
from .tolerances import WINOGRAD, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)


def test_weights_that_change_are_noticed() -> None:
    torch.manual_seed(0)  # of other data one in a hundred rounds more beside a weight of 7
    x = torch.randn(2, 32, 20, 20)
    module = cmf.nn.ConvActPool2d(32, 32, 3, padding=1)

    def matches() -> bool:
        tensors = (t.double() for t in (x, module.weight, module.bias))
        want = cmf.conv_act_pool2d_reference(*tensors, padding=1)
        return bool((module(x) - want).abs().max() <= WINOGRAD[3] * want.abs().max())

    with torch.no_grad(), algorithm("winograd"):
        assert cmf.explain(x, module.weight, module.bias, padding=1).algorithm == "winograd"
        assert matches()
        module.weight.data.mul_(1.5)  # moves no version counter
        assert matches()
        module.weight.copy_(torch.randn_like(module.weight) / 17)
        assert matches()
        module.weight.data = torch.randn_like(module.weight) / 17  # another storage
        assert matches()
        module.weight.numpy()[0, 0, 0, 0] = 7.0  # behind PyTorch's back
        assert matches()
        module.to(memory_format=torch.channels_last)
        assert matches()


def test_transformed_weights_go_with_their_weight() -> None:
    from crossmedia_fast.ops.conv_act_pool import cpu_weights

    x = torch.randn(2, 32, 20, 20)
    before = len(cpu_weights._entries)
    w = torch.randn(32, 32, 3, 3)
    with algorithm("winograd"):
        cmf.conv_act_pool2d(x, w, padding=1)
    assert len(cpu_weights._entries) == before + 1
    del w
    assert len(cpu_weights._entries) == before


# Few tiles, many weights: every r and both kinds of columns; a phase without a tap at infinity in
# some of several parts of the channels; merged pixels; several blocks of tiles.
TRANSFORMING = [
    (2, 300, 12, 10, 100, 3, 3, 1, 1),
    (3, 270, 7, 9, 75, 3, 3, 2, 1),
    (2, 150, 15, 10, 90, 4, 4, 2, 1),
    (1, 33, 30, 33, 130, 7, 7, 2, 3),
    (2, 140, 10, 10, 60, 5, 5, 1, 2),
    (7, 130, 12, 16, 70, 3, 3, 1, 1),
]


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", TRANSFORMING, ids=str)
def test_weights_transformed_part_by_part(shape: Any, memory: str) -> None:
    """What nobody prepared is transformed as it is needed, to the same bits."""
    before = torch.get_num_threads()
    try:
        for pool in (MAX2, MAX3, AVG2, NONE):
            problem = Problem(shape, pool, "relu", memory)
            launch = problem.launch
            torch.set_num_threads(1)
            assert launch.prepare("winograd", problem.w, keep=False) is None
            prepared = kept_weights(launch, "winograd", problem.w)
            expected = launch.forward(
                "winograd", problem.x, problem.w, problem.bias, True, prepared
            )
            assert_within(expected[0], problem.expected(), WINOGRAD[problem.taps])
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                for w in (problem.w, problem.w.to(memory_format=torch.channels_last)):
                    operands = problem.x, w, problem.bias
                    results = launch.forward("winograd", *operands, True)
                    for found, wanted in zip(results, expected, strict=True):
                        assert found is wanted is None or torch.equal(found, wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("memory", FORMATS)
def test_not_finite_stays_where_it_is_beside_filters_in_channels_last(memory: str) -> None:
    problem = Problem((1, 130, 9, 9, 64, 3, 3, 1, 1), NONE, "identity", memory)
    problem.w = problem.w.to(memory_format=torch.channels_last)
    problem.x[0, 7, 4, 5] = float("inf")
    expected, found = problem.expected(), problem.run(save=True)[0]
    assert not expected.isfinite().all()
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    assert_within(found[finite], expected[finite], WINOGRAD[3])


def test_weights_that_many_tiles_share_must_be_prepared() -> None:
    for shape in ((9, 64, 28, 28, 130, 3, 3, 1, 1), (2, 16, 8, 8, 32, 3, 3, 1, 1)):
        problem = Problem(shape, NONE, "relu", "contiguous")
        assert problem.launch.prepare("winograd", problem.w, keep=False) is not None
        y = torch.empty(problem.launch.pool_launch.y_shape)
        with pytest.raises(ValueError, match="prepared must be an address"):
            native.module.conv_act_pool2d_forward(  # type: ignore[union-attr]
                "winograd", problem.launch.native, problem.x.data_ptr(), problem.w.data_ptr(), 0,
                0, y.data_ptr(), 0, 0, 1,
            )  # fmt: skip


def test_weights_that_pytorch_would_pack_in_fresh_memory_are_kept_instead() -> None:
    """1024 filters of 1024×3×3 on 8×8 images: without gradients they are transformed once."""
    sizes = Sizes((1, 1024, 8, 8), (1024, 1024, 3, 3), (1, 1024, 8, 8), (1, 1), (1, 1))
    assert winograd_gain(sizes, 4, kept=True) > 2 > 1.7 > winograd_gain(sizes, 4)
    smaller = Sizes((1, 512, 8, 8), (512, 512, 3, 3), (1, 512, 8, 8), (1, 1), (1, 1))
    gains = [winograd_gain(each, 4, kept=True) for each in (sizes, smaller)]
    assert gains[0] > 1.5 * gains[1]  # of the smaller the C library keeps the memory


def test_few_tiles_that_share_many_weights_are_small() -> None:
    """F(2×2)'s transformed weights are 16 for the filter's 9; F(4×4)'s 36, F(5×5)'s 49."""
    small = [(2, 96, 7, 6, 96, 3, 3, 1, 1), (1, 96, 5, 5, 96, 3, 3, 1, 1)]
    large = [(9, 96, 7, 6, 96, 3, 3, 1, 1), (2, 32, 7, 6, 32, 3, 3, 1, 1)]
    for shapes, points in ((small, 16), (large, 36)):
        for shape in shapes:
            problem = Problem(shape, NONE, "relu", "channels_last")
            count = kept_weights(problem.launch, "winograd", problem.w).numel()
            assert points <= count / (shape[1] * shape[4]) < points * 1.2


def test_large_weights_are_transformed_at_every_call() -> None:
    """They would come from memory four times as large as the filters do."""
    problem = Problem((2, 256, 16, 16, 512, 3, 3, 1, 1), MAX2, "relu", "contiguous")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for w in (problem.w, problem.w.to(memory_format=torch.channels_last)):
            assert problem.launch.prepare("winograd", w, keep=True) is None
            expected = problem.launch.forward("winograd", problem.x, w, problem.bias, True)[0]
            assert_within(expected, problem.expected(), WINOGRAD[3])
            with torch.no_grad():
                kept = len(cpu_weights._entries)
                assert cmf.explain(problem.x, w, problem.bias, padding=1).algorithm == "winograd"
                found = cmf.conv_act_pool2d(problem.x, w, problem.bias, padding=1)
                assert torch.equal(found, expected)
                assert len(cpu_weights._entries) == kept
                w.data.mul_(2)
                again = cmf.conv_act_pool2d(problem.x, w, problem.bias, padding=1)
                assert not torch.equal(again, expected)
                w.data.div_(2)
    finally:
        torch.set_num_threads(before)
