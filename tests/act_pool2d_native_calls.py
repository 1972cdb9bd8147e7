"""Calls of the native act_pool2d kernels with raw addresses, on guarded outputs, and the same in
PyTorch.

Every input is a multiple of 1/8 in [-8, 8) and every bias one in [-1, 1]: exact in all four dtypes,
and so are their sums in the compute type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmedia_fast import native

from .older_torch import activate

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

NO_POOL = (0, 0)
SENTINEL_BYTE = 0xA5
MARGIN = 64  # bytes on both sides of every output


@dataclass(frozen=True)
class Geometry:
    """A pooling and the shape that it works on."""

    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def out(self) -> tuple[int, int]:
        if self.size == (0, 0):
            return self.shape[2:]
        probe = torch.empty((1, 1, *self.shape[2:]), device="meta")
        return F.max_pool2d(probe, self.size, self.stride, self.padding, 1, self.ceil_mode).shape[
            2:
        ]


class Guarded:
    """A dense tensor between two margins that nothing may write to."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
        self.bytes = math.prod(shape) * dtype.itemsize
        self.buffer = torch.full((self.bytes + 2 * MARGIN,), SENTINEL_BYTE, dtype=torch.uint8)
        flat = self.buffer[MARGIN : MARGIN + self.bytes].view(dtype)
        if channels_last and len(shape) == 4:
            n, k, h, w = shape
            self.tensor = flat.view(n, h, w, k).permute(0, 3, 1, 2)
        else:
            self.tensor = flat.view(shape)

    def address(self) -> int:
        return self.buffer.data_ptr() + MARGIN

    def check(self) -> None:
        outside = torch.cat([self.buffer[:MARGIN], self.buffer[MARGIN + self.bytes :]])
        assert bool((outside == SENTINEL_BYTE).all()), "wrote outside its output"


def make_problem(
    geometry: Geometry, pool: str, activation: str, param: float, dtype: str, channels_last: bool
):
    n, k, h, w = geometry.shape
    out = geometry.out()
    none = pool == "none"
    return native.module.ActPool2dProblem(
        batch=n,
        channels=k,
        height=h,
        width=w,
        out_height=out[0],
        out_width=out[1],
        pool_height=1 if none else geometry.size[0],
        pool_width=1 if none else geometry.size[1],
        pool_stride_height=1 if none else geometry.stride[0],
        pool_stride_width=1 if none else geometry.stride[1],
        pool_pad_height=geometry.padding[0],
        pool_pad_width=geometry.padding[1],
        count_include_pad=geometry.count_include_pad,
        pool=pool,
        activation=activation,
        activation_param=param,
        dtype=dtype,
        channels_last=channels_last,
    )


