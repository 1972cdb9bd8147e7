"""Networks whose BatchNorm2d trains, and a step of them beside PyTorch's in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.networks.branches import Dense

from .tolerances import assert_within

# Several layers behind each other: convolutions by Winograd too, whose errors the norms pass on.
TOLERANCE = 2e-5


class Residual(nn.Module):
    """The norm before the addition has no activation behind it; its ReLU works in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


def stem() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)
    )


def generator() -> nn.Sequential:
    up = nn.ConvTranspose2d(16, 12, 4, 2, 1, bias=False)
    return nn.Sequential(up, nn.BatchNorm2d(12), nn.LeakyReLU(0.2))


# what of it runs by our kernels, in order
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "norm": (lambda: nn.Sequential(nn.BatchNorm2d(16), nn.GELU()), ["gelu"]),
    "dense": (
        lambda: nn.Sequential(Dense(16, 8), Dense(24, 8), nn.BatchNorm2d(32)),
        ["relu"] * 4 + ["identity"],
    ),
    "residual": (lambda: nn.Sequential(Residual(16)), ["relu", "identity"]),
    "stem": (stem, ["identity"]),  # activation and pooling are one pass behind it
    "generator": (generator, ["leaky_relu"]),
}


def make(name: str, format: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]().to(memory_format=format)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.train()


def images(format: torch.memory_format = torch.contiguous_format, batch: int = 3) -> Tensor:
    x = torch.randn(batch, 16, 28, 26, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=format)


def step(model: nn.Module, x: Tensor, seed: int = 2) -> dict[str, Tensor]:
    """The result, and every gradient and statistic."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    y.backward(dy)
    found = {"y": y.detach(), "x": x.grad}
    found.update((name, p.grad) for name, p in model.named_parameters())
    found.update((name, b.clone()) for name, b in model.named_buffers())
    return {name: value for name, value in found.items() if value is not None}


def agree(fused: nn.Module, model: nn.Module, x: Tensor) -> None:
    """A step as of the model in float64."""
    expected = step(copy.deepcopy(model).double(), x.double())
    found = step(fused, x)
    assert list(found) == list(expected)
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], value)
        elif not (name.endswith("0.bias") and float(value.abs().max()) < 1e-8):
            assert_within(found[name], value, TOLERANCE)
