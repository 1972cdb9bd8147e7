"""The Triton backend's own convolution, fused with what follows it (algorithm "implicit_gemm").

Allocates outputs, says what the kernels take, and launches them. Gradients come in three launches
or four: the pooled gradient with dbias, dx, and dw in two steps; the dense gradient of the
convolution's output is never in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import triton_support
from ...triton_launch import KernelCall, is_wide
from ...triton_tuning import Config, can_measure, choose, size_class
from . import triton
from .arguments import Conv2d, Pool2d
from .cpu import as_format, dense_strides
from .registration import index_dtype, saved_kind

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# rows, columns, reduced elements a step, warps, stages. Two dimensions of the matrix product at
# work: large tiles read less, small ones fill a GPU that a small problem would leave idle; narrow
# ones waste nothing on few filters. Shared memory stays below 64 KiB (gfx942's; a block of every
# NVIDIA GPU since sm_80 has 99), and no configuration spills: test_triton_compile.py.
_HALF = (
    Config(128, 64, 32, 4, 3),
    Config(128, 128, 32, 8, 3),
    Config(128, 64, 64, 4, 3),
    Config(64, 64, 64, 4, 3),
    Config(128, 32, 32, 4, 4),
    Config(64, 32, 64, 4, 3),
)
_FLOAT = (
    Config(64, 64, 16, 4, 3),
    Config(128, 64, 16, 8, 3),
    Config(64, 32, 32, 4, 3),
    Config(32, 64, 16, 4, 2),
)
# The gradients expand their left side in registers, which leaves fewer for the accumulator.
_HALF_GRADIENT = (
    Config(64, 64, 32, 4, 3),
    Config(128, 64, 32, 8, 2),
    Config(64, 32, 32, 4, 2),
    Config(32, 64, 32, 4, 2),
)
_FLOAT_GRADIENT = (
    Config(64, 64, 16, 4, 2),
    Config(64, 32, 16, 4, 2),
    Config(32, 64, 16, 4, 2),
)
_LEAST_CHANNELS = 16  # of an input whose format is worth changing
_INTERPRETED = (Config(32, 16, 16, 1, 1),)  # whose time goes by the element, padding or not
_PROGRAMS_WANTED = 512  # of the weight's gradient: a few for each multiprocessor of a large GPU
_LEAST_STEPS = 8  # steps of the reduction that a split must have to be worth its partial sum
_LARGEST_GRID = 65535  # along the second and third axis


def configs(kernel: str, dtype: torch.dtype) -> tuple[Config, ...]:
    """The configurations of "forward", "input_gradient" or "weight_gradient"; the default first."""
    if triton_support.interpreting():
        return _INTERPRETED
    if kernel == "forward":
        return _FLOAT if dtype == torch.float32 else _HALF
    return _FLOAT_GRADIENT if dtype == torch.float32 else _HALF_GRADIENT


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: by PyTorch's own switch for convolutions, where that exists."""
    if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 and torch.version.hip is None:
        return "tf32"
    return "ieee"


def product_dtype(dtype: torch.dtype) -> Any:
    """The dtype that is multiplied; the interpreter multiplies no bfloat16, float32 is the same."""
    import triton.language as tl

    if dtype == torch.bfloat16 and triton_support.interpreting():
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[
        dtype
    ]


def row_order(chunk: int, rows_apart: bool) -> dict[str, int]:
    """Where a tile's rows have the position in the window (triton_kernels.forward.window_rows).

    A thread of mma.sync holds rows 8 apart, and every 64th or 32nd: with one bit of the position
    in either place it holds all of a 2×2 window, and so does one of wgmma in a tile of 128 rows on
    4 warps. One of gfx942's mfma holds 4 rows in sequence; sm_100's tensor memory gives each thread
    a row of its own, and neighbouring rows to neighbours.
    """
    if rows_apart and chunk > 1:
        return {"LOW": 2, "INNER": 8}
    return {"LOW": chunk, "INNER": 1}


