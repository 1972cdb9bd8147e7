"""Networks that give images or judge them: U-Net, and the two sides of GANs."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .widths import scaled


def _double(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, filters, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015, U-Net: four levels down and up; padded, so that nothing is
    cropped."""

    def __init__(self, width: float = 1.0, classes: int = 2) -> None:
        super().__init__()
        sizes = [scaled(64 << level, width) for level in range(5)]
        self.down = nn.ModuleList(
            _double(a, b) for a, b in zip([1, *sizes[:-1]], sizes, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        sizes.reverse()
        pairs = list(itertools.pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(_double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(sizes[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, H, W] -> [N, classes, H, W]; H, W 16ths
        past = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            past.append(x)
        past.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((past.pop(), up(x)), 1))
        return self.head(x)


class DCGANGenerator(nn.Module):
    """Radford et al. 2016, Unsupervised representation learning with deep convolutional generative
    adversarial networks: 100 numbers become a 64×64 image."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels, layers = 100, list[nn.Module]()
        for level in range(4):
            filters = scaled(512 >> level, width)
            stride, padding = (1, 0) if level == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(channels, filters, 4, stride, padding, bias=False),
                nn.BatchNorm2d(filters),
                nn.ReLU(inplace=True),
            ]
            channels = filters
        layers += [nn.ConvTranspose2d(channels, 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:  # [N, 100, 1, 1] -> [N, 3, 64, 64]
        return self.main(z)


class DCGANDiscriminator(nn.Module):
    """Of the same paper; its output is a logit."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(64, width)
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for level in range(1, 4):
            filters = scaled(64 << level, width)
            layers += [
                nn.Conv2d(channels, filters, 4, 2, 1, bias=False),
                nn.BatchNorm2d(filters),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels = filters
        self.main = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, bias=False))

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 64, 64] -> [N]
        return torch.flatten(self.main(x))


class EqualisedConv2d(nn.Module):
    """A convolution whose weights are scaled at run time by He's constant."""

    def __init__(self, channels: int, filters: int, kernel: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, kernel, padding=padding, bias=False)
        nn.init.normal_(self.conv.weight)
        self.scale = math.sqrt(2 / (channels * kernel * kernel))
        self.bias = nn.Parameter(torch.zeros(filters, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale + self.bias


class ProGANBlock(nn.Module):
    """Two 3×3 layers at one resolution, then half of it."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.conv1 = EqualisedConv2d(channels, channels, 3, 1)
        self.conv2 = EqualisedConv2d(channels, filters, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.2)
        return F.avg_pool2d(F.leaky_relu(self.conv2(x), 0.2), 2)


class ProGANDiscriminator(nn.Module):
    """Karras et al. 2018, Progressive growing of GANs: the discriminator of 128×128 images, grown
    (nothing is faded in any more); the standard deviation over the whole batch."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        sizes = [scaled(n, width) for n in (128, 256, 512, 512, 512, 512)]
        self.from_rgb = EqualisedConv2d(3, sizes[0], 1)
        self.blocks = nn.Sequential(*(ProGANBlock(a, b) for a, b in itertools.pairwise(sizes)))
        self.conv1 = EqualisedConv2d(sizes[-1] + 1, sizes[-1], 3, 1)
        self.conv2 = EqualisedConv2d(sizes[-1], sizes[-1], 4)
        self.score = EqualisedConv2d(sizes[-1], 1, 1)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 128, 128] -> [N]
        x = self.blocks(F.leaky_relu(self.from_rgb(x), 0.2))
        deviation = torch.sqrt(x.var(0, correction=0) + 1e-8).mean()
        x = torch.cat((x, deviation.expand_as(x[:, :1])), 1)
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.conv2(x), 0.2)
        return torch.flatten(self.score(x))


class PatchGANDiscriminator(nn.Module):
    """Isola et al. 2017, Image-to-image translation with conditional adversarial networks: a logit
    for each 70×70 patch of an image beside its condition."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(64, width)
        layers: list[nn.Module] = [
            nn.Conv2d(6, channels, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for level in range(1, 4):
            filters = scaled(64 << level, width)
            layers += [
                nn.Conv2d(channels, filters, 4, 1 if level == 3 else 2, 1, bias=False),
                nn.BatchNorm2d(filters),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels = filters
        self.model = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # [N, 6, 256, 256] -> [N, 1, 30, 30]
        return self.model(x)
