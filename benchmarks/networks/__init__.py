"""Whole networks, written from their papers: what fuse is tested and measured on.

``build(width)`` gives a network of PyTorch's own layers; `width` scales its channels. Nothing of
crossmedia_fast is in here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from . import branches, chains, groups_and_gates, image_to_image


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and the images that it takes."""

    name: str
    build: Callable[[float], nn.Module]
    channels: int
    size: int  # H = W, as in its paper
    smallest: int  # H = W that every layer still finds something to do for

    def input_shape(self, batch: int, size: int | None = None) -> tuple[int, int, int, int]:
        size = self.size if size is None else size
        return batch, self.channels, size, size


NETWORKS = {
    network.name: network
    for network in (
        Network("lenet5", chains.LeNet5, 1, 28, 28),
        Network("alexnet", chains.AlexNet, 3, 224, 64),
        Network("vgg11_bn", chains.vgg11_bn, 3, 224, 32),
        Network("vgg16", chains.vgg16, 3, 224, 32),
        Network("squeezenet1_1", branches.SqueezeNet11, 3, 224, 64),
        Network("googlenet", branches.GoogLeNet, 3, 224, 64),
        Network("resnet18", branches.ResNet18, 3, 224, 64),
        Network("densenet121", branches.DenseNet121, 3, 224, 64),
        Network("resnext50", groups_and_gates.resnext50, 3, 224, 64),
        Network("regnety_800mf", groups_and_gates.regnety_800mf, 3, 224, 64),
        Network("mobilenet_v3_large", groups_and_gates.mobilenet_v3_large, 3, 224, 64),
        Network("efficientnet_b0", groups_and_gates.efficientnet_b0, 3, 224, 64),
        Network("unet", image_to_image.UNet, 1, 256, 32),
        Network("dcgan_generator", image_to_image.DCGANGenerator, 100, 1, 1),
        Network("dcgan_discriminator", image_to_image.DCGANDiscriminator, 3, 64, 64),
        Network("progan_discriminator", image_to_image.ProGANDiscriminator, 3, 128, 128),
        Network("patchgan", image_to_image.PatchGANDiscriminator, 6, 256, 64),
    )
}
