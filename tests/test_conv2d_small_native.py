"""The native small convolution against PyTorch in float64, guarded, and its bad calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossmedia_fast import native

from .tolerances import GRADIENTS, assert_within

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

# one vector of every instruction set and its neighbours along a row; one to five filters (they go
# in fours); kernels of every width
SHAPES = [
    (1, 1, 28, 28, 8, 3, 3, 1, 1),
    (2, 3, 5, 15, 5, 1, 1, 0, 0),
    (1, 2, 4, 16, 1, 2, 4, 1, 3),
    (3, 1, 9, 17, 2, 5, 5, 2, 2),
    (1, 4, 7, 31, 3, 7, 7, 6, 0),
    (2, 2, 6, 33, 4, 3, 6, 0, 5),
    (1, 3, 1, 1, 7, 1, 1, 0, 0),
    (0, 1, 4, 4, 2, 3, 3, 1, 1),
]
GUARD = 12345.0


def problem(shape: tuple[int, ...], dtype: str = "float64", **changes: Any) -> Any:
    names = ("batch", "in_channels", "height", "width", "out_channels", "kernel_height",
             "kernel_width", "pad_height", "pad_width")  # fmt: skip
    arguments: dict[str, Any] = dict(zip(names, shape, strict=True))
    return native.module.Conv2dProblem(**{**arguments, "dtype": dtype, **changes})


def nothing_follows(p: Any, shape: tuple[int, ...], dtype: str = "float64") -> Any:
    """The act_pool2d problem that leaves the convolution's output as it is."""
    return native.module.ActPool2dProblem(
        batch=shape[0], channels=shape[4], height=p.out_height, width=p.out_width,
        out_height=p.out_height, out_width=p.out_width, pool_height=1, pool_width=1,
        pool_stride_height=1, pool_stride_width=1, pool_pad_height=0, pool_pad_width=0,
        count_include_pad=True, pool="none", activation="identity", activation_param=0.0,
        dtype=dtype, channels_last=False,
    )  # fmt: skip


def forward(p: Any, after: Any, x: int, w: int, y: int) -> None:
    native.module.conv2d_small_forward(p, after, x, w, 0, 0, y, 0, 0, 1)


def backward(p: Any, after: Any, dy: int, x: int, w: int, dx: int, dw: int) -> None:
    native.module.conv2d_small_backward(p, after, dy, 0, 0, 0, x, w, dx, dw, 0, 1)


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor of NaN and the buffer around it, whose ends must stay as they are."""
    count = torch.Size(shape).numel()
    buffer = torch.full((count + 64,), GUARD, dtype=dtype)
    buffer[32 : 32 + count] = float("nan")
    return buffer[32 : 32 + count].view(shape), buffer


def assert_guards(*buffers: Tensor) -> None:
    for buffer in buffers:
        assert (buffer[:32] == GUARD).all()
        assert (buffer[-32:] == GUARD).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    n, c, h, w, k, r, s, ph, pw = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(k, c, r, s, generator=generator, dtype=torch.float64).to(dtype)
    doubles = [x.double().requires_grad_(), weight.double().requires_grad_()]
    want = torch.nn.functional.conv2d(*doubles, padding=(ph, pw))
    dz = torch.randn(want.shape, generator=generator, dtype=torch.float64).to(dtype)
    want_dx, want_dw = torch.autograd.grad(want, doubles, dz.double())

    name = str(dtype).removeprefix("torch.")
    p = problem(shape, name)
    after = nothing_follows(p, shape, name)
    assert (p.out_height, p.out_width) == want.shape[2:]
    z, z_buffer = guarded(tuple(want.shape), dtype)
    dx, dx_buffer = guarded(tuple(x.shape), dtype)
    dw, dw_buffer = guarded(tuple(weight.shape), dtype)
    forward(p, after, x.data_ptr(), weight.data_ptr(), z.data_ptr())
    backward(p, after, dz.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr(), dw.data_ptr())
    assert_guards(z_buffer, dx_buffer, dw_buffer)
    for ours, theirs in ((z, want.detach()), (dx, want_dx), (dw, want_dw)):
        assert_within(ours, theirs, GRADIENTS[dtype])


def test_what_lies_behind_a_row_does_not_matter() -> None:
    """The last columns are read with whole vectors; a NaN in the next row must stay out."""
    shape = (1, 1, 3, 5, 1, 1, 3, 0, 1)
    p = problem(shape)
    x = torch.ones(1, 1, 3, 5, dtype=torch.float64)
    x[0, 0, 1:] = float("nan")
    weight = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    z = torch.empty(1, 1, 3, 5, dtype=torch.float64)
    forward(p, nothing_follows(p, shape), x.data_ptr(), weight.data_ptr(), z.data_ptr())
    assert z[0, 0, 0].tolist() == [2, 3, 3, 3, 2]
    assert z[0, 0, 1:].isnan().all()


@pytest.mark.parametrize(
    "change",
    [
        {"batch": -1}, {"batch": 2**40}, {"in_channels": 0}, {"height": 0}, {"width": 2**40},
        {"out_channels": 0}, {"out_channels": 2**40}, {"kernel_height": 0}, {"kernel_width": 8},
        {"kernel_height": 7, "pad_height": 0}, {"pad_height": 3}, {"pad_width": -1},
        {"dtype": "float16"}, {"dtype": "int8"}, {"batch": 2**20, "in_channels": 2**20},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_problem_is_a_value_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|too large"):
        problem((1, 1, 4, 4, 2, 3, 3, 1, 1), **change)


def test_bad_addresses_are_value_errors() -> None:
    shape = (1, 1, 4, 4, 2, 3, 3, 1, 1)
    p = problem(shape)
    after = nothing_follows(p, shape)
    good = torch.zeros(64, dtype=torch.float64).data_ptr()
    for position, name in enumerate(("x", "w", "y")):
        for bad in (0, good + 1):
            call = [good, good, good]
            call[position] = bad
            with pytest.raises(ValueError, match=name):
                forward(p, after, *call)
    with pytest.raises(ValueError, match="z"):
        native.module.conv2d_small_forward(p, after, good, good, 0, good + 4, good, 0, 0, 1)
    with pytest.raises(ValueError, match="dy"):
        backward(p, after, 0, good, good, good, good)
    with pytest.raises(ValueError, match="dw"):
        backward(p, after, good, good, good, good, good + 4)


@pytest.mark.parametrize(
    "other", [(2, 1, 4, 4, 2, 3, 3, 1, 1), (1, 1, 4, 4, 3, 3, 3, 1, 1), (1, 1, 5, 4, 2, 3, 3, 1, 1)]
)
def test_what_follows_must_fit_the_convolution(other: tuple[int, ...]) -> None:
    p = problem((1, 1, 4, 4, 2, 3, 3, 1, 1))
    good = torch.zeros(512, dtype=torch.float64).data_ptr()
    for after in (
        nothing_follows(problem(other), other),
        nothing_follows(p, (1, 1, 4, 4, 2, 3, 3, 1, 1), "float32"),
    ):
        with pytest.raises(ValueError, match="convolution's output"):
            forward(p, after, good, good, good)
        with pytest.raises(ValueError, match="convolution's output"):
            backward(p, after, good, good, good, good, good)
