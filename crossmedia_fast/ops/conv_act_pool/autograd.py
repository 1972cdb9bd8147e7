"""The autograd rule of act_pool2d: pool(act(x + bias)).

First derivatives run in one native pass from the pooled gradient. Every further derivative is
PyTorch's own differentiation of the formulas below, which are written from what the forward saved
(its output, or the pre-activation at the chosen positions, and the index), so that a double
backward keeps no more memory than a single one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activation import activate, backward_from_input, backward_from_output
from .arguments import Pool2d
from .kernels import ActPool2dLaunch, launch_for
from .memory_format import as_format, is_channels_last
from .reference import act_pool2d as act_pool2d_reference


def flat_index(index: Tensor, pool: Pool2d, width: int) -> Tensor:  # [N, K, P, Q] -> [N, K, P·Q]
    """Positions within the windows -> positions h · width + w in the plane."""
    out_height, out_width = index.shape[-2:]
    position = index.long()
    rows = torch.arange(out_height, device=index.device) * pool.stride[0] - pool.padding[0]
    columns = torch.arange(out_width, device=index.device) * pool.stride[1] - pool.padding[1]
    h = rows[:, None] + torch.div(position, pool.size[1], rounding_mode="floor")
    w = columns + position % pool.size[1]
    return (h * width + w).flatten(-2)


def _positive_side(mask: Tensor, pool: Pool2d, height: int, width: int) -> Tensor:
    """Bits per window [N, K, P, Q] -> bool per element [N, K, H, W]."""
    out = torch.zeros((*mask.shape[:2], height * width), dtype=torch.uint8, device=mask.device)
    out_height, out_width = mask.shape[-2:]
    for r in range(pool.size[0]):
        h = torch.arange(out_height, device=mask.device) * pool.stride[0] - pool.padding[0] + r
        inside_h = (h >= 0) & (h < height)
        for s in range(pool.size[1]):
            w = torch.arange(out_width, device=mask.device) * pool.stride[1] - pool.padding[1] + s
            inside_w = (w >= 0) & (w < width)
            bit = (mask >> (r * pool.size[1] + s)) & 1
            position = (h[inside_h, None] * width + w[inside_w]).flatten()
            out[:, :, position] = bit[:, :, inside_h][:, :, :, inside_w].flatten(2)
    return out.view(*mask.shape[:2], height, width).bool()


def _backward_from_mask(dz: Tensor, positive: Tensor, pool: Pool2d) -> Tensor:
    """dz · act'(z) where the forward kept only on which side of its kink each z lay."""
    if pool.activation == "leaky_relu":
        return torch.where(positive, dz, dz * pool.activation_param)
    return torch.where(positive, dz, torch.zeros_like(dz))


