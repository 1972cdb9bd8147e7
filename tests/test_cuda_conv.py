"""The fused CUDA convolution against the reference in float64: values, indices, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import crossmedia_fast as cmf
from crossmedia_fast import cuda_support
from crossmedia_fast.ops.conv_act_pool.activation import activate

from . import tolerances
from .cuda_calls import DEVICE, EMULATED, ORDERS, misaligned, runs_kernels, set_order
from .cuda_conv_cases import CASES, LAST, SOME, check, expected, fused, run

pytestmark = runs_kernels


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products of float32 as they are, unless a test asks for tf32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    set_order(("forward", 0))


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    set_order(ORDERS[list(CASES).index(name) % len(ORDERS)])
    check(CASES[name], tolerances.VALUES[torch.float32], tolerances.GRADIENTS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SOME)
def test_half_types(name: str, dtype: torch.dtype) -> None:
    # products and sums in float32, so a maximum is the float64 one's; what is rounded is each
    # saved element, each pooled gradient and each result, once
    bound = tolerances.VALUES[dtype]
    check(CASES[name]._replace(dtype=dtype), bound, bound)


@pytest.mark.parametrize("name", SOME)
def test_tf32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    case = CASES[name]
    (y, *gradients), dy = run(case)
    want, *wanted = expected(case, dy)
    tolerances.assert_within(y, want, tolerances.TF32)
    if case.pool == "max":
        return  # where two candidates are close, the maximum's place is another one
    for gradient, expected_gradient in zip(gradients, wanted, strict=True):
        tolerances.assert_within(gradient, expected_gradient, tolerances.TF32)


@pytest.mark.parametrize(
    ("dtype", "tf32"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
        (torch.bfloat16, False),
    ],
    ids=str,
)
def test_small_integers_are_exact(
    dtype: torch.dtype, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every type of product: values, gradients, and the place of every maximum."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    for name in ("chunks", "elements"):
        case = CASES[name]._replace(dtype=dtype)
        x, w, bias = case.tensors(integers=True)
        kernels = fused(case, x, w)
        y, saved, index = kernels.forward(x, w, bias, save=True)
        dy = torch.randint(-2, 3, y.shape, generator=torch.Generator().manual_seed(2)).to(y)
        actual = kernels.backward(dy, saved, index, x, w, bias, (True, True, True))
        inputs = [t.double().requires_grad_() for t in (x, w, bias) if t is not None]
        want = case.reference(*inputs)
        assert torch.equal(y, want.to(dtype))
        wanted = torch.autograd.grad(want, inputs, dy.double())
        for gradient, exact in zip(actual, wanted, strict=True):
            assert torch.equal(gradient, exact.to(dtype))


@pytest.mark.parametrize("name", ["chunks", "none", "avg", "many_filters", "7x7_stride_2"])
def test_tiles_of_128_rows(name: str) -> None:
    case = CASES[name]
    check(case, tolerances.VALUES[case.dtype], tolerances.GRADIENTS[case.dtype], 128)
    for dtype in (torch.float16, torch.float32):
        small, _ = run(case._replace(dtype=dtype), 64)
        large, _ = run(case._replace(dtype=dtype), 128)
        assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize(
    ("dtype", "tf32"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)],
    ids=str,
)
def test_the_same_bits_in_every_order_of_threads(
    dtype: torch.dtype, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    for name in ("many_channels", "elements", "avg"):
        # enough stages to go round, and several blocks that share a sum
        case = CASES[name]._replace(dtype=dtype, batch=4)
        results = []
        for order in [*ORDERS, ORDERS[0]]:
            set_order(order)
            results.append(run(case)[0])
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("activation", ["relu", "identity", "hardswish"])
@pytest.mark.parametrize("name", ["chunks", "elements"])
def test_the_first_of_equal_maxima_wins(name: str, activation: str) -> None:
    case = CASES[name]._replace(activation=activation)
    x, w, bias = case.tensors(integers=True)
    index = fused(case, x, w).forward(x, w, bias, save=True)[2]
    z = F.conv2d(x.double(), w.double(), None if bias is None else bias.double(), padding=1)
    if activation == "hardswish":  # not monotone: the maximum of act(z)
        z = activate(z, activation, 0.0)
    _, want = F.max_pool2d(z, 2, return_indices=True)
    height, width = want.shape[2:]
    index = index[..., : case.filters].permute(0, 3, 1, 2).long()
    rows = 2 * torch.arange(height, device=DEVICE)[:, None] + index // 2
    columns = 2 * torch.arange(width, device=DEVICE) + index % 2
    assert torch.equal(rows * z.shape[3] + columns, want)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_nan_and_infinity_come_out_where_the_reference_has_them(
    activation: str, value: float
) -> None:
    for name in ("chunks", "elements", "avg", "avg_leaky", "avg_relu6_elements", "none"):
        case = CASES[name]
        if "avg_" not in name:
            case = case._replace(activation=activation)
        x, w, bias = case.tensors()
        x[0, 0, 3, 2] = value
        kernels = fused(case, x, w)
        y, _, index = kernels.forward(x, w, bias, save=case.pool == "max")
        want = case.reference(x.double(), w.double(), None if bias is None else bias.double())
        tolerances.assert_within(y, want, tolerances.VALUES[torch.float32])
        if index is not None:
            assert int(index[..., : case.filters].max()) < 4


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "relu6", "silu", "tanh"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_averages_and_their_masks(channels_last: bool, activation: str) -> None:
    """Index by index as the CPU has them, at the kinks and beyond every number too."""
    from crossmedia_fast.ops.conv_act_pool import cpu

    case = LAST._replace(
        kernel=(1, 1), padding=0, pool="avg", activation=activation, channels=4, filters=4,
        bias=False, channels_last=channels_last,
    )  # fmt: skip
    choices = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 6.0, 7.0, float("inf"), float("-inf"), float("nan")]
    )
    picks = torch.randint(9, (2, 4, 9, 11), generator=torch.Generator().manual_seed(3))
    x = torch.zeros(2, 4, 9, 11)
    x[:, 0] = choices[picks][:, 0]  # alone: infinity times a weight of 0 is NaN
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    w = torch.zeros(4, 4, 1, 1)
    w[:, 0] = 1
    save = activation not in ("silu", "tanh")
    y, _, index = fused(case, x.to(DEVICE), w.to(DEVICE)).forward(
        x.to(DEVICE), w.to(DEVICE), None, save
    )
    z = F.conv2d(x, w)
    launch = cpu.Launch(tuple(z.shape), z.dtype, False, case.pooling())
    want, want_index, _ = launch.forward(z.contiguous(), None, save)
    torch.testing.assert_close(y.cpu().contiguous(), want, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert (index is None) == (want_index is None)
    if index is not None:
        assert torch.equal(index[..., :4].permute(0, 3, 1, 2).cpu(), want_index)


def test_an_infinite_gradient_stays_behind_a_dead_unit() -> None:
    """0 · inf is nowhere: neither where the index says no, nor where a mask's bit is 0."""
    for name in ("chunks", "avg"):
        case = CASES[name]._replace(batch=1, channels=4, kernel=(1, 1), padding=0)
        x, w, _ = case.tensors()
        bias = torch.full((case.filters,), -100.0, device=DEVICE)
        kernels = fused(case, x, w)
        y, saved, index = kernels.forward(x, w, bias, save=True)
        dy = torch.full_like(y, float("inf"))
        for gradient in kernels.backward(dy, saved, index, x, w, bias, (True, True, True)):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", ["chunks", "elements", "none"])
