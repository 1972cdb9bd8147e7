"""Checks the arguments of conv_act_pool2d once and brings them into one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .activation import ACTIVATIONS, PARAM_NAMES

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
POOLS = ("max", "avg", "none")

# oneDNN and the pooling kernels count in 32 bits along one axis.
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Pool2d:
    """What follows the convolution: activation and pooling, in canonical form."""

    activation: str
    activation_param: float  # 0.0 where the activation takes none
    pool: str
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool
    count_include_pad: bool

    def given_param(self) -> float | None:
        """`activation_param` as a call takes it."""
        return self.activation_param if self.activation in PARAM_NAMES else None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """[H, W] of the convolution's output -> [P, Q], as torch.nn.functional.max_pool2d."""
        if self.pool == "none":
            return height, width
        return (
            _pool_output(height, self.size[0], self.stride[0], self.padding[0], self.ceil_mode),
            _pool_output(width, self.size[1], self.stride[1], self.padding[1], self.ceil_mode),
        )


# of a convolution alone
NOTHING_FOLLOWS = Pool2d("identity", 0.0, "none", (1, 1), (1, 1), (0, 0), False, True)


@dataclass(frozen=True)
class Conv2d:
    """The convolution's arguments, in canonical form."""

    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int

    def symmetric_padding(self, taps: tuple[int, ...]) -> tuple[int, int] | None:
        """The padding on both sides of each axis; None where "same" needs more on one side."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "valid":
            return 0, 0
        reach = [d * (n - 1) for d, n in zip(self.dilation, taps, strict=True)]
        return None if any(n % 2 for n in reach) else (reach[0] // 2, reach[1] // 2)


def _pool_output(length: int, size: int, stride: int, padding: int, ceil_mode: bool) -> int:
    reach = length + 2 * padding - size
    out = (reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    # the last window must start inside the input or its left padding
    if ceil_mode and (out - 1) * stride >= length + padding:
        out -= 1
    return out


def _type_name(value: Any) -> str:
    return type(value).__name__


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        try:
            if isinstance(value, (bool, float, str)):
                raise TypeError
            value = value.__index__()
        except (AttributeError, TypeError):
            raise TypeError(f"{name} must be an integer, got {_type_name(value)}") from None
    if value < least or value > LARGEST:
        raise ValueError(f"{name} must be between {least} and 2**31 - 1, got {value}")
    return value


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) == 1:
            value = (value[0], value[0])
        if len(value) != 2:
            raise ValueError(f"{name} must be one integer or two, got {len(value)} values")
        return _integer(name, value[0], least), _integer(name, value[1], least)
    both = _integer(name, value, least)
    return both, both


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {_type_name(value)}")
    return value


def _choice(name: str, value: Any, choices: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {_type_name(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_activation(activation: Any, activation_param: Any) -> tuple[str, float]:
    """The activation's name and its parameter (0.0 where it takes none)."""
    _choice("activation", activation, ACTIVATIONS)
    default = ACTIVATIONS[activation]
    if activation_param is None:
        return activation, 0.0 if default is None else default
    if default is None:
        raise ValueError(
            f"activation_param must be None for activation {activation!r}, which takes none "
            f"({', '.join(PARAM_NAMES)} do), got {activation_param!r}"
        )
    if isinstance(activation_param, (bool, str)):
        raise TypeError(f"activation_param must be a number, got {_type_name(activation_param)}")
    try:
        return activation, float(activation_param)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"activation_param ({PARAM_NAMES[activation]}) must be a number, "
            f"got {_type_name(activation_param)}"
        ) from None


def check_pool(
    activation: Any,
    activation_param: Any,
    pool: Any,
    pool_size: Any,
    pool_stride: Any,
    pool_padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
) -> Pool2d:
    """Activation and pooling, or ValueError / TypeError naming the argument."""
    activation, param = check_activation(activation, activation_param)
    _choice("pool", pool, POOLS)
    size = _pair("pool_size", pool_size, 1)
    if size[0] * size[1] > LARGEST:
        raise ValueError(f"pool_size must hold at most 2**31 - 1 elements, got {size}")
    # [] too: torch.nn.functional's pooling takes an empty stride as "the kernel's size"
    default_stride = pool_stride is None or (
        isinstance(pool_stride, (tuple, list)) and not len(pool_stride)
    )
    stride = size if default_stride else _pair("pool_stride", pool_stride, 1)
    padding = _pair("pool_padding", pool_padding, 0)
    for have, limit in zip(padding, size, strict=True):
        if 2 * have > limit:
            raise ValueError(
                f"pool_padding must be at most half of pool_size {size}, got {padding}"
            )
    ceil_mode = _boolean("ceil_mode", ceil_mode)
    count_include_pad = _boolean("count_include_pad", count_include_pad)
    if pool == "none":
        size, stride, padding, ceil_mode, count_include_pad = (1, 1), (1, 1), (0, 0), False, True
    return Pool2d(activation, param, pool, size, stride, padding, ceil_mode, count_include_pad)


