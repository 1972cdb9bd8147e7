"""The fused Triton convolution against the reference in float64: values, indices, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS, activate
from crossmedia_fast.ops.conv_act_pool.autograd import flat_index

from . import tolerances
from .triton_calls import Case, runs_kernels

pytestmark = runs_kernels


@pytest.fixture(autouse=True)
def _ieee_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU too, so that one tolerance holds."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


SMALL = Case(batch=1, channels=2, height=6, width=4, filters=3)

CASES = {
    "plain": Case(),
    "channels_last": Case(channels_last=True),
    "whole_taps": SMALL._replace(channels=16, filters=17, kernel=(1, 2), padding=0),
    "whole_taps_channels_last": SMALL._replace(
        channels=16, filters=17, kernel=(1, 2), padding=0, channels_last=True, pool="avg"
    ),
    "whole_taps_masked": SMALL._replace(channels=13, kernel=(2, 1), padding=0, channels_last=True),
    "no_bias": Case(bias=False, kernel=(1, 1), padding=0),
    "no_padding_odd": Case(padding=0, height=8, width=9),
    "stride_2": Case(stride=2, height=9, width=11),
    "stride_3_kernel_2": Case(stride=3, kernel=(2, 2), padding=0, height=14, width=8),
    "stride_2_dilation_2": Case(stride=2, dilation=2, padding=2, height=9, width=11),
    "mixed": Case(stride=(1, 2), padding=(2, 0), dilation=(2, 1), kernel=(3, 2), height=8, width=9),
    "groups": Case(channels=4, filters=6, groups=2),
    "groups_channels_last": Case(channels=4, filters=6, groups=2, channels_last=True),
    "depthwise": Case(channels=3, filters=6, groups=3),
    "same": Case(padding="same", kernel=(3, 5)),
    "batch_of_windows": Case(batch=3, height=4, width=4, channels=2),
    "pool_3_stride_2": SMALL._replace(pool_size=3, pool_stride=2, pool_padding=1),
    "pool_ceil": SMALL._replace(height=7, width=5, ceil_mode=True),
    "pool_2x1": SMALL._replace(pool_size=(2, 1)),
    "pool_overlapping": SMALL._replace(pool_size=(2, 3), pool_stride=1),
    "pool_gap": SMALL._replace(pool_size=1, pool_stride=2),
    "avg": Case(pool="avg"),
    "avg_identity": Case(pool="avg", activation="identity"),
    "avg_padding": SMALL._replace(
        pool="avg", activation="identity", pool_size=3, pool_stride=2, pool_padding=1
    ),
    "avg_ceil_no_pad": SMALL._replace(
        pool="avg", pool_size=(2, 3), pool_padding=1, ceil_mode=True, count_include_pad=False
    ),
    "avg_leaky": Case(pool="avg", activation="leaky_relu", param=0.3),
    "avg_relu6": Case(pool="avg", activation="relu6"),
    "none": Case(pool="none"),
    "none_channels_last": Case(pool="none", channels_last=True),
}
for _name, _default in ACTIVATIONS.items():
    CASES[f"max_{_name}"] = SMALL._replace(activation=_name)
    CASES[f"none_{_name}"] = SMALL._replace(activation=_name, pool="none")
CASES["max_elu_negative"] = SMALL._replace(activation="elu", param=-0.5)
CASES["max_leaky_negative"] = SMALL._replace(activation="leaky_relu", param=-0.2)
CASES["max_softplus_beta"] = SMALL._replace(activation="softplus", param=3.0)


def run(case: Case) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """y and the gradients of x, w and bias; and the same from the reference in float64."""
    x, w, bias = case.tensors()
    kernels = case.fused(x, w)
    y, saved, index = kernels.forward(x, w, bias, save=True)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y)
    needs = (True, True, bias is not None)
    gradients = kernels.backward(dy, saved, index, x, w, bias, needs)
    actual = [y, *(g for g in gradients if g is not None)]

    inputs = [t.double().requires_grad_() for t in (x, w, bias) if t is not None]
    expected_y = case.reference(*inputs, *([] if bias is not None else [None]))
    expected = [expected_y, *torch.autograd.grad(expected_y, inputs, dy.double())]
    return actual, expected


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients(case: Case) -> None:
    actual, expected = run(case)
    tolerances.assert_within(actual[0], expected[0], tolerances.VALUES[case.dtype])
    for gradient, want in zip(actual[1:], expected[1:], strict=True):
        tolerances.assert_within(gradient, want, tolerances.GRADIENTS[case.dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["plain", "groups_channels_last", "avg", "none_silu"])
def test_half_types(name: str, dtype: torch.dtype) -> None:
    # products and sums in float32, so a maximum is the float64 one's; what is rounded is each
    # saved element, each gradient and each result, once
    actual, expected = run(CASES[name]._replace(dtype=dtype))
    for tensor, want in zip(actual, expected, strict=True):
        assert tensor.dtype == dtype
        tolerances.assert_within(tensor, want, tolerances.VALUES[dtype])


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_follows_the_input(channels_last: bool) -> None:
    x, w, bias = Case(channels_last=channels_last).tensors()
    y, _, index = Case().fused(x, w).forward(x, w, bias, save=True)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format)
    assert index is not None
    assert index.dtype == torch.uint8


def test_strides_of_the_weight_are_its_gradients() -> None:
    x, w, bias = Case().tensors()
    w = w.contiguous(memory_format=torch.channels_last)
    kernels = Case().fused(x, w)
    y, saved, index = kernels.forward(x, w, bias, save=True)
    _, dw, _ = kernels.backward(y, saved, index, x, w, bias, (False, True, False))
    assert dw is not None
    assert dw.stride() == w.stride()


@pytest.mark.parametrize("activation", ["relu", "identity", "hardswish"])
@pytest.mark.parametrize("name", ["plain", "channels_last", "pool_3_stride_2", "pool_ceil"])
def test_the_first_of_equal_maxima_wins(name: str, activation: str) -> None:
    # small integers: exact sums, many ties
    case = CASES[name]._replace(activation=activation)
    x, w, bias = case.tensors(integers=True)
    index = case.fused(x, w).forward(x, w, bias, save=True)[2]
    assert index is not None
    z = F.conv2d(x, w, bias, padding=case.padding)
    if activation == "hardswish":  # not monotone: the maximum of act(z)
        z = activate(z.double(), activation, 0.0).float()
    pool = case.pooling()
    _, expected = F.max_pool2d(
        z, pool.size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode, return_indices=True
    )
    assert torch.equal(flat_index(index, pool, z.shape[-1]), expected.flatten(-2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_nan_and_infinity_come_out_where_the_reference_has_them(
    activation: str, value: float
) -> None:
    case = Case(channels=1, filters=2, activation=activation, pool_size=3, pool_stride=2)
    x, w, bias = case.tensors()
    x[0, 0, 3, 2] = value
    y, _, index = case.fused(x, w).forward(x, w, bias, save=True)
    want = case.reference(x.double(), w.double(), None if bias is None else bias.double())
    tolerances.assert_within(y, want, tolerances.VALUES[torch.float32])
    assert index is not None
    assert int(index.max()) < 9  # a position in the window, whatever the values


def test_an_infinite_gradient_behind_a_dead_unit_stays_out() -> None:
    case = Case(channels=1, filters=1, kernel=(1, 1), padding=0)
    x, w, bias = case.tensors()
    x, w, bias = -torch.ones_like(x), torch.ones_like(w), torch.zeros_like(bias)
    kernels = case.fused(x, w)
    y, saved, index = kernels.forward(x, w, bias, save=True)
    dy = torch.full_like(y, float("inf"))
    for gradient in kernels.backward(dy, saved, index, x, w, bias, (True, True, True)):
        assert gradient is not None
        assert not gradient.any()


def test_gradients_are_the_same_bits_every_time() -> None:
    case = Case(batch=4, height=6, width=6)
    first, again = run(case)[0], run(case)[0]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_empty_batch() -> None:
    x, w, bias = Case(batch=0).tensors()
    kernels = Case(batch=0).fused(x, w)
    y, saved, index = kernels.forward(x, w, bias, save=True)
    dx, dw, dbias = kernels.backward(y, saved, index, x, w, bias, (True, True, True))
    assert y.shape == (0, 5, 3, 3)
    assert dx is not None
    assert dx.shape == x.shape
    for gradient in (dw, dbias):
        assert gradient is not None
        assert not gradient.any()


def test_the_default_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile that a GPU would run: with a window in one thread, or its positions side by side."""
    from crossmedia_fast import triton_support
    from crossmedia_fast.ops.conv_act_pool import triton_conv, triton_tiles

    monkeypatch.setattr(triton_support, "interpreting", lambda: False)
    defaults = {
        kernel: triton_tiles.configs(kernel, torch.float32)[0]
        for kernel in ("forward", "input_gradient", "weight_gradient")
    }
    monkeypatch.undo()
    monkeypatch.setattr(triton_conv, "configs", lambda kernel, dtype: (defaults[kernel],))
    case = SMALL._replace(height=10, width=10)
    x, w, bias = case.tensors()
    want = case.reference(x.double(), w.double(), None if bias is None else bias.double())
    for rows_apart in (False, True):
        kernels = case.fused(x, w)
        kernels.rows_apart = rows_apart
        y = kernels.forward(x, w, bias, save=True)[0]
        tolerances.assert_within(y, want, tolerances.VALUES[torch.float32])


