"""The fused operations as modules."""

from .conv_act_pool import ConvActPool2d

__all__ = ["ConvActPool2d"]
