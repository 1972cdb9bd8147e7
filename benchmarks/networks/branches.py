"""Classifiers whose layers branch and meet again: SqueezeNet, GoogLeNet, ResNet, DenseNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .widths import scaled


class Fire(nn.Module):
    """A 1×1 layer, then a 1×1 and a 3×3 one side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat(
            (self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))), 1
        )


class SqueezeNet11(nn.Module):
    """Iandola et al. 2016, SqueezeNet; version 1.1 of its authors: earlier pooling, 2.4 times less
    arithmetic."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()

        def fire(channels: int, squeeze: int, expand: int) -> Fire:
            return Fire(scaled(channels, width), scaled(squeeze, width), scaled(expand, width))

        self.features = nn.Sequential(
            nn.Conv2d(3, scaled(64, width), 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            fire(64, 16, 64),
            fire(128, 16, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            fire(128, 32, 128),
            fire(256, 32, 128),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            fire(256, 48, 192),
            fire(384, 48, 192),
            fire(384, 64, 256),
            fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Conv2d(scaled(512, width), classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 224, 224] -> [N, classes]
        return torch.flatten(self.classifier(self.features(x)), 1)


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, filters: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """1×1, 3×3, 5×5 and pooling side by side; `sizes`: filters of 1×1, 3×3's reduction, 3×3, 5×5's
    reduction, 5×5, pooling's projection."""

    def __init__(self, channels: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, projection = sizes
        self.branch1 = ConvNorm(channels, one, 1)
        self.branch3 = nn.Sequential(ConvNorm(channels, reduce3, 1), ConvNorm(reduce3, three, 3))
        self.branch5 = nn.Sequential(ConvNorm(channels, reduce5, 1), ConvNorm(reduce5, five, 5))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(channels, projection, 1))
        self.filters = one + three + five + projection

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            (self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)), 1
        )


_INCEPTIONS: tuple[tuple[int, ...] | str, ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    "M",
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    "M",
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


class GoogLeNet(nn.Module):
    """Szegedy et al. 2015, Going deeper with convolutions; batch normalisation (Ioffe and Szegedy
    2015) in the place of local response normalisation, without the auxiliary classifiers."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        stem, deep = scaled(64, width), scaled(192, width)
        self.stem = nn.Sequential(
            ConvNorm(3, stem, 7, 2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            ConvNorm(stem, stem, 1),
            ConvNorm(stem, deep, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        blocks: list[nn.Module] = []
        channels = deep
        for sizes in _INCEPTIONS:
            if isinstance(sizes, str):
                blocks.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                continue
            block = Inception(channels, tuple(scaled(n, width) for n in sizes))
            channels = block.filters
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 224, 224] -> [N, classes]
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.fc(self.dropout(torch.flatten(x, 1)))


class Residual(nn.Module):
    """Two 3×3 layers and what goes past them."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != filters:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        past = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += past
        return self.relu(x)


class ResNet18(nn.Module):
    """He et al. 2016, Deep residual learning for image recognition: 18 layers, shortcuts of
    option B."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers = []
        for level in range(4):
            filters = scaled(64 << level, width)
            layers += [
                Residual(channels, filters, 1 if level == 0 else 2),
                Residual(filters, filters, 1),
            ]
            channels = filters
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 224, 224] -> [N, classes]
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


class Dense(nn.Module):
    """Normalisation first: a 1×1 and a 3×3 layer over all the features before them."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x)))
        return torch.cat((x, self.conv2(F.relu(self.norm2(new)))), 1)


class DenseNet121(nn.Module):
    """Huang et al. 2017, Densely connected convolutional networks: DenseNet-BC with blocks of 6,
    12, 24 and 16 layers and a growth of 32."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        growth, channels = scaled(32, width), 2 * scaled(32, width)
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
        for count in (6, 12, 24, 16):
            for _ in range(count):
                layers.append(Dense(channels, growth))
                channels += growth
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            if count != 16:  # between two blocks
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 224, 224] -> [N, classes]
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))