@pytest.mark.parametrize("name", ["plain", "avg_ceil_no_pad", "stride_2"])
def test_offsets_in_64_bits_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossmedia_fast import triton_launch

    narrow, _ = run(CASES[name])
    monkeypatch.setattr(triton_launch, "FIRST_WIDE", 0)
    wide, _ = run(CASES[name])
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("axis", ["n", "c"])
def test_offsets_beyond_32_bits(axis: str) -> None:
    """The last image, or the last channel, lies 2^31 elements behind the first.

    In memory that is never touched between them, which costs nothing until it is.
    """
    from crossmedia_fast.ops.conv_act_pool import triton_tiles

    case = SMALL._replace(batch=3, channels=3, dtype=torch.float16, kernel=(2, 2))
    x, w, bias = case.tensors()
    kernels = case.fused(x, w)
    stride = 2**30 + 8  # of the axis: the third one is beyond
    far = torch.empty(2 * stride + x.numel(), dtype=x.dtype, device=x.device)
    strides = {"n": x.stride(0), "c": x.stride(1), "h": x.stride(2), "w": x.stride(3)}
    strides[axis] = stride
    if axis == "c":
        strides["n"] = x[0, 0].numel()
    view = far.as_strided(x.shape, tuple(strides.values()))
    view.copy_(x)

    (config, *_) = triton_tiles.configs("forward", x.dtype)
    y, _, index = kernels.forward(x, w, bias, save=True)
    far_y = torch.empty_like(y)
    w_packed = w.contiguous(memory_format=torch.channels_last)
    call = kernels.forward_call(config, far, w_packed, bias, far_y, None, None)
    beyond = {f"x_stride_{name}": value for name, value in strides.items()}
    call.arguments.update(beyond)
    call.constants["WIDE"] = True
    call()
    assert torch.equal(far_y, y)

    # and the way back: dx is written there
    (config, *_) = triton_tiles.configs("input_gradient", x.dtype)
    near = kernels.input_gradient(y, index, w)
    call = kernels.input_gradient_call(config, y, index, w_packed, far)
    call.arguments.update(beyond)
    call.constants["WIDE"] = True
    view.fill_(7)
    call()
    assert torch.equal(view, near)


