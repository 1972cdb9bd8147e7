"""The gradients of the Winograd convolution against float64.

What backward reads of a forward (y, the chosen positions, the pre-activation) comes from the
pooling's own kernel here, over a random z in steps of 1/8: ties are frequent, and the reference
chooses the same elements.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool.reference import pool2d

from .older_torch import activate
from .test_conv_winograd_native import AVG2, FORMATS, MAX2, MAX3, NONE, SHAPES, Problem, fits
from .tolerances import WINOGRAD_GRADIENTS, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

AVG3: dict[str, Any] = {"pool": "avg", "size": 3, "stride": 2, "padding": 1}
MAX_OVERLAPPING: dict[str, Any] = {"pool": "max", "size": 3, "stride": 1}
MAX_GAPS: dict[str, Any] = {"pool": "max", "size": 1, "stride": 3}


class Backward(Problem):
    """A problem's forward results and incoming gradient."""

    def __init__(self, shape: Any, pool: dict[str, Any], activation: str, memory: str) -> None:
        super().__init__(shape, pool, activation, memory)
        generator = torch.Generator().manual_seed(1)
        self.memory = FORMATS[memory]
        z = torch.randn(self.convolve(self.x).shape, generator=generator)
        self.z = (8 * z).round().div(8).to(memory_format=self.memory)
        self.update()
        self.dy = torch.randn(self.y.shape, generator=generator).to(memory_format=self.memory)

    def update(self) -> None:
        launch = self.launch.pool_launch
        self.y, self.index, preactivation = launch.forward(self.z, None, True)
        self.saved = {"output": self.y, "preactivation": preactivation}.get(launch.saved)

    def expected(self) -> tuple[Tensor, ...]:
        z = self.z.double().requires_grad_()
        activated = activate(z, self.pool.activation, self.pool.activation_param)
        (dz,) = torch.autograd.grad(pool2d(activated, self.pool), z, self.dy.double())
        dx, dw, dbias = torch.ops.aten.convolution_backward(
            dz,
            self.x.double(),
            self.w.double(),
            (self.w.shape[0],),
            self.conv.stride,
            self.conv.padding,
            (1, 1),
            False,
            (0, 0),
            1,
            (True, True, True),
        )
        return dx, dw, dbias

    def run(self, *needs: bool) -> Any:
        return self.launch.backward(
            "winograd", self.dy, self.saved, self.index, self.x, self.w, self.bias,
            *(needs or (True, True, True)),
        )  # fmt: skip

    def check(self, gradients: Any) -> None:
        dx, dw, dbias = gradients
        want_dx, want_dw, want_dbias = self.expected()
        tolerance = WINOGRAD_GRADIENTS[self.taps]
        assert dx.is_contiguous(memory_format=self.memory)
        assert dw.is_contiguous()
        assert_within(dx, want_dx, tolerance)
        assert_within(dw, want_dw, tolerance)
        assert_within(dbias, want_dbias, 2e-6)


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: Any, memory: str) -> None:
    for pool, activation in (
        (NONE, "leaky_relu"),
        (NONE, "identity"),
        (MAX2, "relu"),
        (AVG2, "leaky_relu"),
        (MAX3, "relu"),
    ):
        if not fits(shape, pool):
            continue
        problem = Backward(shape, pool, activation, memory)
        problem.check(problem.run())


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", [(2, 17, 13, 15, 70, 3, 3, 1, 1), (2, 5, 12, 10, 9, 4, 4, 2, 1)])
def test_every_kind_of_pooling_and_derivative(shape: Any, memory: str) -> None:
    for pool, activations in (
        (MAX2, ("identity", "leaky_relu", "silu", "elu", "tanh", "hardswish")),
        (MAX3, ("identity", "leaky_relu", "silu", "sigmoid", "relu6")),
        (AVG2, ("identity", "relu", "relu6")),
        (AVG3, ("identity",)),
        (MAX_OVERLAPPING, ("relu", "gelu")),
        (MAX_GAPS, ("relu",)),
        (NONE, ("relu", "tanh", "softplus")),
    ):
        for activation in activations:
            problem = Backward(shape, pool, activation, memory)
            problem.check(problem.run())


