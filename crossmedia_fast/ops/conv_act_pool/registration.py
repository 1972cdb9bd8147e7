"""act_pool2d as torch.library ops: what torch.compile, torch.export and FakeTensor see.

The eager path does not come through here: a dispatched op costs several microseconds more than the
plain autograd.Function of autograd.py, whose rule both share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backends import resolve
from .arguments import Pool2d
from .autograd import differentiable_backward
from .kernels import ActPool2dLaunch, launch_for
from .memory_format import as_format, dense_strides, is_channels_last

_POOL_ARGS = (
    "str activation, float activation_param, str pool, SymInt[2] pool_size, SymInt[2] pool_stride, "
    "SymInt[2] pool_padding, bool ceil_mode, bool count_include_pad, bool channels_last, "
    "str backend"
)

# saved activations, and who needs them:
# "output" y · "preactivation" x + bias at the chosen position · "input" x · "mask" index ·
# "nothing"
_PIECEWISE_LINEAR = ("relu", "leaky_relu", "relu6")


def saved_kind(pool: Pool2d) -> str:
    """What backward needs beside the gradient (the twin of the native problem's `saved`)."""
    if pool.activation == "identity":
        return "nothing"
    from_output = derives_from_output(pool.activation, pool.activation_param)
    if pool.pool == "avg":
        fits = pool.size[0] * pool.size[1] <= 8  # a bit an element in one byte
        return "mask" if pool.activation in _PIECEWISE_LINEAR and from_output and fits else "input"
    if from_output:
        return "output"
    return "preactivation" if pool.pool == "max" else "input"


def derives_from_output(activation: str, param: float) -> bool:
    """Whether act'(z) follows from act(z)."""
    if activation == "leaky_relu":
        return param >= 0
    if activation in ("elu", "softplus"):
        return param > 0
    return activation in ("identity", "relu", "relu6", "tanh", "sigmoid")


def index_dtype(pool: Pool2d) -> torch.dtype | None:
    """The dtype of the index (or mask) that backward needs, if any."""
    if pool.pool == "max":
        return torch.uint8 if pool.size[0] * pool.size[1] <= 255 else torch.int32
    return torch.uint8 if saved_kind(pool) == "mask" else None


_library = torch.library.Library("crossmedia_fast", "DEF")
_library.define(
    f"act_pool2d(Tensor x, Tensor? bias, {_POOL_ARGS}, bool save) "
    "-> (Tensor y, Tensor index, Tensor preactivation)"
)
_library.define(
    f"act_pool2d_backward(Tensor dy, Tensor? saved, Tensor? bias, Tensor? index, "
    f"SymInt[] x_shape, {_POOL_ARGS}) -> (Tensor dx, Tensor dbias)"
)


def _pool(
    activation: str,
    activation_param: float,
    pool: str,
    pool_size: Any,
    pool_stride: Any,
    pool_padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Pool2d:
    return Pool2d(
        activation,
        activation_param,
        pool,
        tuple(pool_size),
        tuple(pool_stride),
        tuple(pool_padding),
        ceil_mode,
        count_include_pad,
    )


def _as_args(pool: Pool2d) -> tuple[Any, ...]:
    return (
        pool.activation,
        pool.activation_param,
        pool.pool,
        list(pool.size),
        list(pool.stride),
        list(pool.padding),
        pool.ceil_mode,
        pool.count_include_pad,
    )


def _act_pool2d(x: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *pool_args, channels_last, backend, save = args
    _check_op_tensors(x, bias)
    resolve(backend, x.device, x.dtype)  # raises where that backend can't read these tensors
    pool = _pool(*pool_args)
    x = as_format(x, channels_last)
    launch = launch_for(backend, tuple(x.shape), x.dtype, channels_last, pool)
    y, index, preactivation = launch.forward(x, None if bias is None else bias.contiguous(), save)
    if index is None:
        index = x.new_empty((0,), dtype=index_dtype(pool) or torch.uint8)
    if preactivation is None:
        preactivation = x.new_empty((0,))
    return y, index, preactivation


def _act_pool2d_fake(x: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *pool_args, channels_last, _, save = args
    pool = _pool(*pool_args)
    _check_op_tensors(x, bias)
    y_shape = (*x.shape[:2], *pool.output_size(*x.shape[2:]))
    strides = dense_strides(y_shape, channels_last)
    empty = x.new_empty((0,))
    dtype = index_dtype(pool)
    index = x.new_empty((0,), dtype=dtype or torch.uint8)
    if save and dtype is not None:
        index = x.new_empty_strided(y_shape, strides, dtype=dtype)
    preactivation = (
        x.new_empty_strided(y_shape, strides)
        if save and saved_kind(pool) == "preactivation"
        else empty
    )
    return x.new_empty_strided(y_shape, strides), index, preactivation


def _check_op_tensors(x: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4:
        raise ValueError(f"x must be 4-dimensional, got shape {tuple(x.shape)}")
    if bias is not None and (bias.shape != (x.shape[1],) or bias.dtype != x.dtype):
        raise ValueError(
            f"bias must have shape ({x.shape[1]},) and dtype {x.dtype}, "
            f"got {tuple(bias.shape)} and {bias.dtype}"
        )


def _act_pool2d_backward(
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    index: Tensor | None,
    x_shape: Any,
    *args: Any,
) -> tuple[Tensor, Tensor]:
    *pool_args, channels_last, backend = args
    resolve(backend, dy.device, dy.dtype)
    launch = launch_for(backend, tuple(x_shape), dy.dtype, channels_last, _pool(*pool_args))
    _check_backward_tensors(launch, dy, saved, bias, index)
    dx, dbias = launch.backward(
        dy,
        None if saved is None else as_format(saved, channels_last),
        None if bias is None else bias.contiguous(),
        None if index is None else as_format(index, channels_last),
        need_dx=True,
        need_dbias=True,
    )
    assert dx is not None
    assert dbias is not None
    return dx, dbias


def _check_backward_tensors(
    launch: ActPool2dLaunch,
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    index: Tensor | None,
) -> None:
    """A pointer may reach the kernel only with the shape and dtype that the problem states."""
    kind = launch.saved
    expected_saved = {
        "output": launch.y_shape,
        "preactivation": launch.y_shape,
        "input": launch.x_shape,
    }.get(kind)
    expected = (
        ("dy", dy, launch.y_shape, launch.dtype),
        ("saved", saved, expected_saved, launch.dtype),
        ("bias", bias, (launch.x_shape[1],), launch.dtype),
        ("index", index, launch.y_shape if launch.index_dtype else None, launch.index_dtype),
    )
    for name, tensor, shape, dtype in expected:
        if tensor is None:
            if shape is not None and name != "bias":
                raise ValueError(f"{name} must be given for this problem, got None")
        elif shape is not None and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
            raise ValueError(
                f"{name} must have shape {shape} and dtype {dtype}, "
                f"got {tuple(tensor.shape)} and {tensor.dtype}"
            )


def _act_pool2d_backward_fake(
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    index: Tensor | None,
    x_shape: Any,
    *args: Any,
) -> tuple[Tensor, Tensor]:
    channels_last = args[-2]
    shape = tuple(x_shape)
    return (
        dy.new_empty_strided(shape, dense_strides(shape, channels_last)),
        dy.new_empty((shape[1],)),
    )


for _key in ("CPU", "CUDA"):
    _library.impl("act_pool2d", _act_pool2d, _key)
    _library.impl("act_pool2d_backward", _act_pool2d_backward, _key)
torch.library.register_fake("crossmedia_fast::act_pool2d", _act_pool2d_fake, lib=_library)
torch.library.register_fake(
    "crossmedia_fast::act_pool2d_backward", _act_pool2d_backward_fake, lib=_library
)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, bias, *pool_args, channels_last, backend, _ = inputs
    y, index, preactivation = output
    pool = _pool(*pool_args)
    kind = saved_kind(pool)
    ctx.pool, ctx.kind, ctx.x_shape = pool, kind, x.shape
    ctx.channels_last, ctx.backend = channels_last, backend
    ctx.set_materialize_grads(False)
    saved = {"output": y, "preactivation": preactivation, "input": x}.get(kind)
    ctx.save_for_backward(
        saved,
        index if index_dtype(pool) is not None else None,
        bias if kind == "input" else None,
    )


def _backward(ctx: Any, dy: Tensor | None, _: Any, dpreactivation: Tensor | None) -> Any:
    pool_arguments = (None,) * 11
    if ctx.kind != "preactivation":
        dpreactivation = None  # of the empty tensor that stands for none
    if dy is None and dpreactivation is None:
        return (None, None, *pool_arguments)
    saved, index, bias = ctx.saved_tensors
    if torch.is_grad_enabled() or dpreactivation is not None:
        dx, dbias = differentiable_backward(
            ctx.pool, ctx.kind, ctx.x_shape, dy, dpreactivation, saved, bias, index
        )
    else:
        dx, dbias = torch.ops.crossmedia_fast.act_pool2d_backward(
            dy, saved, bias, index, ctx.x_shape, *_as_args(ctx.pool), ctx.channels_last, ctx.backend
        )
    return (dx, dbias if ctx.needs_input_grad[1] else None, *pool_arguments)


torch.library.register_autograd(
    "crossmedia_fast::act_pool2d", _backward, setup_context=_setup_context, lib=_library
)


def act_pool2d(x: Tensor, bias: Tensor | None, pool: Pool2d, save: bool, backend: str) -> Tensor:
    """The registered op, called the way the public function does."""
    return torch.ops.crossmedia_fast.act_pool2d(
        x, bias, *_as_args(pool), is_channels_last(x), backend, save
    )[0]
