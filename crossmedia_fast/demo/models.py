"""The networks: a CNN, the article's fully connected GAN, and a convolutional GAN.

Every convolution is a `ConvActPool2d`: convolution, activation and pooling in one operation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn import ConvActPool2d
from .data import SIZE

NOISE = 64
_SLOPE = 0.2  # of the GANs' leaky ReLU, as in DCGAN


class Classifier(nn.Module):
    """LeNet's shape with today's widths: two fused convolution layers, two fully connected ones."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, mean: float, std: float) -> None:
        super().__init__()
        # Standardisation is part of the network, so that it can judge generated images as they are.
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.features = nn.Sequential(
            ConvActPool2d(1, 32, 5, padding=2, activation="relu", pool="max", pool_size=2),
            ConvActPool2d(32, 64, 5, padding=2, activation="relu", pool="max", pool_size=2),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(64 * (SIZE // 4) ** 2, 128),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(128, classes),
        )

    def forward(self, images: Tensor) -> Tensor:  # [N, 1, 28, 28] -> [N, classes]
        logits: Tensor = self.head(self.features((images - self.mean) / self.std))
        return logits


class MlpGenerator(nn.Sequential):
    """The article's: noise -> 128 -> 128 -> 784 -> 28x28, leaky ReLU."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(NOISE, 128),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(128, 128),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(128, SIZE * SIZE),
            nn.Tanh(),
            nn.Unflatten(1, (1, SIZE, SIZE)),
        )


class MlpDiscriminator(nn.Sequential):
    """The article's: image -> 128 -> 128 -> 1, leaky ReLU; the sigmoid is in the loss."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(SIZE * SIZE, 128),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(128, 128),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(128, 1),
        )


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2), as ProGAN's generator: no state, no batch dependence."""

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def _conv(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> ConvActPool2d:
    return ConvActPool2d(
        channels_in,
        channels_out,
        kernel,
        stride,
        padding=1,
        activation="leaky_relu",
        activation_param=_SLOPE,
        pool="none",
    )


class ConvGenerator(nn.Sequential):
    """noise -> 7x7 -> 14x14 -> 28x28, each step an upsampling and a fused convolution layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(NOISE, 128 * 7 * 7),
            nn.LeakyReLU(_SLOPE),
            nn.Unflatten(1, (128, 7, 7)),
            PixelNorm(),
            nn.Upsample(scale_factor=2),
            _conv(128, 64),
            PixelNorm(),
            nn.Upsample(scale_factor=2),
            _conv(64, 32),
            PixelNorm(),
            ConvActPool2d(32, 1, 3, padding=1, activation="tanh", pool="none"),
        )


class ConvDiscriminator(nn.Sequential):
    """28x28 -> 14x14 -> 7x7 by strides, then 4x4 by average pooling; no normalisation."""

    def __init__(self) -> None:
        super().__init__(
            _conv(1, 32, kernel=4, stride=2),
            _conv(32, 64, kernel=4, stride=2),
            ConvActPool2d(
                64,
                128,
                3,
                padding=1,
                activation="leaky_relu",
                activation_param=_SLOPE,
                pool="avg",
                pool_size=2,
                ceil_mode=True,
            ),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 1),
        )


def make_gan(kind: str) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of `kind`, "mlp" or "dcgan"."""
    if kind == "mlp":
        return MlpGenerator(), MlpDiscriminator()
    return ConvGenerator(), ConvDiscriminator()