def test_empty_batch(name: str) -> None:
    case = CASES[name]._replace(batch=0)
    x, w, bias = case.tensors()
    kernels = fused(case, x, w)
    y, saved, index = kernels.forward(x, w, bias, save=True)
    dx, dw, dbias = kernels.backward(y, saved, index, x, w, bias, (True, True, True))
    assert y.shape[0] == dx.shape[0] == 0
    assert torch.equal(dw, torch.zeros_like(w))
    assert torch.equal(dbias, torch.zeros_like(bias))


def test_any_strides_and_addresses() -> None:
    """Views, expanded gradients, and memory that is off the allocator's alignment."""
    for name in ("chunks", "elements", "aligned_elements", "none"):
        case = CASES[name]
        x, w, bias = case.tensors()
        kernels = fused(case, x, w)
        y, saved, index = kernels.forward(x, w, bias, save=True)
        again, _, _ = kernels.forward(misaligned(x), misaligned(w), misaligned(bias), save=False)
        assert torch.equal(again, y)
        again, _, _ = kernels.forward(x.repeat(1, 1, 1, 2)[..., : x.shape[3]], w, bias, save=False)
        assert torch.equal(again, y)
        needs = (True, True, True)
        want = kernels.backward(torch.ones_like(y), saved, index, x, w, bias, needs)
        dy = y.new_ones(()).expand(y.shape)
        actual = kernels.backward(dy, saved, index, misaligned(x), w, bias, needs)
        assert all(torch.equal(a, b) for a, b in zip(actual, want, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_formats(channels_last: bool) -> None:
    """y and dx as the input has it, dw as the weight."""
    case = CASES["format_changed"]._replace(channels_last=channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, w, bias = case.tensors()
    kernels = fused(case, x, w)
    y, saved, index = kernels.forward(x, w, bias, save=True)
    assert y.is_contiguous(memory_format=memory_format)
    dx, dw, _ = kernels.backward(y, saved, index, x, w, bias, (True, True, False))
    assert dx.is_contiguous(memory_format=memory_format)
    assert dw.stride() == w.stride()


def test_what_is_refused() -> None:
    refused = {
        "one group": LAST._replace(groups=2),
        "float32, float16 and bfloat16": LAST._replace(dtype=torch.float64),
        "both sides": LAST._replace(padding="same", kernel=(2, 2)),
        "2x2 at stride 2": LAST._replace(pool_size=3),
        "2x2 at": LAST._replace(pool_stride=1),
        "lie inside": LAST._replace(ceil_mode=True),
    }
    for message, case in refused.items():
        x, w, _ = case.tensors()
        with pytest.raises(NotImplementedError, match=message):
            fused(case, x, w)
    case = LAST._replace(pool="avg", activation="gelu")
    assert "keeps no convolution output" in fused(case, *case.tensors()[:2]).why_no_backward()
    assert fused(LAST, *LAST.tensors()[:2]).why_no_backward() == ""


@pytest.mark.parametrize(
    ("shape", "filters", "message"),
    [
        ((40000, 8, 200, 200), 8, "pixels"),
        ((1, 8, 20000, 20000), 8, "2^31 elements"),
        ((2, 100000, 3, 3), 100000, "elements of weights"),
    ],
)
def test_what_is_too_large(shape: tuple[int, ...], filters: int, message: str) -> None:
    case = LAST._replace(batch=shape[0], filters=filters)
    x = torch.empty(shape, device="meta").contiguous(memory_format=torch.channels_last)
    w = torch.empty(filters, shape[1], 3, 3, device="meta")
    with pytest.raises(NotImplementedError) as error:
        fused(case, x, w)
    assert message in str(error.value)


def test_the_plan_does_not_take_it_by_itself() -> None:
    x, w, bias = CASES["chunks"].tensors()
    text = str(cmf.explain(x, w, bias, padding=1, backend="cuda"))
    assert "algorithm epilogue:" in text
    assert "not algorithm implicit_gemm: not yet measured on a GPU" in text


def test_offsets_beyond_32_bits() -> None:
    """The last image lies 2^31 elements behind the first.

    In memory that is never touched but where a large stride looks, and so costs nothing.
    """
    stride = 512
    case = LAST._replace(
        batch=4, height=9000, width=9000, kernel=(1, 1), padding=0, stride=stride, pool="none",
        dtype=torch.float16,
    )  # fmt: skip
    x = torch.empty((5, 9000, 9000, 8), dtype=case.dtype, device=DEVICE).permute(0, 3, 1, 2)
    assert 4 * x.stride(0) > 2**31
    looked_at = x[:, :, ::stride, ::stride]
    generator = torch.Generator().manual_seed(0)
    looked_at.copy_(torch.randn(looked_at.shape, generator=generator, dtype=torch.float64))
    _, w, bias = case._replace(height=4, width=4).tensors()
    kernels = fused(case, x, w)
    y, saved, index = kernels.forward(x, w, bias, save=True)
    _, dw, _ = kernels.backward(y, saved, index, x, w, bias, (False, True, False))

    near = looked_at.contiguous(memory_format=torch.channels_last)
    case = case._replace(height=near.shape[2], width=near.shape[3], stride=1)
    kernels = fused(case, near, w)
    assert torch.equal(kernels.forward(near, w, bias, save=False)[0], y)
    assert torch.equal(
        kernels.backward(y, saved, index, near, w, bias, (False, True, False))[1], dw
    )


@pytest.mark.skipif(not EMULATED, reason="a GPU does not count them here")
def test_no_two_rows_of_a_matrix_meet_in_a_bank() -> None:
    for name in ("many_channels", "elements"):
        cuda_support.kernels.take_bank_conflicts()
        run(CASES[name]._replace(dtype=torch.bfloat16))
        assert cuda_support.kernels.take_bank_conflicts() == 0


def test_native_calls_check_what_they_are_given() -> None:
    x, w, bias = LAST.tensors()
    kernels = fused(LAST, x, w)
    native = cuda_support.kernels
    y = torch.empty(kernels.y_shape, device=DEVICE)
    index = torch.empty(y.numel() + 64, dtype=torch.uint8, device=DEVICE)
    place = cuda_support.device_and_stream(x)

    def call(**changes: Any) -> None:
        values = {
            "x": x.data_ptr(), "w": w.data_ptr(), "bias": bias.data_ptr(), "y": y.data_ptr(),
            "index": index.data_ptr(), "preactivation": 0, "tf32": False, "tile_rows": 0,
        }  # fmt: skip
        native.conv_forward(kernels.problem, *(values | changes).values(), *place)

    call()
    wrong = {
        "x": (0, "x must be an address"),
        "w": (w.data_ptr() + 4, "w must be aligned to 16"),
        "y": (0, "y must be an address"),
        "index": (index.data_ptr() + 1, "index must be aligned to 16"),
        "tile_rows": (32, "tile_rows must be 0, 64 or 128"),
    }
    for name, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            call(**{name: value})
    problem = fused(LAST._replace(pool="avg", activation="gelu"), x, w).problem
    with pytest.raises(ValueError, match="can't take this problem: it keeps no convolution"):
        native.conv_pooled_gradient(problem, y.data_ptr(), 0, 0, 0, 0, 0, *place)
