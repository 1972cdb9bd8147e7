"""The Triton kernels as torch.library ops: torch.compile sees the launches themselves.

Importing this imports Triton, and defines the ops once. The eager path does not come through here:
it takes autograd.py's and autograd_conv.py's functions with triton.Launch and FusedConv2d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import triton, triton_conv
from .arguments import Conv2d, Pool2d, conv_output_size
from .autograd import differentiable_backward
from .memory_format import as_format, is_channels_last
from .reference import act_pool2d as act_pool2d_reference
from .registration import _as_args, _check_op_tensors, _pool, saved_kind


def _filled(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An op returns tensors: an empty one for none."""
    return like.new_empty((0,)) if tensor is None else tensor


def _kept(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.dim() == 4 else None


# -- bias, activation and pooling of a convolution's output --


@torch.library.triton_op("crossmedia_fast::triton_act_pool2d", mutates_args={})
def triton_act_pool2d(
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    activation_param: float,
    pool: str,
    pool_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, index and pre-activation; empty where there is none."""
    pool2d = _pool(
        activation,
        activation_param,
        pool,
        pool_size,
        pool_stride,
        pool_padding,
        ceil_mode,
        count_include_pad,
    )
    _check_op_tensors(x, bias)
    channels_last = is_channels_last(x)
    x = as_format(x, channels_last)
    launch = triton.Launch(tuple(map(int, x.shape)), x.dtype, channels_last, pool2d)
    bias = None if bias is None else bias.contiguous()
    y, index, preactivation = launch.forward(x, bias, save)
    return y, _filled(index, x), _filled(preactivation, x)


@torch.library.triton_op("crossmedia_fast::triton_act_pool2d_backward", mutates_args={})
def triton_act_pool2d_backward(
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    index: Tensor | None,
    x_shape: Sequence[int],
    channels_last: bool,
    activation: str,
    activation_param: float,
    pool: str,
    pool_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Tensor, Tensor]:
    """dx and dbias."""
    pool2d = _pool(
        activation,
        activation_param,
        pool,
        pool_size,
        pool_stride,
        pool_padding,
        ceil_mode,
        count_include_pad,
    )
    launch = triton.Launch(tuple(map(int, x_shape)), dy.dtype, channels_last, pool2d)
    dense = [None if t is None else as_format(t, channels_last) for t in (saved, index)]
    bias = None if bias is None else bias.contiguous()
    dx, dbias = launch.backward(dy, dense[0], bias, dense[1], True, True)
    assert dx is not None
    assert dbias is not None
    # an op's result is no alias of its argument
    return dx.clone() if dx is dy else dx, dbias


def _setup_act_pool(ctx: Any, inputs: Any, output: Any) -> None:
    x, bias, *pool_args, _ = inputs
    y, index, preactivation = output
    ctx.pool = _pool(*pool_args)
    ctx.kind = saved_kind(ctx.pool)
    ctx.x_shape, ctx.channels_last = x.shape, is_channels_last(x)
    ctx.set_materialize_grads(False)
    saved = {"output": y, "preactivation": preactivation, "input": x}.get(ctx.kind)
    ctx.save_for_backward(saved, _kept(index), bias if ctx.kind == "input" else None)


def _backward_act_pool(ctx: Any, dy: Tensor | None, _: Any, dpreactivation: Tensor | None) -> Any:
    pool_arguments = (None,) * 9
    if ctx.kind != "preactivation":
        dpreactivation = None  # of the empty tensor that stands for none
    if dy is None and dpreactivation is None:
        return None, None, *pool_arguments
    saved, index, bias = ctx.saved_tensors
    if torch.is_grad_enabled() or dpreactivation is not None:
        dx, dbias = differentiable_backward(
            ctx.pool, ctx.kind, ctx.x_shape, dy, dpreactivation, saved, bias, index
        )
    else:
        assert dy is not None
        dx, dbias = triton_act_pool2d_backward(
            dy, saved, bias, index, list(ctx.x_shape), ctx.channels_last, *_as_args(ctx.pool)
        )
    return dx, dbias if ctx.needs_input_grad[1] else None, *pool_arguments


triton_act_pool2d.register_autograd(_backward_act_pool, setup_context=_setup_act_pool)


def act_pool2d(x: Tensor, bias: Tensor | None, pool: Pool2d, save: bool) -> Tensor:
    """The registered op, called the way the public function does."""
    return triton_act_pool2d(x, bias, *_as_args(pool), save)[0]


# -- the fused convolution --


def _fused(
    x: Tensor, w: Tensor, conv_args: Sequence[Any], pool2d: Pool2d
) -> triton_conv.FusedConv2d:
    stride, padding, dilation, groups = conv_args
    conv = Conv2d(tuple(stride), tuple(padding), tuple(dilation), groups)
    z_shape = (int(x.shape[0]), int(w.shape[0]), *map(int, conv_output_size(x, w, conv)))
    return triton_conv.fused(x, w, z_shape, conv, pool2d)


@torch.library.triton_op("crossmedia_fast::triton_conv_act_pool2d", mutates_args={})
def triton_conv_act_pool2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    activation_param: float,
    pool: str,
    pool_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, pre-activation and index; empty where there is none."""
    pool2d = _pool(
        activation,
        activation_param,
        pool,
        pool_size,
        pool_stride,
        pool_padding,
        ceil_mode,
        count_include_pad,
    )
    kernels = _fused(x, w, (stride, padding, dilation, groups), pool2d)
    bias = None if bias is None else bias.contiguous()
    y, saved, index = kernels.forward(x, w, bias, save)
    return y, _filled(None if saved is y else saved, x), _filled(index, x)


@torch.library.triton_op("crossmedia_fast::triton_conv_act_pool2d_backward", mutates_args={})
def triton_conv_act_pool2d_backward(
    dy: Tensor,
    saved: Tensor | None,
    index: Tensor | None,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    activation_param: float,
    pool: str,
    pool_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dw and dbias; empty where not needed."""
    pool2d = _pool(
        activation,
        activation_param,
        pool,
        pool_size,
        pool_stride,
        pool_padding,
        ceil_mode,
        count_include_pad,
    )
    kernels = _fused(x, w, (stride, padding, dilation, groups), pool2d)
    need_dx, need_dw, need_dbias = needs
    gradients = kernels.backward(dy, saved, index, x, w, None, (need_dx, need_dw, need_dbias))
    dx, dw, dbias = (_filled(gradient, x) for gradient in gradients)
    return dx, dw, dbias


def _setup_conv(ctx: Any, inputs: Any, output: Any) -> None:
    x, w, bias, *rest, _ = inputs
    y, preactivation, index = output
    ctx.conv_args, ctx.pool = tuple(rest[:4]), _pool(*rest[4:])
    ctx.set_materialize_grads(False)
    saved = y if saved_kind(ctx.pool) == "output" else _kept(preactivation)
    ctx.save_for_backward(x, w, bias, saved, _kept(index))


def _backward_conv(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    arguments = (None,) * 13
    if dy is None:
        return None, None, None, *arguments
    x, w, bias, saved, index = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    if torch.is_grad_enabled():
        # every derivative beyond the first: of the same call in operations to be taken apart
        with torch.enable_grad():
            z = F.conv2d(x, w, bias, *ctx.conv_args)
            y = act_pool2d_reference(z, ctx.pool)
        wanted = [t for t, need in zip((x, w, bias), needs, strict=True) if need]
        given = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
        return *(next(given) if need else None for need in needs), *arguments
    gradients = triton_conv_act_pool2d_backward(
        dy, saved, index, x, w, *ctx.conv_args, *_as_args(ctx.pool), needs
    )
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *arguments


triton_conv_act_pool2d.register_autograd(_backward_conv, setup_context=_setup_conv)


def conv_act_pool2d(
    x: Tensor, w: Tensor, bias: Tensor | None, conv: Conv2d, pool: Pool2d, save: bool
) -> Tensor:
    """The registered op, called the way the public function does; what `why_not` refuses, not."""
    padding = conv.symmetric_padding(tuple(w.shape[2:]))
    if padding is None:
        raise NotImplementedError("takes the same padding on both sides of an axis alone")
    conv_args = (list(conv.stride), list(padding), list(conv.dilation), conv.groups)
    return triton_conv_act_pool2d(x, w, bias, *conv_args, *_as_args(pool), save)[0]