def why_not(
    x_shape: tuple[int, ...],  # [N, C, H, W]
    w_shape: tuple[int, ...],  # [K, C / groups, R, S]
    dtype: torch.dtype,
    device: torch.device,
    conv: Conv2d,
    pool: Pool2d,
    needs_grad: bool,
) -> str:
    """Why the fused convolution can't take this problem; "" where it can."""
    reason = triton.why_not(dtype, device)
    if reason:
        return reason
    if dtype not in DTYPES:
        return "multiplies float32, float16 and bfloat16: Triton's products of float64 are no gain"
    if conv.symmetric_padding(w_shape[2:]) is None:
        return "takes the same padding on both sides of an axis alone"
    if max(conv.groups, conv.stride[0] * conv.stride[1]) > _LARGEST_GRID:
        return f"takes at most {_LARGEST_GRID} groups, and phases of the stride"
    if needs_grad and pool.pool == "avg" and saved_kind(pool) == "input":
        return "keeps no convolution output for the backward of this activation's average"
    return ""


def why_no_gain(w_shape: tuple[int, ...], conv: Conv2d, pool: Pool2d) -> str:
    """Why the fused convolution would lose to the library's and the epilogue; "" where not known.

    By what it computes in vain: what the plan asks until measurements on a GPU say more.
    """
    filters = w_shape[0] // conv.groups
    if conv.groups > 1 and min(filters, w_shape[1]) < 16:
        return f"{filters} filters a group leave most of a tile idle"
    if pool.pool != "none":
        covered = [s / min(t, s) for s, t in zip(pool.size, pool.stride, strict=True)]
        if math.prod(covered) > 1.5:
            return "windows overlap: each output of the convolution would be computed again"
    return ""