def test_what_memory_held_before_is_in_no_gradient() -> None:
    """Phases have tiles of their own, and threads more super-blocks than partial gradients."""
    problem = Backward((480, 16, 16, 16, 544, 4, 4, 2, 1), NONE, "relu", "contiguous")
    freed = [torch.full_like(problem.w, float("nan")) for _ in range(40)]
    del freed
    problem.check(problem.run())


def test_formats_of_input_and_output_may_differ() -> None:
    problem = Backward((2, 20, 13, 15, 33, 3, 3, 1, 1), MAX2, "relu", "channels_last")
    x = problem.x.contiguous()
    launch = type(problem.launch)(
        tuple(x.shape), tuple(problem.w.shape), tuple(problem.z.shape), torch.float32,
        problem.conv, problem.pool, False, True,
    )  # fmt: skip
    problem.launch, problem.x, problem.memory = launch, x, torch.contiguous_format
    problem.check(problem.run())


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_filters_in_channels_last_give_the_same_bits(shape: Any, memory: str) -> None:
    """They are read, and their gradient is written, as they are."""
    problem = Backward(shape, NONE, "leaky_relu", memory)
    filters = problem.w, problem.w.to(memory_format=torch.channels_last)
    for poisoned in (False, True):  # tiles are then computed anew, one by one
        if poisoned:
            problem.dy[0, 0, 0, 0] = float("nan")
        runs = []
        for problem.w in filters:
            runs.append(problem.run())
            assert runs[-1][1].stride() == problem.w.stride()
        for found, expected in zip(*runs, strict=True):
            if not poisoned:
                assert torch.equal(found, expected)
                continue
            assert torch.equal(found.isnan(), expected.isnan())
            finite = found.isfinite()  # dw is PyTorch's, which sums as w lies
            if finite.any():
                assert_within(found[finite], expected[finite].double(), 1e-5)


@pytest.mark.parametrize("memory", FORMATS)
def test_many_tiles_are_cut_into_super_blocks(memory: str) -> None:
    """More tiles than are transformed at once, and an image of more than that by itself."""
    for shape in ((70, 20, 9, 21, 18, 3, 3, 1, 1), (1, 3, 90, 110, 18, 3, 3, 1, 1)):
        problem = Backward(shape, MAX2, "relu", memory)
        problem.check(problem.run())


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_chunk_may_begin_before_the_image(batch: int, memory: str) -> None:
    """A chunk's first tile may have its pixels left of the image: nothing there is dx."""
    for shape in ((batch, 8, 33, 13, 16, 3, 3, (2, 3), 1), (batch, 8, 33, 12, 17, 3, 3, (2, 3), 1)):
        problem = Backward(shape, NONE, "leaky_relu", memory)
        problem.check(problem.run())


@pytest.mark.parametrize("memory", FORMATS)
def test_each_gradient_alone_is_the_same(memory: str) -> None:
    problem = Backward((2, 20, 13, 15, 33, 3, 3, 1, 1), MAX2, "relu", memory)
    together = problem.run()
    for needs in (
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, True),
        (False, True, True),
    ):
        for ours, wanted, gradient in zip(problem.run(*needs), needs, together, strict=True):
            assert (ours is not None) == wanted
            assert ours is None or torch.equal(ours, gradient)


def assert_same_bits_for_any_thread_count(problem: Backward, *needs: bool) -> None:
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            outputs.append(problem.run(*needs))
    finally:
        torch.set_num_threads(before)
    for other in outputs[1:]:
        for ours, first, need in zip(other, outputs[0], needs or (True,) * 3, strict=True):
            assert (ours is not None) == (first is not None) == need
            assert ours is None or torch.equal(ours, first)


@pytest.mark.parametrize("memory", FORMATS)
def test_same_bits_for_any_thread_count(memory: str) -> None:
    for shape in (
        (9, 20, 30, 29, 70, 3, 3, 1, 1),
        (2, 33, 31, 30, 40, 4, 4, 2, 1),
        (4, 20, 21, 22, 40, 7, 7, 1, 3),
    ):
        for pool in (MAX2, MAX3, NONE):
            assert_same_bits_for_any_thread_count(Backward(shape, pool, "relu", memory))


