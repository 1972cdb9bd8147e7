"""The public function conv_act_pool2d, and what `explain` says about a call of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ... import backends, precision
from . import folding, space_to_batch
from .arguments import check_conv, check_pool
from .autograd import act_pool2d_transformable, apply_act_pool2d
from .autograd_conv import conv_act_pool2d_native
from .kernels import NativeConv
from .plan import Plan
from .prepared import Prepared, is_plain, needs_grad_of, prepared_calls
from .reference import act_pool2d as act_pool2d_reference
from .registration import act_pool2d as act_pool2d_registered
from .registration import conv_act_pool2d as conv_act_pool2d_registered

_MAX_CACHED = 4096


def _run_epilogue(x: Tensor, bias: Tensor | None, prepared: Prepared) -> Tensor:
    """pool(act(x + bias)) for a fresh convolution output `x`: nobody else holds it."""
    if _transforms_active():
        return act_pool2d_transformable(x, bias, prepared.pool, prepared.plan.backend)
    channels_last = False
    if not x.is_contiguous():
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if not channels_last:
            x = x.contiguous()
    launch = prepared.launches.get((channels_last, x.dtype)) or prepared.launch(x, channels_last)
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        y = apply_act_pool2d(x, bias, launch, prepared.pool)
        return y if type(y) is Tensor else y[0]
    return launch.forward(x, bias, False, prepared.pool.pool == "none")[0]


def _transforms_active() -> bool:
    """Whether torch.func or forward-mode AD looks at what happens."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _run_native(
    input: Tensor, weight: Tensor, bias: Tensor | None, kernels: NativeConv, needs_grad: bool
) -> Tensor:
    """Convolution, activation and pooling, as one node of the graph."""
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if needs_grad:
        return conv_act_pool2d_native(input, weight, bias, kernels)
    return kernels.forward(input, weight, bias, save=False)[0]


def run_prepared(input: Tensor, weight: Tensor, bias: Tensor | None, prepared: Prepared) -> Tensor:
    if prepared.add_batch:
        input = input.unsqueeze(0)
    plain = prepared.plain and is_plain(input, weight, bias)
    algorithm = prepared.plan.algorithm
    y: Tensor | None = None
    if algorithm == "folded" and plain and not _transforms_active():
        y = _run_folded(input, weight, bias, prepared)
    elif algorithm == "space_to_batch" and plain and not _transforms_active():
        y = _run_phases(input, weight, bias, prepared)
    if y is not None:
        pass
    elif plain and prepared.native is not None and not _transforms_active():
        y = _run_native(input, weight, bias, prepared.native, prepared.needs_grad)
    elif algorithm == "implicit_gemm" and prepared.native is None and not _transforms_active():
        y = conv_act_pool2d_registered(
            input, weight, bias, prepared.conv, prepared.pool, prepared.needs_grad
        )
    elif algorithm == "convolution" or prepared.nothing_to_fuse:
        y = F.conv2d(input, weight, bias, *prepared.conv_args)
    elif algorithm == "reference":
        x = F.conv2d(input, weight, bias, *prepared.conv_args)
        y = act_pool2d_reference(x, prepared.pool)
    else:
        in_epilogue = bias if prepared.bias_in_epilogue else None
        in_conv = None if prepared.bias_in_epilogue else bias
        x = F.conv2d(input, weight, in_conv, *prepared.conv_args)
        run = _run_epilogue if plain else _run_registered
        y = run(x, in_epilogue, prepared)
    return y.squeeze(0) if prepared.add_batch else y


def _run_folded(
    input: Tensor, weight: Tensor, bias: Tensor | None, prepared: Prepared
) -> Tensor | None:
    padding, groups = prepared.conv_args[1], prepared.conv_args[3]

    def convolve(folded: Tensor) -> Tensor:
        return conv_act_pool2d(
            input,
            folded,
            bias,
            prepared.pool.size,
            padding,
            groups=groups,
            activation="identity",
            pool="none",
            backend=prepared.plan.backend,
        )

    return folding.run(convolve, weight, prepared.pool, prepared.needs_grad)


def _run_phases(input: Tensor, weight: Tensor, bias: Tensor | None, prepared: Prepared) -> Tensor:
    """As images of every d-th pixel; a pooling, whose windows have pixels of all, comes behind."""
    pool = prepared.pool
    pooled = pool.pool != "none"

    def convolve(phases: Tensor, padding: tuple[int, int]) -> Tensor:
        return conv_act_pool2d(
            phases,
            weight,
            bias,
            padding=padding,
            activation="identity" if pooled else pool.activation,
            activation_param=None if pooled else pool.given_param(),
            pool="none",
            backend=prepared.plan.backend,
        )

    taps = weight.shape[2], weight.shape[3]
    z = space_to_batch.run(convolve, input, taps, prepared.conv)
    return _run_epilogue(z, None, prepared) if pooled else z


def _run_registered(x: Tensor, bias: Tensor | None, prepared: Prepared) -> Tensor:
    save = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    return act_pool2d_registered(x, bias, prepared.pool, save, prepared.plan.backend)