def check_conv(stride: Any, padding: Any, dilation: Any, groups: Any) -> Conv2d:
    """The convolution's arguments, or ValueError / TypeError naming the argument."""
    strides = _pair("stride", stride, 1)
    if isinstance(padding, str):
        _choice("padding", padding, ("same", "valid"))
        if padding == "same" and strides != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got stride {strides}")
        paddings: tuple[int, int] | str = padding
    else:
        paddings = _pair("padding", padding, 0)
    return Conv2d(strides, paddings, _pair("dilation", dilation, 1), _integer("groups", groups, 1))


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for tensors of `device` (PyTorch has no such state for meta)."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _check_tensor(name: str, tensor: Any, ranks: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {_type_name(tensor)}")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise NotImplementedError(f"{name} must be a dense (strided) tensor, got {kind}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    if tensor.dim() not in ranks:
        expected = " or ".join(f"{rank}-dimensional" for rank in ranks)
        raise ValueError(f"{name} must be {expected}, got shape {tuple(tensor.shape)}")


def check_tensors(input: Any, weight: Any, bias: Any, groups: int) -> None:
    """Types, ranks, dtypes, devices and channels of the three tensors."""
    _check_tensor("input", input, (4, 3))
    _check_tensor("weight", weight, (4,))
    if bias is not None:
        _check_tensor("bias", bias, (1,))
    # under autocast the convolution casts all three itself
    autocast = autocast_enabled(input.device)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise ValueError(
                f"{name} must be on the input's device {input.device}, got {tensor.device}"
            )
        if tensor.dtype != input.dtype and not autocast:
            raise TypeError(f"{name} must have the input's dtype {input.dtype}, got {tensor.dtype}")
    channels = input.shape[-3]
    if any(size == 0 for size in input.shape[-3:]):
        raise ValueError(
            f"input must have channels, height and width above 0, got shape {tuple(input.shape)}"
        )
    if any(size == 0 for size in weight.shape):
        raise ValueError(f"weight must have no empty dimension, got shape {tuple(weight.shape)}")
    if channels % groups or weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the input's channels ({channels}) and the weight's output "
            f"channels ({weight.shape[0]}), got {groups}"
        )
    if weight.shape[1] != channels // groups:
        raise ValueError(
            f"weight must be [K, {channels // groups}, R, S] for an input of {channels} channels "
            f"in {groups} groups, got shape {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape[0] != weight.shape[0]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def conv_output_size(input: Tensor, weight: Tensor, conv: Conv2d) -> tuple[int, int]:
    """[H, W] of the convolution's output; ValueError where it would be empty."""
    sizes = []
    for axis, name in ((0, "height"), (1, "width")):
        length = input.shape[axis - 2]
        reach = conv.dilation[axis] * (weight.shape[axis - 2] - 1) + 1
        if conv.padding == "same":
            sizes.append(length)
            continue
        padding = 0 if isinstance(conv.padding, str) else conv.padding[axis]
        padded = length + 2 * padding
        if reach > padded:
            raise ValueError(
                f"weight is larger than the padded input: its {name} reaches {reach} with "
                f"dilation {conv.dilation[axis]}, the input has {length}, padding {padding}"
            )
        sizes.append((padded - reach) // conv.stride[axis] + 1)
    return sizes[0], sizes[1]


def check_pool_fits(pool: Pool2d, height: int, width: int) -> None:
    """ValueError where a pooling window is larger than the padded convolution output."""
    if pool.pool == "none":
        return
    if min(pool.output_size(height, width)) < 1:
        raise ValueError(
            f"pool_size {pool.size} with pool_padding {pool.padding} does not fit the "
            f"convolution's output of {height}×{width}"
        )


def check_numel(shape: tuple[int, ...], itemsize: int) -> None:
    """ValueError where the convolution's output could not even be addressed."""
    count = itemsize
    for size in shape:
        count *= size
    if count >= 2**62:
        raise ValueError(f"the convolution's output {shape} is too large to be addressed")