class FusedConv2d:
    """One convolution with what follows it, for tensors of one shape (autograd_conv.NativeConv)."""

    __slots__ = (
        "chosen",
        "conv",
        "dtype",
        "g_strides",
        "padding",
        "pool",
        "pool_launch",
        "read_channels_last",
        "read_strides",
        "rows_apart",
        "saved",
        "w_shape",
        "x_channels_last",
        "x_shape",
        "x_strides",
        "z_shape",
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
        rows_apart: bool = True,  # see row_order
    ) -> None:
        padding = conv.symmetric_padding(w_shape[2:])
        if padding is None:
            raise NotImplementedError("takes the same padding on both sides of an axis alone")
        self.chosen: dict[str, Config] = {}  # by kernel, once measured
        self.conv = conv
        self.pool = pool
        self.dtype = dtype
        self.padding = padding
        self.x_shape = x_shape
        self.w_shape = w_shape
        self.z_shape = z_shape
        self.rows_apart = rows_apart
        self.x_channels_last = x_channels_last
        self.x_strides = dense_strides(x_shape, x_channels_last)
        # A tile of neighbouring channels is loaded 16 bytes at a time where they are neighbours in
        # memory too: one pass over x that changes its format pays for itself.
        self.read_channels_last = x_channels_last or w_shape[1] >= _LEAST_CHANNELS
        self.read_strides = dense_strides(x_shape, self.read_channels_last)
        self.pool_launch = triton.launch_for(z_shape, dtype, y_channels_last, pool)
        # what only the kernels see lies as they read it best
        self.g_strides = dense_strides(self.pool_launch.y_shape, channels_last=True)
        # without pooling the convolution's output is no larger than y: kept where y doesn't tell
        kind = saved_kind(pool)
        self.saved = "preactivation" if kind == "input" and pool.pool == "none" else kind

    # -- what the launches have in common --

    @property
    def filters(self) -> int:
        """Of a group."""
        return self.w_shape[0] // self.conv.groups

    def _sizes(self) -> dict[str, int]:
        launch = self.pool_launch
        return {
            "height": self.x_shape[2],
            "width": self.x_shape[3],
            "conv_height": self.z_shape[2],
            "conv_width": self.z_shape[3],
            "out_height": launch.y_shape[2],
            "out_width": launch.y_shape[3],
            "channels": self.w_shape[1],
            "filters": self.filters,
        }

    def _constants(self) -> dict[str, Any]:
        conv = self.conv
        counts = (math.prod(self.x_shape), math.prod(self.z_shape), math.prod(self.w_shape))
        return {
            "R": self.w_shape[2],
            "S": self.w_shape[3],
            "STRIDE_H": conv.stride[0],
            "STRIDE_W": conv.stride[1],
            "PAD_H": self.padding[0],
            "PAD_W": self.padding[1],
            "DILATION_H": conv.dilation[0],
            "DILATION_W": conv.dilation[1],
            "PRODUCT": product_dtype(self.dtype),
            "PRECISION": precision(self.dtype),
            "WIDE": is_wide(*counts),
        }

    def _key(self, kernel: str) -> str:
        """The class of shapes in which one configuration is the best, about."""
        conv, pool = self.conv, self.pool
        pixels = self.z_shape[0] * self.z_shape[2] * self.z_shape[3]
        parts = (
            kernel,
            str(self.dtype).removeprefix("torch."),
            precision(self.dtype),
            "nhwc" if self.x_channels_last else "nchw",
            f"{self.w_shape[2]}x{self.w_shape[3]}",
            f"stride {conv.stride[0]}x{conv.stride[1]}",
            f"{pool.pool} {pool.size[0]}x{pool.size[1]}/{pool.stride[0]}x{pool.stride[1]}",
            f"pixels 2^{size_class(pixels)}",
            f"channels 2^{size_class(self.w_shape[1])}",
            f"filters 2^{size_class(self.filters)}",
        )
        return " · ".join(parts)

    def _config(
        self, kernel: str, device: torch.device, call: Callable[[Config], KernelCall]
    ) -> Config:
        config = self.chosen.get(kernel)
        if config is None:
            config = choose(self._key(kernel), device, configs(kernel, self.dtype), call)
            if device.type == "cuda" and can_measure():
                self.chosen[kernel] = config
        return config

    def _launch(
        self, kernel: str, device: torch.device, call: Callable[[Config], KernelCall]
    ) -> None:
        call(self._config(kernel, device, call))()

    # -- forward --

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y [N, K, P, Q] of any x [N, C, H, W] and w [K, C / groups, R, S]; as NativeConv."""
        launch = self.pool_launch
        y = x.new_empty_strided(launch.y_shape, launch.y_strides)
        index = preactivation = None
        dtype = index_dtype(self.pool)
        if save and dtype is not None:
            index = x.new_empty_strided(launch.y_shape, self.g_strides, dtype=dtype)
        if save and self.saved == "preactivation":
            preactivation = x.new_empty_strided(launch.y_shape, launch.y_strides)
        if y.numel():
            x = as_format(x, self.read_channels_last)
            w = _channels_fastest(w)
            self._launch(
                "forward",
                x.device,
                lambda config: self.forward_call(config, x, w, bias, y, index, preactivation),
            )
        return y, y if self.saved == "output" and save else preactivation, index

    def forward_call(
        self,
        config: Config,
        x: Tensor,
        w: Tensor,  # [K, R, S, C / groups], dense
        bias: Tensor | None,
        y: Tensor,
        index: Tensor | None,
        preactivation: Tensor | None,
    ) -> KernelCall:
        """The launch that fills y, index and pre-activation."""
        from .triton_kernels import forward

        pool, channels = self.pool, self.w_shape[1]
        positions = pool.size[0] * pool.size[1]
        chunk = positions if positions in (1, 2, 4) else 1
        launch = self.pool_launch
        windows = launch.y_shape[0] * launch.y_shape[2] * launch.y_shape[3]
        # rather than steps that are mostly padding, decode each element of the reduction
        padded = -(-channels // config.reduced) * config.reduced
        constants = self._constants()
        whole_taps = padded <= 1.25 * channels
        # what else is kept for a row leaves registers for 64 of them
        few_rows = not whole_taps or chunk != positions or constants["WIDE"]
        windows_a_tile = (min(config.rows, 64) if few_rows else config.rows) // chunk
        return KernelCall(
            forward.conv_act_pool2d_forward,
            (
                -(-windows // windows_a_tile) * -(-self.filters // config.columns),
                self.conv.groups,
            ),
            {
                "x_ptr": x,
                "w_ptr": w,
                "bias_ptr": w if bias is None else bias,
                "y_ptr": y,
                "index_ptr": y if index is None else index,
                "preactivation_ptr": y if preactivation is None else preactivation,
                "windows": windows,
                **self._sizes(),
                **triton.strides("x", "nchw", self.read_strides),
                **triton.strides("y", "nkpq", launch.y_strides),
                **triton.strides("index", "nkpq", self.g_strides),
            },
            {
                **constants,
                **triton.geometry(pool),
                "ACTIVATION": pool.activation,
                "PARAM": pool.activation_param,
                "MONOTONE": triton.is_monotone(pool.activation, pool.activation_param),
                "HAS_BIAS": bias is not None,
                "SAVE_INDEX": index is not None,
                "SAVE_PREACTIVATION": preactivation is not None,
                "WHOLE_TAPS": whole_taps,
                "WINDOWS": windows_a_tile,
                "CHUNK": chunk,
                **row_order(chunk, self.rows_apart),
                "BLOCK_N": config.columns,
                "BLOCK_R": config.reduced,
            },
            config.num_warps,
            config.num_stages,
        )

    # -- backward --

    def backward(
        self,
        dy: Tensor,  # [N, K, P, Q], any strides
        saved: Tensor | None,  # y or the pre-activation
        index: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx, dw and dbias, each where `needs` says so."""
        need_dx, need_dw, need_dbias = needs
        if self.saved == "input":
            raise NotImplementedError(
                "keeps no convolution output for the backward of this activation's average"
            )
        launch = self.pool_launch
        dy = as_format(dy, launch.channels_last)
        if self.saved == "nothing":
            saved = None
        if index is not None:
            index = as_format(index, channels_last=True)
        g, dbias = launch.pooled_gradient(
            dy,
            None if self.saved == "mask" else saved,
            index,
            need_dx or need_dw,
            need_dbias,
            g_channels_last=True,
        )
        dx = self.input_gradient(g, index, w) if need_dx else None
        dw = self.weight_gradient(g, index, x, w) if need_dw else None
        return dx, dw, dbias

    def input_gradient(self, g: Tensor, index: Tensor | None, w: Tensor) -> Tensor:
        """dx [N, C, H, W] from the pooled gradient g [N, K, P, Q]."""
        dx = g.new_empty_strided(self.x_shape, self.x_strides)
        if dx.numel():
            w = _channels_fastest(w)
            self._launch(
                "input_gradient",
                g.device,
                lambda config: self.input_gradient_call(config, g, index, w, dx),
            )
        return dx

    def input_gradient_call(
        self, config: Config, g: Tensor, index: Tensor | None, w: Tensor, dx: Tensor
    ) -> KernelCall:
        """The launch that fills dx."""
        from .triton_kernels import input_gradient

        batch, _, height, width = self.x_shape
        stride, dilation = self.conv.stride, self.conv.dilation
        # of the largest phase, the first
        pixels = batch * -(-height // stride[0]) * -(-width // stride[1])
        return KernelCall(
            input_gradient.conv_act_pool2d_input_gradient,
            (
                -(-pixels // config.rows) * -(-self.w_shape[1] // config.columns),
                stride[0] * stride[1],
                self.conv.groups,
            ),
            {
                "g_ptr": g,
                "index_ptr": g if index is None else index,
                "w_ptr": w,
                "dx_ptr": dx,
                "batch": batch,
                **self._sizes(),
                **triton.strides("x", "nchw", self.x_strides),
                **triton.strides("g", "nkpq", self.g_strides),
            },
            {
                **self._constants(),
                **triton.expansion(self.pool),
                "STEP_H": stride[0] // math.gcd(stride[0], dilation[0]),
                "STEP_W": stride[1] // math.gcd(stride[1], dilation[1]),
                "BLOCK_M": config.rows,
                "BLOCK_N": config.columns,
                "BLOCK_R": config.reduced,
            },
            config.num_warps,
            config.num_stages,
        )

    def weight_gradient(self, g: Tensor, index: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
        """dw [K, C / groups, R, S], strides as w's, from the pooled gradient g [N, K, P, Q]."""
        dw = torch.empty_like(w)
        if not g.numel():
            return dw.zero_()
        x = as_format(x, self.read_channels_last)
        filters, channels, height, width = self.w_shape

        # room for the most splits that any configuration takes
        kernel = "weight_gradient"
        splits = max(self._splits(config)[0] for config in configs(kernel, self.dtype))
        partial = g.new_empty((splits, filters, height * width, channels), dtype=torch.float32)
        config = self._config(
            kernel,
            g.device,
            lambda config: self.weight_gradient_call(config, g, index, x, partial),
        )
        self.weight_gradient_call(config, g, index, x, partial)()
        if not dw.is_contiguous() and not dw.is_contiguous(memory_format=torch.channels_last):
            dw = dw.contiguous()
        tap_stride = dw.stride(3) if width > 1 else dw.stride(2)
        triton.sum_partials_call(
            partial[: self._splits(config)[0]],
            dw,
            filters,
            height * width,
            channels,
            (dw.stride(0), dw.stride(1), tap_stride),
        )()
        return dw

    def _splits(self, config: Config) -> tuple[int, int]:
        """Into how many parts the pixels are split, and how many pixels each has.

        From shapes alone, so that the order of the sums, and with it every bit, is the same on
        every run.
        """
        pixels = self.z_shape[0] * self.z_shape[2] * self.z_shape[3]
        columns = math.prod(self.w_shape[1:])
        tiles = -(-self.filters // config.rows) * -(-columns // config.columns) * self.conv.groups
        wanted = max(1, _PROGRAMS_WANTED // tiles)
        steps = -(-pixels // config.reduced)
        steps_a_split = max(-(-steps // wanted), min(_LEAST_STEPS, steps))
        return -(-steps // steps_a_split), steps_a_split * config.reduced

    def weight_gradient_call(
        self, config: Config, g: Tensor, index: Tensor | None, x: Tensor, partial: Tensor
    ) -> KernelCall:
        """The launch that fills the partial sums of dw."""
        from .triton_kernels import weight_gradient

        splits, pixels_a_split = self._splits(config)
        columns = math.prod(self.w_shape[1:])
        return KernelCall(
            weight_gradient.conv_act_pool2d_weight_gradient,
            (
                -(-self.filters // config.rows) * -(-columns // config.columns),
                self.conv.groups,
                splits,
            ),
            {
                "g_ptr": g,
                "index_ptr": g if index is None else index,
                "x_ptr": x,
                "partial_ptr": partial,
                "pixels": self.z_shape[0] * self.z_shape[2] * self.z_shape[3],
                "pixels_a_split": pixels_a_split,
                "groups": self.conv.groups,
                **self._sizes(),
                **triton.strides("x", "nchw", self.read_strides),
                **triton.strides("g", "nkpq", self.g_strides),
            },
            {
                **self._constants(),
                **triton.expansion(self.pool),
                "BLOCK_M": config.rows,
                "BLOCK_N": config.columns,
                "BLOCK_R": config.reduced,
            },
            config.num_warps,
            config.num_stages,
        )


def _channels_fastest(w: Tensor) -> Tensor:  # [K, C / groups, R, S]
    """The weight with its channels side by side in memory, as the kernels read it."""
    return as_format(w, channels_last=True)


def fused(
    x: Tensor, w: Tensor, z_shape: tuple[int, ...], conv: Conv2d, pool: Pool2d
) -> FusedConv2d:
    """The `FusedConv2d` of these tensors; y in the memory format that PyTorch would give it."""
    x_channels_last = _is_channels_last(x)
    return FusedConv2d(
        tuple(x.shape),
        tuple(w.shape),
        z_shape,
        x.dtype,
        conv,
        pool,
        x_channels_last,
        x_channels_last or _is_channels_last(w),
        triton_support.rows_apart(x.device),
    )


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def check_device(x: Tensor) -> None:
    """NotImplementedError with the reason where the kernels don't run on such a tensor."""
    reason = triton_support.why_not_importable() or triton_support.why_not_device(x.device)
    if reason:
        raise NotImplementedError(f"backend 'triton' can't run here: {reason}")
