"""The public function conv_act_pool2d, and what `explain` says about a call of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ... import backends, precision
from . import cpu, cpu_conv, cpu_direct
from .arguments import Conv2d, Pool2d, autocast_enabled, check_conv, check_pool
from .autograd import ActPool2d, act_pool2d_transformable
from .autograd_conv import ConvActPool2d, NativeConv
from .plan import CONVOLUTIONS, Plan, make_plan, why_not_winograd
from .reference import act_pool2d as act_pool2d_reference
from .reference import check_all
from .registration import act_pool2d as act_pool2d_registered

_PLAIN = (Tensor, Parameter)
_MAX_CACHED = 4096


class _Prepared:
    """A checked and planned call; made once per combination of shapes and arguments."""

    __slots__ = (
        "add_batch",
        "bias_in_epilogue",
        "conv_args",
        "launches",
        "native",
        "needs_grad",
        "nothing_to_fuse",
        "plain",
        "plan",
        "pool",
    )

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        conv: Conv2d,
        pool: Pool2d,
        backend: str | None,
    ) -> None:
        z_shape = check_all(input, weight, bias, conv, pool)
        autocast = autocast_enabled(input.device)
        self.needs_grad = _needs_grad(input, weight, bias)
        x_shape = (z_shape[0], *input.shape[-3:])
        w_shape = tuple(weight.shape)
        self.plain = input.device.type == "cpu" and not torch.compiler.is_compiling()
        why_not = dict.fromkeys(("direct", *CONVOLUTIONS), "takes plain tensors on the CPU alone")
        launch = None
        if self.plain and _is_plain(input, weight, bias) and input.dtype == weight.dtype:
            contiguous = input.is_contiguous() and weight.is_contiguous()
            why_not = {
                "direct": cpu_direct.why_not(
                    x_shape, w_shape, z_shape, conv, input.dtype, contiguous, autocast
                )
            }
            launch, refusals = _fused(
                input, weight, x_shape, w_shape, z_shape, conv, pool, autocast, self.needs_grad
            )
            why_not.update(refusals)
        why_not = {name: why for name, why in why_not.items() if why}
        self.plan: Plan = make_plan(
            conv, pool, input.dtype, input.device, backend, why_not, forced_algorithm
        )
        self.native: NativeConv | None = None
        if self.plan.algorithm == "direct":
            self.native = cpu_direct.SmallConv2d(x_shape, w_shape, input.dtype, conv, pool)
        elif self.plan.algorithm in CONVOLUTIONS:
            assert launch is not None
            self.native = cpu_conv.FusedConv2d(self.plan.algorithm, launch, conv, pool)
        self.pool = pool
        self.nothing_to_fuse = pool.activation == "identity" and pool.pool == "none"
        self.conv_args: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.add_batch = input.dim() == 3
        # The half types round once at the end of the convolution, bias included: leave it there.
        # In float32 and float64 the epilogue adds it, and its gradient comes from the pooled one.
        self.bias_in_epilogue = (
            bias is not None
            and input.dtype in (torch.float32, torch.float64)
            and bias.dtype == input.dtype
            and not autocast
        )
        self.launches: dict[tuple[bool, torch.dtype], cpu.Launch] = {}

    def launch(self, x: Tensor, channels_last: bool) -> cpu.Launch:
        key = (channels_last, x.dtype)
        launch = self.launches.get(key)
        if launch is None:
            launch = self.launches[key] = cpu.launch_for(
                tuple(x.shape), x.dtype, channels_last, self.pool
            )
        return launch


_prepared: dict[Any, _Prepared] = {}
forced_algorithm: str | None = None  # for tests, which clear _prepared around it


def _needs_grad(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def _fused(
    input: Tensor,
    weight: Tensor,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    z_shape: tuple[int, ...],
    conv: Conv2d,
    pool: Pool2d,
    autocast: bool,
    needs_grad: bool,
) -> tuple[cpu_conv.ConvLaunch | None, dict[str, str]]:
    """The native module's own convolutions: a launch, and why each of them doesn't take it."""
    if autocast:
        return None, dict.fromkeys(CONVOLUTIONS, "takes no autocast")
    x_channels_last = cpu.is_channels_last(input if input.dim() == 4 else input.unsqueeze(0))
    # a channels_last weight makes PyTorch's convolution give channels_last too
    y_channels_last = x_channels_last or cpu.is_channels_last(weight)
    try:
        launch = cpu_conv.ConvLaunch(
            x_shape, w_shape, z_shape, input.dtype, conv, pool, x_channels_last, y_channels_last
        )
    except (NotImplementedError, ValueError) as error:
        return None, dict.fromkeys(CONVOLUTIONS, str(error))
    if needs_grad and launch.pool_launch.saved == "input":
        reason = "keeps no convolution output for the backward of this activation"
        return None, dict.fromkeys(CONVOLUTIONS, reason)
    refusals = {name: launch.refusal(name) for name in CONVOLUTIONS}
    if not refusals["winograd"] and forced_algorithm is None:
        refusals["winograd"] = why_not_winograd(
            x_shape, w_shape, z_shape, conv, precision.get_conv_precision()
        )
    return launch, refusals


def _run_epilogue(x: Tensor, bias: Tensor | None, prepared: _Prepared) -> Tensor:
    """pool(act(x + bias)) for a fresh convolution output `x`: nobody else holds it."""
    if _transforms_active():
        return act_pool2d_transformable(x, bias, prepared.pool)
    channels_last = False
    if not x.is_contiguous():
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if not channels_last:
            x = x.contiguous()
    launch = prepared.launches.get((channels_last, x.dtype)) or prepared.launch(x, channels_last)
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        y = ActPool2d.apply(x, bias, launch, prepared.pool)
        return y if type(y) is Tensor else y[0]
    return cpu.act_pool2d_forward(launch, x, bias, False, prepared.pool.pool == "none")[0]


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
        return ConvActPool2d.apply(input, weight, bias, kernels)
    return kernels.forward(input, weight, bias, save=False)[0]


def _is_plain(input: Any, weight: Any, bias: Any) -> bool:
    """Whether nothing stands between these tensors and their memory: no subclass, no mode."""
    return (
        type(input) in _PLAIN
        and type(weight) in _PLAIN
        and (bias is None or type(bias) in _PLAIN)
        and not torch._C._len_torch_dispatch_stack()
    )


def _run(input: Tensor, weight: Tensor, bias: Tensor | None, prepared: _Prepared) -> Tensor:
    if prepared.add_batch:
        input = input.unsqueeze(0)
    plain = prepared.plain and _is_plain(input, weight, bias)
    algorithm = prepared.plan.algorithm
    if plain and prepared.native is not None and not _transforms_active():
        y = _run_native(input, weight, bias, prepared.native, prepared.needs_grad)
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


def _run_registered(x: Tensor, bias: Tensor | None, prepared: _Prepared) -> Tensor:
    save = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    return act_pool2d_registered(x, bias, prepared.pool, save)


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
    wins,
    as in ``F.max_pool2d``), empty batches and errors. :func:`conv_act_pool2d_reference` is that
    line.

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
        what
            came.
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
                input.layout == torch.strided and input.is_contiguous(),
                weight.shape,
                weight.dtype,
                weight.device,
                weight.layout,
                weight.layout == torch.strided and weight.is_contiguous(),
                None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
                torch._C._is_any_autocast_enabled() and torch.get_autocast_dtype("cpu"),
                activation,
                pool,
                backends.requested() if backend is None else backend,
                _needs_grad(input, weight, bias),
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
            prepared = _prepared.get(key)
        except (AttributeError, TypeError):
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
        prepared = _Prepared(input, weight, bias, conv, fused, backend)
        if key is not None and _is_plain(input, weight, bias):
            if len(_prepared) >= _MAX_CACHED:
                _prepared.clear()
            _prepared[key] = prepared
    return _run(input, weight, bias, prepared)


def explain_conv_act_pool2d(
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
) -> Plan:
    """The plan of a call with these arguments: nothing runs."""
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
    return _Prepared(input, weight, bias, conv, fused, backend).plan
