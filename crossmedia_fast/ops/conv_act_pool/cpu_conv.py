"""The CPU backend's own convolutions, fused with what follows: allocates, and calls csrc/cpu.

An algorithm is named as in csrc/common/conv_act_pool2d_kernels.h. Whether one can take a problem is
the native module's word (`refusal`); whether it should is the plan's.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from ... import native
from ..memory import fresh
from . import cpu, cpu_weights, filter_format
from .arguments import NOTHING_FOLLOWS, Conv2d, Pool2d
from .kernels import launch_for
from .memory_format import as_format, dense_strides
from .native_problem import native_conv_problem

# Weights of this size are not in a cache when a network comes back to them. Measured on a Zen 4
# between transformed weights that are kept and a transform at every call of filters that are a
# quarter of their size: VGG-11 and VGG-16 1.17 and 1.14 times as fast; 0.92 times ResNet-18, whose
# weights are smaller, and 0.97 times U-Net, where filters of 1024 channels are themselves as large.
_FAR_WEIGHTS = 16 << 20  # bytes


def reads_channels_last(algorithm: str, w: Tensor) -> bool:
    """Whether the algorithm's kernels take `w`, whose format is channels_last, as it is."""
    return algorithm in ("winograd", "patches") and filter_format.is_channels_last(w)