def test_what_is_too_large_for_32_bits() -> None:
    """A launch counts the tensors and not the bytes, with room for a block behind the end."""
    for height, wide in ((1023, False), (1024, True)):
        x = torch.empty(16, 64, height, 1024, dtype=torch.float16, device="meta")
        w = torch.empty(8, 64, 1, 1, dtype=torch.float16, device="meta")
        case = Case(batch=16, filters=8, padding=0)
        kernels = case.fused(x, w)
        assert kernels._constants()["WIDE"] is wide, height


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_registered_ops(activation: str) -> None:
    """What torch.compile sees gives the same values and gradients, and second derivatives."""
    from crossmedia_fast.ops.conv_act_pool import triton_registration

    case = SMALL._replace(activation=activation)
    tensors = [t.requires_grad_() for t in case.tensors() if t is not None]
    x, w, bias = tensors
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    want = case.reference(*doubles)
    expected = torch.autograd.grad(want.square().sum(), doubles, create_graph=True)
    (expected_second,) = torch.autograd.grad(expected[0].square().sum(), doubles[1])

    fused = triton_registration.conv_act_pool2d(x, w, bias, case.conv(), case.pooling(), True)
    z = F.conv2d(x, w, None, padding=1)
    epilogue = triton_registration.act_pool2d(z, bias, case.pooling(), True)
    for y in (fused, epilogue):
        tolerances.assert_within(y, want, tolerances.VALUES[torch.float32])
        actual = torch.autograd.grad(y.square().sum(), tensors, retain_graph=True)
        for gradient, expected_gradient in zip(actual, expected, strict=True):
            tolerances.assert_within(gradient, expected_gradient, tolerances.GRADIENTS[x.dtype])
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(dx.square().sum(), w)
        tolerances.assert_within(second, expected_second, 1e-4)