def conv_act_pool2d(
    input: Tensor,  # [N, C, H, W] or [C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None = None,  # [K]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    activation_param: float | None = None,
    pool: str = "max",
    pool_size: int | tuple[int, int] = 2,
    pool_stride: int | tuple[int, int] | None = None,
    pool_padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    backend: str | None = None,
) -> Tensor:  # [N, K, P, Q] or [K, P, Q]
    r"""Convolution, activation and pooling as one operation.

    Fused, in this order:

    1. convolution of ``input`` [N, C, H, W] with ``weight`` [K, C / groups, R, S];
    2. ``bias`` [K] added;
    3. the activation;
    4. max or average pooling, or none.

    Equivalent to: ``pool(act(F.conv2d(input, weight, bias, stride, padding, dilation, groups)))``
    for values, gradients of every order, NaN and infinity, ties (the first maximum in row order
    wins, as in ``F.max_pool2d``), empty batches and errors. :func:`conv_act_pool2d_reference` is
    that line.

    Args:
        input: [N, C, H, W] or [C, H, W], any strides; float32, float64, float16 or bfloat16.
        weight: [K, C / groups, R, S], of the input's dtype and device.
        bias: [K] or None.
        stride, padding, dilation, groups: as :func:`torch.nn.functional.conv2d`; ``padding`` also
            ``"same"`` or ``"valid"``.
        activation: ``"identity"`` ``"relu"`` ``"leaky_relu"`` ``"relu6"`` ``"elu"`` ``"silu"``
            ``"gelu"`` ``"gelu_tanh"`` ``"tanh"`` ``"sigmoid"`` ``"softplus"`` ``"hardswish"``.
        activation_param: leaky_relu: negative_slope (0.01); elu: alpha (1.0); softplus: beta (1.0).
        pool: ``"max"``, ``"avg"`` or ``"none"``.
        pool_size, pool_stride, pool_padding, ceil_mode, count_include_pad: as
            :func:`torch.nn.functional.max_pool2d` and ``avg_pool2d``; ``pool_stride=None`` is
            ``pool_size``.
        backend: None = choose; or ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``.

    Returns:
        [N, K, P, Q] (or [K, P, Q]), in the memory format that the convolution gives.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and
            what came.
        NotImplementedError: the named backend can't run, or a tensor is sparse or nested.

    For backward it keeps the input and weight, and of the rest at most the pooled output and one
    byte an output element, for every activation whose derivative follows from its output.
    """
    key: Any = None
    prepared = None
    if not torch.compiler.is_compiling():
        try:
            key = (
                input.shape,
                input.dtype,
                input.device,
                input.layout,
                # False, or the channels' stride, which tells the memory format of one channel
                input.layout == torch.strided and input.is_contiguous() and input.stride(-3),
                weight.shape,
                weight.dtype,
                weight.device,
                weight.layout,
                weight.layout == torch.strided and weight.is_contiguous() and weight.stride(-3),
                None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
                torch._C._is_any_autocast_enabled() and torch.get_autocast_dtype(input.device.type),
                activation,
                pool,
                backends.requested() if backend is None else backend,
                needs_grad_of(input, weight, bias),
                precision._precision,
                arguments := (
                    stride,
                    padding,
                    dilation,
                    groups,
                    activation_param,
                    pool_size,
                    pool_stride,
                    pool_padding,
                    ceil_mode,
                    count_include_pad,
                ),
                # 2.0 and True are equal to integers, but no sizes
                *map(type, arguments),
            )
            prepared = prepared_calls.get(key)
        except (AttributeError, IndexError, TypeError):
            # A list or a symbolic size is no key, and what is no tensor has no shape: the long way,
            # which says what is wrong where something is.
            key = None
    if prepared is None:
        conv = check_conv(stride, padding, dilation, groups)
        fused = check_pool(
            activation,
            activation_param,
            pool,
            pool_size,
            pool_stride,
            pool_padding,
            ceil_mode,
            count_include_pad,
        )
        prepared = Prepared(input, weight, bias, conv, fused, backend)
        if key is not None and is_plain(input, weight, bias):
            if len(prepared_calls) >= _MAX_CACHED:
                prepared_calls.clear()
            prepared_calls[key] = prepared
    return run_prepared(input, weight, bias, prepared)


def prepare_conv_act_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    activation_param: float | None = None,
    pool: str = "max",
    pool_size: Any = 2,
    pool_stride: Any = None,
    pool_padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    backend: str | None = None,
) -> Prepared:
    """A call with these arguments, checked and planned: nothing runs."""
    conv = check_conv(stride, padding, dilation, groups)
    fused = check_pool(
        activation,
        activation_param,
        pool,
        pool_size,
        pool_stride,
        pool_padding,
        ceil_mode,
        count_include_pad,
    )
    return Prepared(input, weight, bias, conv, fused, backend)


def explain_conv_act_pool2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any
) -> Plan:
    """The plan of a call of conv_act_pool2d with these arguments: nothing runs."""
    return prepare_conv_act_pool2d(input, weight, bias, *arguments, **named).plan
