"""Convolution + activation + pooling."""

from .interface import conv_act_pool2d, explain_conv_act_pool2d
from .reference import conv_act_pool2d_reference

__all__ = ["conv_act_pool2d", "conv_act_pool2d_reference", "explain_conv_act_pool2d"]
