"""The named problems that every suite measures: layers of real networks, whole ones, and losses.

A name stands for the same numbers everywhere: in the suites, in the comparisons and in the results.
"""

from __future__ import annotations

import dataclasses
from typing import Any

INFERENCE, TRAINING = "inference", "training"
SUITES = ("inference", "training", "losses", "overhead", "models")
LOSSES = ("discriminator_minimax", "generator_non_saturating", "discriminator_hinge", "log_loss")
LOSS_COUNTS = (64, 14_400, 4_000_000)  # a batch; a PatchGAN batch 16x30x30; a large image's map


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """One convolution + activation + pooling, square in everything."""

    name: str
    inference_batch: int
    training_batch: int
    channels: int  # C
    size: int  # H = W
    filters: int  # K
    kernel: int  # R = S
    stride: int = 1
    padding: int = 0
    groups: int = 1
    activation: str = "relu"
    activation_param: float | None = None
    pool: str = "max"
    pool_size: int = 2
    pool_stride: int = 2
    pool_padding: int = 0
    ceil_mode: bool = False
    first: bool = False  # a first layer: its input needs no gradient

    @property
    def conv_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def pooled_size(self) -> int:
        if self.pool == "none":
            return self.conv_size
        span = self.conv_size + 2 * self.pool_padding - self.pool_size
        pooled = (-(-span // self.pool_stride) if self.ceil_mode else span // self.pool_stride) + 1
        if self.ceil_mode and (pooled - 1) * self.pool_stride >= self.conv_size + self.pool_padding:
            pooled -= 1  # a window must start inside the image or its left padding
        return pooled

    def describe(self, batch: int) -> str:
        text = f"{batch}x{self.channels}x{self.size}→{self.filters} {self.kernel}x{self.kernel}"
        if self.stride > 1:
            text += f"/{self.stride}"
        if self.groups > 1:
            text += f" g{self.groups}"
        text += f" {self.activation}"
        if self.pool != "none":
            text += f" {self.pool}{self.pool_size}/{self.pool_stride}"
        return text


@dataclasses.dataclass(frozen=True)
class LossShape:
    """One loss over `count` logits a tensor."""

    name: str
    loss: str  # one of LOSSES
    count: int

    @property
    def tensors(self) -> int:
        """How many tensors of logits get a gradient."""
        return 2 if self.loss.startswith("discriminator") else 1


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A whole network of benchmarks.networks, on images of its paper's channels."""

    name: str
    inference_batch: int
    inference_size: int  # H = W
    training_batch: int
    training_size: int
    width: float = 1.0  # of its channels


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: a shape in inference or in training (forward and backward)."""

    shape: ConvShape | LossShape | ModelShape
    mode: str

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def id(self) -> str:
        return f"{self.shape.name}:{self.mode}"

    @property
    def batch(self) -> int:
        if isinstance(self.shape, LossShape):
            return 1
        train = self.mode == TRAINING
        return self.shape.training_batch if train else self.shape.inference_batch

    @property
    def description(self) -> str:
        if isinstance(self.shape, LossShape):
            return f"{self.shape.tensors}x{self.shape.count:,} logits"
        if isinstance(self.shape, ModelShape):
            width = "" if self.shape.width == 1 else f", {self.shape.width:g} of its channels"
            return f"{self.batch} of {self.size}x{self.size}{width}"
        return self.shape.describe(self.batch)

    @property
    def size(self) -> int:
        """H = W of a network's images."""
        assert isinstance(self.shape, ModelShape)
        train = self.mode == TRAINING
        return self.shape.training_size if train else self.shape.inference_size

    def to_json(self) -> dict[str, Any]:
        kind = next(name for name, cls in _KINDS.items() if isinstance(self.shape, cls))
        return {"kind": kind, "mode": self.mode, "shape": dataclasses.asdict(self.shape)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Case:
        return Case(_KINDS[data["kind"]](**data["shape"]), data["mode"])


_KINDS: dict[str, Any] = {"conv": ConvShape, "loss": LossShape, "model": ModelShape}

_LEAKY: dict[str, Any] = {"activation": "leaky_relu", "activation_param": 0.2}
_SAME3: dict[str, Any] = {"kernel": 3, "padding": 1}
_DOWN4: dict[str, Any] = {"kernel": 4, "stride": 2, "padding": 1, "pool": "none", **_LEAKY}
_POOL3: dict[str, Any] = {"pool_size": 3, "pool_stride": 2}

# name, batch in inference, batch in training, C, H = W, K. Batches keep a call under about 50 ms on
# two cores, so that a round over all peers stays short.
CONV_SHAPES = (
    # LeNet-5 with ReLU and max pooling; the two-layer CNN that tutorials train on MNIST
    ConvShape("lenet.conv1", 64, 64, 1, 28, 6, kernel=5, padding=2, first=True),
    ConvShape("lenet.conv2", 64, 64, 6, 14, 16, kernel=5),
    ConvShape("mnist.conv1", 256, 256, 1, 28, 32, first=True, **_SAME3),
    ConvShape("mnist.conv2", 64, 64, 32, 14, 64, **_SAME3),
    # VGG-11 and VGG-16: the layers in front of a pool
    ConvShape("vgg11.conv1", 4, 4, 3, 224, 64, first=True, **_SAME3),
    ConvShape("vgg11.conv2", 4, 4, 64, 112, 128, **_SAME3),
    ConvShape("vgg11.conv4", 4, 4, 256, 56, 256, **_SAME3),
    ConvShape("vgg11.conv6", 4, 4, 512, 28, 512, **_SAME3),
    ConvShape("vgg11.conv8", 8, 8, 512, 14, 512, **_SAME3),
    ConvShape("vgg16.conv1_2", 1, 2, 64, 224, 64, **_SAME3),
    ConvShape("vgg16.conv2_2", 2, 2, 128, 112, 128, **_SAME3),
    # AlexNet (torchvision's)
    ConvShape("alexnet.conv1", 8, 8, 3, 224, 64, 11, 4, 2, first=True, **_POOL3),
    ConvShape("alexnet.conv2", 16, 16, 64, 27, 192, 5, 1, 2, **_POOL3),
    ConvShape("alexnet.conv5", 16, 16, 256, 13, 256, **_SAME3, **_POOL3),
    # ResNet's stem, batch normalisation folded in
    ConvShape("resnet.stem", 8, 8, 3, 224, 64, 7, 2, 3, pool_padding=1, first=True, **_POOL3),
    # SqueezeNet 1.1: stem, a squeeze layer, the classifier with its global average
    ConvShape("squeezenet.conv1", 8, 8, 3, 224, 64, 3, 2, ceil_mode=True, first=True, **_POOL3),
    ConvShape("squeezenet.fire3_squeeze", 16, 16, 128, 55, 16, 1, pool="none"),
    ConvShape(
        "squeezenet.conv10", 8, 8, 512, 13, 1000, 1, pool="avg", pool_size=13, pool_stride=13
    ),
    # U-Net's encoder, second convolution of a level
    ConvShape("unet.enc1", 2, 2, 64, 128, 64, **_SAME3),
    ConvShape("unet.enc2", 2, 2, 128, 64, 128, **_SAME3),
    # MobileNet's first depthwise layer
    ConvShape(
        "mobilenet.depthwise1", 8, 8, 32, 112, 32, groups=32, activation="relu6", pool="none",
        **_SAME3,
    ),
    # Discriminators: DCGAN, PatchGAN (pix2pix: image and condition), ProGAN
    ConvShape("dcgan.d1", 32, 32, 3, 64, 64, first=True, **_DOWN4),
    ConvShape("dcgan.d2", 32, 32, 64, 32, 128, **_DOWN4),
    ConvShape("dcgan.d4", 32, 32, 256, 8, 512, **_DOWN4),
    ConvShape("patchgan.c1", 2, 2, 6, 256, 64, first=True, **_DOWN4),
    ConvShape("patchgan.c3", 4, 4, 128, 64, 256, **_DOWN4),
    ConvShape("progan.d64", 16, 16, 64, 64, 128, pool="avg", **_SAME3, **_LEAKY),
    ConvShape("progan.d16", 16, 16, 256, 16, 512, pool="avg", **_SAME3, **_LEAKY),
)  # fmt: skip

# Whole networks: name, batch and size in inference, batch and size in training.
MODEL_SHAPES = (
    ModelShape("lenet5", 64, 28, 64, 28),
    ModelShape("alexnet", 4, 224, 4, 224),
    ModelShape("vgg11_bn", 1, 224, 2, 128),
    ModelShape("vgg16", 1, 224, 1, 128),
    ModelShape("squeezenet1_1", 4, 224, 4, 128),
    ModelShape("googlenet", 2, 224, 4, 112),
    ModelShape("resnet18", 2, 224, 4, 112),
    ModelShape("densenet121", 1, 224, 4, 64),
    ModelShape("resnext50", 2, 224, 4, 112),
    ModelShape("regnety_800mf", 4, 224, 4, 160),
    ModelShape("mobilenet_v3_large", 4, 224, 4, 160),
    ModelShape("efficientnet_b0", 4, 224, 4, 160),
    ModelShape("unet", 1, 128, 1, 64),
    ModelShape("dcgan_generator", 16, 1, 16, 1),
    ModelShape("dcgan_discriminator", 32, 64, 32, 64),
    ModelShape("progan_discriminator", 2, 128, 2, 128, width=0.5),
    ModelShape("patchgan", 1, 256, 1, 256),
)

# All overhead: a call's arithmetic takes a few microseconds.
OVERHEAD_CONV = ConvShape("overhead.conv", 1, 1, 1, 28, 8, first=True, **_SAME3)

# The short run: one shape of each kind.
QUICK = {
    "inference": ("mnist.conv1", "vgg11.conv1", "vgg11.conv2", "alexnet.conv2", "progan.d64"),
    "training": ("mnist.conv1", "vgg11.conv2", "dcgan.d2"),
    "losses": tuple(f"discriminator_minimax.{n}" for n in LOSS_COUNTS),
    "overhead": ("overhead.conv", "discriminator_minimax.64"),
    "models": ("lenet5", "squeezenet1_1", "resnet18", "dcgan_discriminator"),
}


def suite(name: str) -> tuple[Case, ...]:
    """The cases of a suite, in the order in which they are run."""
    if name in (INFERENCE, TRAINING):
        return tuple(Case(shape, name) for shape in CONV_SHAPES)
    if name == "losses":
        return tuple(
            Case(LossShape(f"{loss}.{count}", loss, count), TRAINING)
            for loss in LOSSES
            for count in LOSS_COUNTS
        )
    if name == "overhead":
        losses = [LossShape(f"{loss}.64", loss, 64) for loss in LOSSES]
        shapes: list[ConvShape | LossShape] = [OVERHEAD_CONV, *losses]
        return tuple(Case(shape, mode) for shape in shapes for mode in (INFERENCE, TRAINING))
    if name == "models":
        return tuple(Case(shape, mode) for shape in MODEL_SHAPES for mode in (INFERENCE, TRAINING))
    raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {name!r}")


def select(name: str, pattern: str) -> tuple[Case, ...]:
    """The cases of suite `name` that `pattern` picks: all, quick, or names or their beginnings."""
    cases = suite(name)
    if pattern == "all":
        return cases
    wanted = list(QUICK[name]) if pattern == "quick" else pattern.split(",")
    for word in wanted:
        if not any(case.name.startswith(word) for case in cases):
            known = ", ".join(dict.fromkeys(case.name for case in cases))
            raise ValueError(f"shapes: expected names of suite {name} ({known}), got {word!r}")
    return tuple(case for case in cases if any(case.name.startswith(word) for word in wanted))
