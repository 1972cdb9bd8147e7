"""Classifiers that are one chain of layers: LeNet-5, AlexNet, VGG."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .widths import scaled


class LeNet5(nn.Module):
    """LeCun et al. 1998, Gradient-based learning applied to document recognition; average pooling,
    tanh, and a softmax's logits where the paper has radial basis functions."""

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        first, second = scaled(6, width), scaled(16, width)
        self.conv1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(second * 25, scaled(120, width))
        self.fc2 = nn.Linear(scaled(120, width), scaled(84, width))
        self.fc3 = nn.Linear(scaled(84, width), classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 28, 28] -> [N, classes]
        x = self.pool(torch.tanh(self.conv1(x)))
        x = self.pool(torch.tanh(self.conv2(x)))
        x = torch.tanh(self.fc1(torch.flatten(x, 1)))
        return self.fc3(torch.tanh(self.fc2(x)))


class AlexNet(nn.Module):
    """Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks: AlexNet's
    single-column form."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        a, b, c, d = (scaled(n, width) for n in (64, 192, 384, 256))
        hidden = scaled(4096, width)
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, d, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, d, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(d * 36, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 224, 224] -> [N, classes]
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


# filters of each convolution; "M" is a max pooling
_VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
_VGG16 = (
    *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
    *(512, 512, 512, "M", 512, 512, 512, "M"),
)


class VGG(nn.Module):
    """Simonyan and Zisserman 2015, Very deep convolutional networks for large-scale image
    recognition; with `batch_norm` a normalisation behind each convolution."""

    def __init__(
        self,
        layers: tuple[int | str, ...],
        batch_norm: bool,
        width: float = 1.0,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for layer in layers:
            if isinstance(layer, str):
                features.append(nn.MaxPool2d(2))
                continue
            filters = scaled(layer, width)
            features.append(nn.Conv2d(channels, filters, 3, padding=1))
            if batch_norm:
                features.append(nn.BatchNorm2d(filters))
            features.append(nn.ReLU(inplace=True))
            channels = filters
        hidden = scaled(4096, width)
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 224, 224] -> [N, classes]
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def vgg11_bn(width: float = 1.0) -> VGG:
    return VGG(_VGG11, True, width)


def vgg16(width: float = 1.0) -> VGG:
    return VGG(_VGG16, False, width)
