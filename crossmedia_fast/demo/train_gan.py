"""Trains a GAN: discriminator and generator in turn, with the fused losses."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..ops.gan_loss import gan_discriminator_loss, gan_generator_loss
from .checkpoint import Checkpoint
from .data import Data
from .distributed import Batches, World
from .models import NOISE, make_gan
from .progress import Progress
from .settings import Settings, derive_seed
from .train_cnn import settings_config

# (generator, discriminator). The article's generator has no structure of an image to lean on: at
# equal rates its discriminator wins early and some digits are never drawn.
_LEARNING_RATES = {"mlp": (1e-3, 2.5e-4), "dcgan": (2e-3, 2e-3)}
# Noise on all that the discriminator sees, this much at first and none at the end: it blurs the
# details by which a fully connected one would tell them apart before it knows digits.
_INSTANCE_NOISE = {"mlp": 0.3, "dcgan": 0.0}
_BETAS = (0.5, 0.99)
_AVERAGE_DECAY = 0.998


@dataclass
class Gan:
    """Both networks, their optimizers, and the running average of the generator's weights.

    `generator` and `discriminator` are what training calls: under several processes they are
    wrapped; `bare_*` are the modules themselves.
    """

    bare_generator: nn.Module
    bare_discriminator: nn.Module
    average: nn.Module
    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer


def make_trainable_gan(kind: str, world: World) -> Gan:
    generator, discriminator = (
        module.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in make_gan(kind)
    )
    generator_rate, discriminator_rate = _LEARNING_RATES[kind]
    return Gan(
        bare_generator=generator,
        bare_discriminator=discriminator,
        average=copy.deepcopy(generator).requires_grad_(False),
        generator=world.wrap(generator),
        discriminator=world.wrap(discriminator),
        generator_optimizer=torch.optim.Adam(generator.parameters(), generator_rate, _BETAS),
        discriminator_optimizer=torch.optim.Adam(
            discriminator.parameters(), discriminator_rate, _BETAS
        ),
    )


def discriminator_step(gan: Gan, real: Tensor, fake: Tensor) -> Tensor:
    """Minimise -E[log D(x)] - E[log(1 - D(G(z)))]; the loss, detached."""
    # One pass over both: under several processes a wrapped module is called once a backward.
    real_scores, fake_scores = gan.discriminator(torch.cat([real, fake.detach()])).split(
        [len(real), len(fake)]
    )
    loss = gan_discriminator_loss(real_scores, fake_scores, loss="minimax")
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gan.discriminator_optimizer.step()
    return loss.detach()


def generator_step(gan: Gan, fake: Tensor) -> Tensor:
    """Minimise -E[log D(G(z))] for images that still carry their graph; the loss, detached."""
    # The discriminator only passes the gradient on: its own weights' gradients aren't computed.
    gan.bare_discriminator.requires_grad_(False)
    loss = gan_generator_loss(gan.bare_discriminator(fake), loss="non_saturating")
    gan.generator_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gan.generator_optimizer.step()
    gan.bare_discriminator.requires_grad_(True)
    return loss.detach()


@torch.no_grad()
def update_average(gan: Gan, step: int) -> None:
    """Average of the generator's weights: its images are steadier than those of the last step."""
    decay = min(_AVERAGE_DECAY, (1 + step) / (10 + step))
    averages: list[Tensor] = list(gan.average.parameters())
    weights: list[Tensor] = list(gan.bare_generator.parameters())
    torch._foreach_lerp_(averages, weights, 1 - decay)


def blur(images: Tensor, amount: float) -> Tensor:
    """Instance noise: `images` with normal noise of that standard deviation."""
    return images + amount * torch.randn_like(images) if amount else images


def draw_noise(count: int, device: torch.device) -> Tensor:
    # On the CPU whatever the device, so that a seed means the same images everywhere.
    return torch.randn(count, NOISE).to(device)


@torch.no_grad()
def generate(generator: nn.Module, count: int, seed: int, device: torch.device) -> Tensor:
    """`count` images [count, 1, 28, 28] in [-1, 1], on the CPU; the same for the same seed."""
    noise = torch.randn(count, NOISE, generator=torch.Generator().manual_seed(seed))
    return torch.cat([generator(part.to(device)).cpu() for part in noise.split(500)])


def train_gan(
    kind: str,
    data: Data,
    settings: Settings,
    world: World,
    progress: Progress,
    folder: Path,
    resume: bool,
) -> tuple[Gan, list[dict[str, float]]]:
    """Train; the networks and one row of numbers an epoch."""
    network = f"gan-{kind}"
    torch.manual_seed(derive_seed(settings.seed, network, "weights"))
    gan = make_trainable_gan(kind, world)
    images = data.train_images
    epochs = settings.epochs_of(network, len(images))
    checkpoint = Checkpoint(
        folder / f"{network}.pt",
        settings_config(network, data, settings, world, epochs),
        {
            "generator": gan.bare_generator,
            "discriminator": gan.bare_discriminator,
            "average": gan.average,
        },
        {
            "generator": gan.generator_optimizer,
            "discriminator": gan.discriminator_optimizer,
        },
    )
    if resume:
        checkpoint.resume()
    batches = Batches(len(images), settings.batch_size, settings.seed, world)
    progress.begin(network, epochs, len(batches), checkpoint.epoch)
    for epoch in range(checkpoint.epoch, epochs):
        torch.manual_seed(derive_seed(settings.seed, network, epoch, world.rank))
        start = time.perf_counter()
        total = torch.zeros(3, device=world.device)  # both losses times images, images
        for index, chosen in enumerate(batches.epoch(epoch)):
            step = epoch * len(batches) + index
            amount = _INSTANCE_NOISE[kind] * (1 - step / (epochs * len(batches)))
            real = blur(images[chosen].to(world.device), amount)
            fake = blur(gan.generator(draw_noise(len(chosen), world.device)), amount)
            loss_d = discriminator_step(gan, real, fake)
            loss_g = generator_step(gan, fake)
            update_average(gan, step)
            total += torch.stack([loss_d, loss_g, loss_d.new_tensor(1.0)]) * len(chosen)
            progress.step(len(chosen) * world.size)
        sum_d, sum_g, images_seen = world.sum(total).tolist()
        seconds = time.perf_counter() - start
        row = {
            "epoch": epoch + 1,
            "discriminator_loss": sum_d / images_seen,
            "generator_loss": sum_g / images_seen,
            "images_per_second": images_seen / seconds,
            "seconds": seconds,
        }
        checkpoint.epoch = epoch + 1
        checkpoint.history.append(row)
        if world.is_main:
            checkpoint.save()
        progress.epoch(epoch + 1, row)
    progress.end()
    return gan, checkpoint.history