class Call:
    """One problem with its operands; runs forward and backward on guarded outputs."""

    def __init__(
        self,
        geometry: Geometry,
        pool: str,
        activation: str = "relu",
        param: float = 0.0,
        dtype: str = "float32",
        channels_last: bool = False,
        has_bias: bool = True,
        x: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.geometry, self.pool, self.activation, self.param = geometry, pool, activation, param
        self.dtype, self.channels_last = DTYPES[dtype], channels_last
        self.problem = make_problem(geometry, pool, activation, param, dtype, channels_last)
        generator = torch.Generator().manual_seed(seed)
        self.y_shape = (*geometry.shape[:2], *geometry.out())

        def grid(shape: tuple[int, ...], low: int, high: int) -> Tensor:
            values = torch.randint(low, high, shape, generator=generator).to(torch.float64) / 8
            return self.stored(values)

        self.x = grid(geometry.shape, -64, 64) if x is None else self.stored(x)
        self.bias = grid((geometry.shape[1],), -8, 9) if has_bias else None
        self.dy = grid(self.y_shape, -16, 17)

    def stored(self, values: Tensor) -> Tensor:
        target = Guarded(tuple(values.shape), self.dtype, self.channels_last)
        target.tensor.copy_(values)
        return target.tensor

    def z(self) -> Tensor:
        z = self.x.double()
        return z if self.bias is None else z + self.bias.double()[:, None, None]

    def forward(self, threads: int = 1, track: bool = True) -> tuple[Tensor, ...]:
        y = Guarded(self.y_shape, self.dtype, self.channels_last)
        index = preactivation = None
        if track and self.problem.index_itemsize:
            index_dtype = torch.uint8 if self.problem.index_itemsize == 1 else torch.int32
            index = Guarded(self.y_shape, index_dtype, self.channels_last)
        if track and self.problem.saved == "preactivation":
            preactivation = Guarded(self.y_shape, self.dtype, self.channels_last)
        native.module.act_pool2d_forward(
            self.problem,
            self.x.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
            y.address(),
            0 if index is None else index.address(),
            0 if preactivation is None else preactivation.address(),
            threads,
        )
        for output in (y, index, preactivation):
            if output is not None:
                output.check()
        return tuple(None if o is None else o.tensor for o in (y, index, preactivation))

    def backward(
        self,
        outputs: tuple[Tensor, ...],
        threads: int = 1,
        need_dx: bool = True,
        need_dbias: bool = True,
        dy: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        y, index, preactivation = outputs
        kinds = {"output": y, "preactivation": preactivation, "input": self.x}
        saved = kinds.get(self.problem.saved)
        dx = Guarded(self.geometry.shape, self.dtype, self.channels_last)
        dbias = Guarded((self.geometry.shape[1],), self.dtype, False)
        native.module.act_pool2d_backward(
            self.problem,
            (self.dy if dy is None else dy).data_ptr(),
            0 if saved is None else saved.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
            0 if index is None else index.data_ptr(),
            dx.address() if need_dx else 0,
            dbias.address() if need_dbias else 0,
            threads,
        )
        dx.check()
        dbias.check()
        return dx.tensor, dbias.tensor

    # -- the same in PyTorch, float64 ------------------------------------------------------------

    def flat_positions(self, index: Tensor) -> Tensor:
        """Positions within the windows [N, K, P, Q] as positions in the plane."""
        g = self.geometry
        position = index.long()
        rows = torch.arange(index.shape[2]) * g.stride[0] - g.padding[0]
        columns = torch.arange(index.shape[3]) * g.stride[1] - g.padding[1]
        h = rows[:, None] + position // g.size[1]
        w = columns + position % g.size[1]
        assert bool(((h >= 0) & (h < g.shape[2]) & (w >= 0) & (w < g.shape[3])).all())
        return h * g.shape[3] + w

    def pooled(self, values: Tensor) -> Tensor:
        g = self.geometry
        if self.pool == "max":
            return F.max_pool2d(values, g.size, g.stride, g.padding, 1, g.ceil_mode)
        if self.pool == "avg":
            return F.avg_pool2d(
                values, g.size, g.stride, g.padding, g.ceil_mode, g.count_include_pad
            )
        return values

    def max_positions(self, values: Tensor) -> Tensor:
        g = self.geometry
        return F.max_pool2d(
            values, g.size, g.stride, g.padding, 1, g.ceil_mode, return_indices=True
        )[1]

    def act(self, z: Tensor) -> Tensor:
        return activate(z, self.activation, self.param)

    def ordered_by(self) -> Tensor:
        """What the maximum is taken over: x + bias, where the activation keeps its order."""
        return self.z() if self.problem.monotone else self.act(self.z())

    def expected_gradients(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """dx and dbias through the positions in `index` (max), else through the pooling itself."""
        z = self.z().requires_grad_()
        if self.pool == "max":
            chosen = z.flatten(2).gather(2, self.flat_positions(index).flatten(2))
            y = self.act(chosen).view(self.y_shape)
        else:
            y = self.pooled(self.act(z))
        (dx,) = torch.autograd.grad(y, z, self.dy.double())
        return dx, dx.sum((0, 2, 3))
