"""The fused operations as modules."""

from .conv_act_pool import ConvActPool2d
from .gan_loss import GANLoss

__all__ = ["ConvActPool2d", "GANLoss"]