def assert_same_kinds(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """NaN and infinities where they belong, the rest right: but what is summed in the transform
    domain with a large finite value rounds as that does."""
    expected = expected.float().double()  # what float32 can't hold is infinite
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.isinf(), expected.isinf())
    finite = expected.isfinite()
    if not (expected[finite].abs() > 1e6).any():
        assert_within(ours[finite], expected[finite], tolerance)


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["dy", "x", "w"])
@pytest.mark.parametrize("taps", [3, 7])
def test_not_finite_stays_where_it_is(taps: int, where: str, value: float, memory: str) -> None:
    shape = (2, 18, 14, 15, 40, taps, taps, 1, taps // 2)
    for pool, activation in ((NONE, "identity"), (MAX2, "relu"), (AVG2, "relu"), (MAX3, "relu")):
        problem = Backward(shape, pool, activation, memory)
        if where == "dy":
            # inside: whether padding times NaN counts in dw, PyTorch's own kernels don't agree on
            problem.dy[0, 3, 3, 3] = value
            problem.dy[1, 39, 3, 3] = value
        elif where == "x":
            problem.x[0, 3, 0, 6] = value
            problem.x[1, 17, 13, 14] = value
        else:
            problem.w[5, 2, 1, 1] = value
        for ours, expected in zip(problem.run(), problem.expected(), strict=True):
            assert_same_kinds(ours, expected, WINOGRAD_GRADIENTS[problem.taps])


def test_long_sums_round_little() -> None:
    """A layer of a common size, many tiles: sums are taken block by block."""
    problem = Backward((4, 64, 56, 56, 64, 3, 3, 1, 1), MAX2, "relu", "channels_last")
    _, dw, _ = problem.run()
    assert_within(dw, problem.expected()[1], 1.8e-6)  # 1.3e-6; 2.7e-6 where they are not


def test_refusals_say_why() -> None:
    def refusal(shape: Any, pool: dict[str, Any], activation: str) -> str:
        return Problem(shape, pool, activation, "contiguous").launch.refusal("winograd", True)

    shape = (1, 4, 12, 12, 8, 3, 3, 1, 1)
    assert refusal(shape, MAX2, "silu") == ""
    assert "output itself" in refusal(shape, AVG2, "silu")
    assert "output itself" in refusal(shape, NONE, "gelu")
    assert "output itself" in refusal(shape, AVG3, "relu")  # 9 bits of a mask
    assert "padding" in refusal((1, 4, 12, 12, 8, 3, 3, 1, 3), MAX2, "relu")
    assert "taps" in refusal((1, 4, 32, 32, 8, 13, 13, 2, 3), MAX2, "relu")


def assert_memory_around_gradients_is_left_alone(problem: Backward, *needs: bool) -> None:
    sizes = (problem.x.numel(), problem.w.numel(), problem.bias.numel())
    guarded = [
        torch.full((size + 64,), 7.0) if need else None
        for size, need in zip(sizes, needs, strict=True)
    ]
    native.module.conv_act_pool2d_backward(  # type: ignore[union-attr]
        "winograd",
        problem.launch.native,
        problem.dy.data_ptr(),
        problem.saved.data_ptr(),
        0 if problem.index is None else problem.index.data_ptr(),
        problem.x.data_ptr(),
        problem.w.data_ptr(),
        0,
        *(0 if tensor is None else tensor.data_ptr() + 32 * 4 for tensor in guarded),
        2,
    )
    for tensor in guarded:
        if tensor is not None:
            assert (tensor[:32] == 7).all()
            assert (tensor[-32:] == 7).all()
            assert (tensor[32:-32] != 7).all()


@pytest.mark.parametrize("memory", FORMATS)
def test_memory_around_gradients_is_left_alone(memory: str) -> None:
    for shape in (
        (2, 5, 13, 17, 37, 3, 3, 1, 1),
        (2, 16, 11, 9, 8, 4, 4, 2, 1),
        (2, 5, 11, 9, 8, 7, 7, 1, 3),
    ):
        for pool in (MAX2, MAX3, NONE):
            problem = Backward(shape, pool, "relu", memory)
            assert_memory_around_gradients_is_left_alone(problem, True, True, True)