class ConvLaunch:
    """One problem, ready to call: the native struct and the sizes of what it writes."""

    __slots__ = (
        "conv",
        "native",
        "padding",
        "pool_launch",
        "prepared_sizes",
        "w_shape",
        "weights_key",
        "x_channels_last",
        "x_shape",
        "x_strides",
    )

    def __init__(
        self,
        x_shape: tuple[int, ...],  # [N, C, H, W]
        w_shape: tuple[int, ...],  # [K, C / groups, R, S]
        z_shape: tuple[int, ...],  # [N, K, H', W']
        dtype: torch.dtype,
        conv: Conv2d,
        pool: Pool2d,
        x_channels_last: bool,
        y_channels_last: bool,
    ) -> None:
        if native.module is None:
            raise NotImplementedError(f"backend 'cpu' can't run here: {native.reason}")
        self.pool_launch = cast(
            cpu.Launch, launch_for("cpu", z_shape, dtype, y_channels_last, pool)
        )
        padding = conv.symmetric_padding(w_shape[2:])
        if padding is None:
            raise NotImplementedError("takes the same padding on both sides of an axis alone")
        self.native: Any = native_conv_problem(
            self.pool_launch.native, x_shape, w_shape, conv, padding, x_channels_last
        )
        self.conv = conv
        self.padding = padding
        self.x_channels_last = x_channels_last
        self.x_shape = x_shape
        self.x_strides = dense_strides(x_shape, x_channels_last)
        self.w_shape = w_shape
        # what transformed weights depend on beside the weights
        self.weights_key = {
            "winograd": (w_shape, conv.stride, conv.groups),
            "winograd_f6": (w_shape, conv.groups),
            "implicit_gemm": (w_shape, conv.dilation),
            "patches": (w_shape, conv.dilation, x_channels_last),
            "pointwise": (
                w_shape,
                conv.groups,
                z_shape[2:],
                x_channels_last,
                y_channels_last,
                pool.pool == "none",
            ),
        }
        self.prepared_sizes: dict[tuple[str, bool, int], int] = {}

    def alone(self) -> ConvLaunch | None:
        """The convolution's own gradients, channels_last; None where "patches" can't take them."""
        launch = self.pool_launch
        shapes = self.x_shape, self.w_shape, launch.x_shape
        alone = ConvLaunch(*shapes, launch.dtype, self.conv, NOTHING_FOLLOWS, True, True)
        return None if alone.refusal("patches", backward=True) else alone

    def refusal(self, algorithm: str, backward: bool = False) -> str:
        """Why `algorithm` can't take this problem; "" where it can."""
        return native.module.conv_act_pool2d_refusal(algorithm, self.native, backward)  # type: ignore[union-attr]

    def prepare(self, algorithm: str, w: Tensor, keep: bool) -> Tensor | None:
        """The weights as `algorithm` wants them; None where `forward` takes them as they are.

        `keep`: whether the next call will probably see the same weights.
        """
        count = self.prepared_size(algorithm, keep)
        if not count:
            return None

        def transform(target: Tensor) -> None:
            contiguous = filter_format.contiguous(w)
            native.module.conv_act_pool2d_prepare(  # type: ignore[union-attr]
                algorithm,
                self.native,
                contiguous.data_ptr(),
                target.data_ptr(),
                native.thread_count(),
            )

        if not keep:
            return cpu_weights.passing(w, count, transform)
        return cpu_weights.kept(
            w, (algorithm, self.weights_key[algorithm], count, w.stride()), count, transform
        )

    def reads(self, algorithm: str, w: Tensor) -> bool:
        """Whether `algorithm` best reads `w`, dense, where it is, and can scale its filters."""
        where_it_is = w.is_contiguous() or reads_channels_last(algorithm, w)
        return where_it_is and native.module.conv_act_pool2d_reads_weights(  # type: ignore[union-attr]
            algorithm, self.native, native.thread_count()
        )

    def prepared_size(self, algorithm: str, keep: bool) -> int:
        """How many elements `prepare` gives; 0 where nothing."""
        threads = native.thread_count()
        count = self.prepared_sizes.get((algorithm, keep, threads))
        if count is None:
            module: Any = native.module
            itself = module.conv_act_pool2d_transforms_weights(algorithm, self.native, threads)
            count = module.conv_act_pool2d_prepared_size(algorithm, self.native)
            # what a cache doesn't hold comes from memory, and the filters are fewer bytes
            filters = math.prod(self.w_shape)
            far = 4 * filters < _FAR_WEIGHTS <= 4 * count and count >= 2 * filters
            reads = module.conv_act_pool2d_reads_weights(algorithm, self.native, threads)
            if reads or (itself and (far or not keep)):
                count = 0
            self.prepared_sizes[algorithm, keep, threads] = count
        return count

    def forward(
        self,
        algorithm: str,
        x: Tensor,  # [N, C, H, W], dense in x_channels_last's format
        w: Tensor,  # [K, C / groups, R, S], dense
        bias: Tensor | None,  # [K], contiguous
        save: bool,  # whether backward will need the index and the pre-activation
        prepared: Tensor | None = None,  # `prepare`'s result, where the caller has it
        keep: bool | None = None,  # as of `prepare`; None = where there is no backward
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, and where `save`: the index (or mask) and the pre-activation that backward needs."""
        launch = self.pool_launch
        y = fresh(x, launch.y_shape, launch.y_strides)
        index = preactivation = None
        if save and launch.index_dtype is not None:
            index = fresh(x, launch.y_shape, launch.y_strides, launch.index_dtype)
        if save and launch.saved == "preactivation":
            preactivation = fresh(x, launch.y_shape, launch.y_strides)
        if not launch.y_shape[0]:
            return y, index, preactivation
        keep = not save if keep is None else keep
        last = prepared is None and reads_channels_last(algorithm, w)
        last = last and not self.prepared_size(algorithm, keep)
        if not keep and not last:
            w = filter_format.contiguous(w)
        if prepared is None:
            prepared = self.prepare(algorithm, w, keep)
        if not last:
            w = cpu_weights.contiguous(w, prepared)
        native.module.conv_act_pool2d_forward(  # type: ignore[union-attr]
            algorithm,
            self.native,
            x.data_ptr(),
            w.data_ptr(),
            0 if prepared is None else prepared.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            0 if index is None else index.data_ptr(),
            0 if preactivation is None else preactivation.data_ptr(),
            native.thread_count(),
            w_channels_last=last,
        )
        return y, index, preactivation

    def backward(
        self,
        algorithm: str,
        dy: Tensor,  # [N, K, P, Q], any strides
        saved: Tensor | None,  # what pool_launch.saved names: y or the pre-activation
        index: Tensor | None,  # [N, K, P, Q]
        x: Tensor,  # [N, C, H, W], dense in x_channels_last's format
        w: Tensor,  # [K, C / groups, R, S], dense
        bias: Tensor | None,  # [K], contiguous
        need_dx: bool,
        need_dw: bool,
        need_dbias: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx [N, C, H, W], dw [K, C / groups, R, S] and dbias [K].

        Where infinities or NaN would reach elements of dw that they have nothing to do with (in a
        Winograd algorithm they spread), dw comes from PyTorch's own convolution.
        """
        dy = as_format(dy, self.pool_launch.channels_last)
        given, last = w, reads_channels_last(algorithm, w)
        if not last:
            w = filter_format.contiguous(w)
        dx = fresh(dy, self.x_shape, self.x_strides) if need_dx else None
        dw = dy.new_empty_strided(self.w_shape, w.stride()) if need_dw else None
        dbias = dy.new_empty((self.w_shape[0],)) if need_dbias else None
        dw_holds = native.module.conv_act_pool2d_backward(  # type: ignore[union-attr]
            algorithm,
            self.native,
            dy.data_ptr(),
            0 if saved is None else saved.data_ptr(),
            0 if index is None else index.data_ptr(),
            x.data_ptr(),
            w.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if dx is None else dx.data_ptr(),
            0 if dw is None else dw.data_ptr(),
            0 if dbias is None else dbias.data_ptr(),
            native.thread_count(),
            w_channels_last=last,
        )
        if need_dw and not dw_holds:
            dw = self._weight_gradient(dy, saved, index, x, w, bias)
        return dx, None if dw is None else filter_format.in_format_of(given, dw), dbias

    def _weight_gradient(
        self,
        dy: Tensor,
        saved: Tensor | None,
        index: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """dw by PyTorch, from the dense gradient of the convolution's output."""
        dz, _ = self.pool_launch.backward(dy, saved, bias, index, True, False)
        assert dz is not None
        _, dw = self.convolution_backward(dz, x, w, False, True)
        assert dw is not None
        return dw.contiguous()

    def convolution_backward(
        self, dz: Tensor, x: Tensor, w: Tensor, need_dx: bool, need_dw: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """dx and dw by PyTorch's convolution, from the gradient of the convolution's output."""
        conv = self.conv
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dz,
            x,
            w,
            None,
            conv.stride,
            self.padding,
            conv.dilation,
            False,
            (0, 0),
            conv.groups,
            (need_dx, need_dw, False),
        )
        return dx, dw


class FusedConv2d:
    """One convolution with what follows it, by one algorithm (kernels.NativeConv)."""

    backend = "cpu"
    __slots__ = ("algorithm", "conv", "dense", "gradients", "launch", "pool", "weight_gradients")

    def __init__(
        self,
        algorithm: str,
        launch: ConvLaunch,
        conv: Conv2d,
        pool: Pool2d,
        winograd: bool,
        merged: bool,
    ) -> None:
        """`winograd`: whether the gradients may be Winograd's, whatever the algorithm is.

        `merged`: whether dw of few channels, where it may be, costs less than the direct one.
        """
        self.algorithm = algorithm
        self.launch = launch
        self.conv = conv
        self.pool = pool
        # whose backward runs; "" is the dense gradient's
        candidates = [algorithm] if algorithm == "patches" else ["few_channels", algorithm]
        candidates += ["pointwise"] if algorithm == "implicit_gemm" else []
        candidates += ["winograd"] if winograd and algorithm != "patches" else []
        takes = (name for name in candidates if not launch.refusal(name, backward=True))
        self.gradients = next(takes, "")
        self.weight_gradients = self.gradients  # whose dw and dbias
        # the gradients from that of the convolution's output; None = PyTorch's convolution
        self.dense = None
        if algorithm == "patches" and not self.gradients:
            self.dense = launch.alone()
        if winograd and merged and not launch.refusal("winograd", backward=True):
            self.weight_gradients = "winograd"

    def prepare(self, w: Tensor, save: bool) -> Tensor | None:
        """The weights as the algorithm wants them, for `forward`; None where it reads `w`."""
        return self.launch.prepare(self.algorithm, w, keep=not save)

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        save: bool,
        prepared: Tensor | None = None,  # where the caller has it: `prepare`'s result
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y [N, K, P, Q] of any x [N, C, H, W] and w [K, C / groups, R, S]; as NativeConv."""
        x = as_format(x, self.launch.x_channels_last)
        if not (w.is_contiguous() or w.is_contiguous(memory_format=torch.channels_last)):
            w = w.contiguous()
        y, index, preactivation = self.launch.forward(self.algorithm, x, w, bias, save, prepared)
        saved = y if self.launch.pool_launch.saved == "output" else preactivation
        return y, saved, index

    def backward(
        self,
        dy: Tensor,
        saved: Tensor | None,
        index: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx, dw and dbias: natively, or from the dense gradient by PyTorch's convolution."""
        need_dx, need_dw, need_dbias = needs
        x = as_format(x, self.launch.x_channels_last)
        if dy.shape[0] and self.gradients:
            operands = dy, saved, index, x, w, bias
            if not need_dw or self.weight_gradients == self.gradients:
                return self.launch.backward(self.gradients, *operands, *needs)
            dx = None
            if need_dx:
                dx, _, _ = self.launch.backward(self.gradients, *operands, True, False, False)
            _, dw, dbias = self.launch.backward(
                self.weight_gradients, *operands, False, True, need_dbias
            )
            return dx, dw, dbias
        dz, dbias = self.launch.pool_launch.backward(
            dy, saved, bias, index, need_dx or need_dw, need_dbias
        )
        if dz is None:
            return None, None, dbias
        if self.dense is None or not dz.shape[0]:
            return *self.launch.convolution_backward(dz, x, w, need_dx, need_dw), dbias
        dz, x = filter_format.channels_last(dz), filter_format.channels_last(x)
        dx, dw, _ = self.dense.backward(
            "patches", dz, None, None, x, w, None, need_dx, need_dw, False
        )
        if dx is not None and not self.launch.x_channels_last:
            dx = filter_format.contiguous(dx)
        return dx, dw, dbias
