"""The fused GAN log-losses: public function -> plan -> autograd -> backend -> kernel."""

from .interface import gan_discriminator_loss, gan_generator_loss, log_loss
from .reference import (
    gan_discriminator_loss_reference,
    gan_generator_loss_reference,
    log_loss_reference,
)

__all__ = [
    "gan_discriminator_loss",
    "gan_discriminator_loss_reference",
    "gan_generator_loss",
    "gan_generator_loss_reference",
    "log_loss",
    "log_loss_reference",
]