def differentiable_backward(
    pool: Pool2d,
    saved_kind: str,
    x_shape: tuple[int, ...],
    dy: Tensor | None,  # [N, K, P, Q]
    dpreactivation: Tensor | None,  # [N, K, P, Q], gradient of the second output
    saved: Tensor | None,
    bias: Tensor | None,
    index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """dx [N, K, H, W] and dbias [K] in PyTorch operations that can be differentiated again."""
    _, _, height, width = x_shape
    activation, param = pool.activation, pool.activation_param

    if pool.pool == "avg":
        assert dy is not None
        # the shape alone of this tensor matters: average pooling is linear
        like_x = dy.new_zeros(()).expand(x_shape)
        dz = torch.ops.aten.avg_pool2d_backward(
            dy,
            like_x,
            pool.size,
            pool.stride,
            pool.padding,
            pool.ceil_mode,
            pool.count_include_pad,
            None,
        )
        if saved_kind == "mask":
            assert index is not None
            dx = _backward_from_mask(dz, _positive_side(index, pool, height, width), pool)
        elif saved_kind == "input":
            assert saved is not None
            z = saved if bias is None else saved + bias[:, None, None]
            dx = backward_from_input(dz, z, activation, param)
        else:
            dx = dz
        return dx, dx.sum((0, 2, 3))

    if dy is None:
        assert saved is not None
        g = torch.zeros_like(saved)
    elif saved_kind == "output":
        assert saved is not None
        g = backward_from_output(dy, saved, activation, param)
    elif saved_kind == "preactivation":
        assert saved is not None
        g = backward_from_input(dy, saved, activation, param)
    elif saved_kind == "input":
        assert saved is not None
        z = saved if bias is None else saved + bias[:, None, None]
        g = backward_from_input(dy, z, activation, param)
    else:
        g = dy
    if dpreactivation is not None:
        g = g + dpreactivation
    dbias = g.sum((0, 2, 3))
    if pool.pool == "none":
        return g, dbias
    assert index is not None
    plane = g.new_zeros((*x_shape[:2], height * width))
    dx = plane.scatter_add(2, flat_index(index, pool, width), g.reshape(*g.shape[:2], -1))
    return dx.view(*x_shape[:2], height, width), dbias


class ActPool2d(torch.autograd.Function):
    """The hot path: one native pass each way, as few Python lines as autograd allows.

    Its second output, the pre-activation at the chosen positions, exists for the activations whose
    derivative does not follow from their output; being an output it has a gradient of its own, and
    with that every higher derivative follows.

    Without a pooling it writes over x where backward has no need of it: x must be the caller's own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, launch: ActPool2dLaunch, pool: Pool2d
    ) -> Any:
        kind = launch.saved
        in_place = pool.pool == "none" and kind == "output"
        y, index, preactivation = launch.forward(x, bias, True, in_place)
        if in_place:
            ctx.mark_dirty(x)
        if kind == "output":
            ctx.save_for_backward(y, index)
        elif kind == "preactivation":
            ctx.save_for_backward(preactivation, index)
        elif kind == "input":
            ctx.save_for_backward(x, None, bias)
        else:
            ctx.save_for_backward(None, index)
        ctx.call = launch, pool
        if preactivation is None:
            return y
        ctx.set_materialize_grads(False)
        return y, preactivation

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dpreactivation: Tensor | None = None) -> Any:
        if dy is None and dpreactivation is None:
            return None, None, None, None
        launch, pool = ctx.call
        if launch.saved == "input":
            saved, index, bias = ctx.saved_tensors
        else:
            (saved, index), bias = ctx.saved_tensors, None
        need_dx, need_dbias, _, _ = ctx.needs_input_grad
        if (
            dpreactivation is not None
            or dy is None
            or torch.is_grad_enabled()
            or torch._C._are_functorch_transforms_active()
            or torch._C._functorch.is_legacy_batchedtensor(
                dy
            )  # autograd.grad(is_grads_batched=True)
            or type(dy) is not Tensor
        ):
            dense, sums = differentiable_backward(
                pool, launch.saved, launch.x_shape, dy, dpreactivation, saved, bias, index
            )
            return dense, sums if need_dbias else None, None, None
        dx, dbias = launch.backward(dy, saved, bias, index, need_dx, need_dbias)
        return dx, dbias, None, None


# Function.apply binds default arguments and asks for functorch on every call; whoever takes this
# one has asked already.
apply_act_pool2d = super(torch.autograd.Function, ActPool2d).apply


class PoolIndex(torch.autograd.Function):
    """The chosen positions of a max pooling, as integers: nothing to differentiate.

    Under torch.func transforms and forward-mode AD the fused op is this native search followed by a
    gather and an activation that PyTorch differentiates in whatever way the transform asks for.
    """

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, pool: Pool2d, backend: str) -> Tensor:
        channels_last = is_channels_last(x)
        x = as_format(x, channels_last)
        bias = None if bias is None else bias.contiguous()
        launch = launch_for(backend, tuple(x.shape), x.dtype, channels_last, pool)
        index = launch.forward(x, bias, save=True)[1]
        assert index is not None
        return index

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, bias: Tensor | None, pool: Pool2d, backend: str
    ) -> Any:
        x_dim, bias_dim = in_dims[:2]
        x = x.unsqueeze(0) if x_dim is None else x.movedim(x_dim, 0)  # [B, N, K, H, W]
        if bias_dim is not None:
            assert bias is not None
            # per-example bias: added here, since the kernel takes one for the whole batch
            x = x + bias.movedim(bias_dim, 0)[:, None, :, None, None]
            bias = None
        batched = x.shape[0]
        index = PoolIndex.apply(x.flatten(0, 1), bias, pool, backend)
        return index.unflatten(0, (batched, x.shape[1])), 0


def act_pool2d_transformable(x: Tensor, bias: Tensor | None, pool: Pool2d, backend: str) -> Tensor:
    """pool(act(x + bias)) in operations that every functional transform can take apart."""
    z = x if bias is None else x + bias[:, None, None]
    if pool.pool != "max":
        return act_pool2d_reference(z, pool)
    detached = None if bias is None else bias.detach()
    index = PoolIndex.apply(x.detach(), detached, pool, backend)
    chosen = z.flatten(2).gather(2, flat_index(index, pool, x.shape[-1]))
    return activate(chosen.view(index.shape), pool.activation, pool.activation_param)
