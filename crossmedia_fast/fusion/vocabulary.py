"""PyTorch's modules, functions and methods that have a place in the fused operation."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# module type -> (activation, attribute of its parameter, attributes that must keep their values)
ACTIVATION_MODULES: dict[type, tuple[str, str | None, tuple[str, ...]]] = {
    nn.ReLU: ("relu", None, ()),
    nn.LeakyReLU: ("leaky_relu", "negative_slope", ("negative_slope",)),
    nn.ReLU6: ("relu6", None, ("min_val", "max_val")),
    nn.ELU: ("elu", "alpha", ("alpha",)),
    nn.SiLU: ("silu", None, ()),
    nn.GELU: ("gelu", None, ("approximate",)),
    nn.Tanh: ("tanh", None, ()),
    nn.Sigmoid: ("sigmoid", None, ()),
    nn.Softplus: ("softplus", "beta", ("beta", "threshold")),
    nn.Hardswish: ("hardswish", None, ()),
}

POOL_MODULES: dict[type, tuple[str, ...]] = {
    nn.MaxPool2d: (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "return_indices",
        "ceil_mode",
    ),
    nn.AvgPool2d: (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveMaxPool2d: ("output_size", "return_indices"),
}

DROPOUT_MODULES = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# of other packages: stochastic depth, which in eval mode gives what it is given
DROPOUT_CLASSES = frozenset(
    (
        "torchvision.ops.stochastic_depth.StochasticDepth",
        "timm.layers.drop.DropPath",
        "timm.models.layers.drop.DropPath",
    )
)
DROPOUT_FUNCTIONS = (F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout)

# function or method -> (activation, its parameter's name and default)
ACTIVATION_CALLS: dict[Any, tuple[str, str | None, float | None]] = {
    F.relu: ("relu", None, None),
    F.relu_: ("relu", None, None),
    torch.relu: ("relu", None, None),
    torch.relu_: ("relu", None, None),
    "relu": ("relu", None, None),
    "relu_": ("relu", None, None),
    F.leaky_relu: ("leaky_relu", "negative_slope", 0.01),
    F.leaky_relu_: ("leaky_relu", "negative_slope", 0.01),
    F.relu6: ("relu6", None, None),
    F.elu: ("elu", "alpha", 1.0),
    F.elu_: ("elu", "alpha", 1.0),
    F.silu: ("silu", None, None),
    F.gelu: ("gelu", None, None),
    F.tanh: ("tanh", None, None),
    torch.tanh: ("tanh", None, None),
    torch.tanh_: ("tanh", None, None),
    "tanh": ("tanh", None, None),
    "tanh_": ("tanh", None, None),
    F.sigmoid: ("sigmoid", None, None),
    torch.sigmoid: ("sigmoid", None, None),
    torch.sigmoid_: ("sigmoid", None, None),
    "sigmoid": ("sigmoid", None, None),
    "sigmoid_": ("sigmoid", None, None),
    F.softplus: ("softplus", "beta", 1.0),
    F.hardswish: ("hardswish", None, None),
}

POOL_CALLS: dict[Any, type] = {
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}

# the order of arguments after the input, and their defaults
POOL_ARGUMENTS: dict[Any, tuple[tuple[str, Any], ...]] = {
    nn.MaxPool2d: (
        ("kernel_size", None),
        ("stride", None),
        ("padding", 0),
        ("dilation", 1),
        ("ceil_mode", False),
        ("return_indices", False),
    ),
    nn.AvgPool2d: (
        ("kernel_size", None),
        ("stride", None),
        ("padding", 0),
        ("ceil_mode", False),
        ("count_include_pad", True),
        ("divisor_override", None),
    ),
    nn.AdaptiveAvgPool2d: (("output_size", None),),
    nn.AdaptiveMaxPool2d: (("output_size", None), ("return_indices", False)),
}

ARITHMETIC: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    "add": "add",
    "add_": "add",
    operator.sub: "sub",
    operator.isub: "sub",
    torch.sub: "sub",
    "sub": "sub",
    "sub_": "sub",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    "mul": "mul",
    "mul_": "mul",
    operator.truediv: "div",
    operator.itruediv: "div",
    torch.div: "div",
    "div": "div",
    "div_": "div",
}
