"""Fused convolution + activation + pooling and GAN losses for PyTorch, compiled.

The public names are those in ``__all__``. Importing works where nothing was compiled: then the
reference runs, and :func:`backends` says why.
"""

from . import nn
from .backends import backends, use_backend
from .explanation import explain
from .fusion import fuse, fusion_report, unfuse
from .ops.conv_act_pool import conv_act_pool2d, conv_act_pool2d_reference
from .ops.gan_loss import (
    gan_discriminator_loss,
    gan_discriminator_loss_reference,
    gan_generator_loss,
    gan_generator_loss_reference,
    log_loss,
    log_loss_reference,
)
from .precision import conv_precision, get_conv_precision, set_conv_precision

__version__ = "0.1.0"

__all__ = [
    "backends",
    "conv_act_pool2d",
    "conv_act_pool2d_reference",
    "conv_precision",
    "explain",
    "fuse",
    "fusion_report",
    "gan_discriminator_loss",
    "gan_discriminator_loss_reference",
    "gan_generator_loss",
    "gan_generator_loss_reference",
    "get_conv_precision",
    "log_loss",
    "log_loss_reference",
    "nn",
    "set_conv_precision",
    "unfuse",
    "use_backend",
]
