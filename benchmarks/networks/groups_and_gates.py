"""Classifiers of grouped and depthwise convolutions, most with gates (squeeze and excitation):
ResNeXt, RegNetY, MobileNetV3, EfficientNet."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .widths import scaled

Activation = Callable[[], nn.Module]


def conv_norm(
    channels: int,
    filters: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: Activation | None = None,
) -> nn.Sequential:
    """Convolution, batch normalisation, activation."""
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(filters)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Gate(nn.Module):
    """Hu et al. 2018, Squeeze-and-excitation networks: each channel times what all means say."""

    def __init__(
        self, channels: int, squeezed: int, activation: Activation, gate: Activation
    ) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.excite(self.activation(self.squeeze(means))))


class Bottleneck(nn.Module):
    """1×1, 3×3 of groups, a gate or none, 1×1, and the sum with what came in."""

    def __init__(
        self, channels: int, inner: int, filters: int, stride: int, group: int, gate: nn.Module
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(channels, inner, activation=nn.ReLU),
            conv_norm(inner, inner, 3, stride, inner // group, nn.ReLU),
            gate,
            conv_norm(inner, filters),
        )
        same = stride == 1 and channels == filters
        self.shortcut = nn.Identity() if same else conv_norm(channels, filters, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class Classifier(nn.Module):
    """Features, their means, and what follows."""

    def __init__(self, features: list[nn.Module], head: list[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 224, 224] -> [N, classes]
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


def resnext50(width: float = 1.0, classes: int = 1000) -> Classifier:
    """Xie et al. 2017, Aggregated residual transformations; 32 groups, of 4 channels at first."""
    channels = scaled(64, width)
    features: list[nn.Module] = [
        conv_norm(3, channels, 7, 2, activation=nn.ReLU),
        nn.MaxPool2d(3, 2, 1),
    ]
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner, filters = (scaled(size << stage, width) for size in (128, 256))
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            group = inner // min(32, inner // 4)
            features.append(Bottleneck(channels, inner, filters, stride, group, nn.Identity()))
            channels = filters
    return Classifier(features, [nn.Linear(channels, classes)])


def regnety_800mf(width: float = 1.0, classes: int = 1000) -> Classifier:
    """Radosavovic et al. 2020, Designing network design spaces; 800 million multiply-adds, groups
    of 16 channels."""
    channels, group = scaled(32, width), scaled(16, width)
    features: list[nn.Module] = [conv_norm(3, channels, 3, 2, activation=nn.ReLU)]
    for depth, size in ((1, 64), (3, 144), (8, 320), (2, 784)):
        filters = scaled(size, width) // group * group
        for i in range(depth):
            gate = Gate(filters, max(1, channels // 4), nn.ReLU, nn.Sigmoid)
            features.append(Bottleneck(channels, filters, filters, 2 if i == 0 else 1, group, gate))
            channels = filters
    return Classifier(features, [nn.Linear(channels, classes)])


class Inverted(nn.Module):
    """1×1 to more channels, depthwise, a gate or none, 1×1 to few, and the sum with what came in
    where it fits (Sandler et al. 2018, MobileNetV2)."""

    def __init__(
        self,
        channels: int,
        inner: int,
        filters: int,
        kernel: int,
        stride: int,
        activation: Activation,
        gate: nn.Module,
    ) -> None:
        super().__init__()
        widened = inner != channels
        self.body = nn.Sequential(
            conv_norm(channels, inner, activation=activation) if widened else nn.Identity(),
            conv_norm(inner, inner, kernel, stride, inner, activation),
            gate,
            conv_norm(inner, filters),
        )
        self.sums = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x if self.sums else self.body(x)


# Kernel, inner channels, filters, gated, hardswish (or ReLU), stride: the paper's table 1.
_MOBILENET_V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def mobilenet_v3_large(width: float = 1.0, classes: int = 1000) -> Classifier:
    """Howard et al. 2019, Searching for MobileNetV3."""
    channels = scaled(16, width)
    features: list[nn.Module] = [conv_norm(3, channels, 3, 2, activation=nn.Hardswish)]
    for kernel, *sizes, gated, swishes, stride in _MOBILENET_V3_LARGE:
        inner, filters = (scaled(size, width) for size in sizes)
        gate = Gate(inner, scaled(inner, 0.25), nn.ReLU, nn.Hardsigmoid)
        features.append(
            Inverted(
                channels,
                inner,
                filters,
                kernel,
                stride,
                nn.Hardswish if swishes else nn.ReLU,
                gate if gated else nn.Identity(),
            )
        )
        channels = filters
    last = scaled(960, width)
    features.append(conv_norm(channels, last, activation=nn.Hardswish))
    head = [nn.Linear(last, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, classes)]
    return Classifier(features, head)


# Widening, kernel, first stride, filters, blocks: the paper's table 1.
_EFFICIENTNET_B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet_b0(width: float = 1.0, classes: int = 1000) -> Classifier:
    """Tan and Le 2019, EfficientNet; every block is kept in training (no stochastic depth)."""
    channels = scaled(32, width)
    features: list[nn.Module] = [conv_norm(3, channels, 3, 2, activation=nn.SiLU)]
    for widening, kernel, first_stride, size, depth in _EFFICIENTNET_B0:
        filters = scaled(size, width)
        for i in range(depth):
            inner = widening * channels
            gate = Gate(inner, max(1, channels // 4), nn.SiLU, nn.Sigmoid)
            stride = first_stride if i == 0 else 1
            features.append(Inverted(channels, inner, filters, kernel, stride, nn.SiLU, gate))
            channels = filters
    last = scaled(1280, width)
    features.append(conv_norm(channels, last, activation=nn.SiLU))
    return Classifier(features, [nn.Dropout(0.2), nn.Linear(last, classes)])
