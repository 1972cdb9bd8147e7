"""Trains the classifier and evaluates it on the test split."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import augment
from .checkpoint import Checkpoint
from .data import Data
from .distributed import Batches, World
from .models import Classifier
from .progress import Progress
from .settings import Settings, derive_seed

NETWORK = "cnn"
_LEARNING_RATE = 2e-3
_WARM_UP = 0.1  # of all steps
_EVALUATION_BATCH = 500


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero: a function of the step alone."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return _LEARNING_RATE * (step + 1) / warm
    return _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def predict(model: Classifier, images: Tensor, device: torch.device) -> Tensor:
    """Class probabilities [N, classes], on the CPU."""
    model.eval()
    parts = [
        model(part.to(device)).softmax(dim=1).cpu() for part in images.split(_EVALUATION_BATCH)
    ]
    return torch.cat(parts)


@torch.no_grad()
def confusion_matrix(model: Classifier, data: Data, world: World) -> Tensor:
    """Test images by (true class, predicted class); every process evaluates its share of them."""
    mine = slice(world.rank, None, world.size)
    labels = data.test_labels[mine]
    matrix = torch.zeros(data.classes, data.classes, dtype=torch.int64)
    if len(labels):
        predicted = predict(model, data.test_images[mine], world.device).argmax(dim=1)
        matrix.view(-1).index_add_(
            0, labels * data.classes + predicted, torch.ones_like(labels, dtype=torch.int64)
        )
    return world.sum(matrix.to(world.device)).cpu()


def training_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Tensor:
    """One step of softmax cross-entropy; the loss, detached."""
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def make_classifier(data: Data, world: World) -> tuple[Classifier, torch.optim.Optimizer]:
    model = Classifier(data.classes, data.mean, data.std)
    # mypy knows no overload of `to` with a device and a memory format.
    model = model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=0.01)


def train_cnn(
    data: Data, settings: Settings, world: World, progress: Progress, folder: Path, resume: bool
) -> tuple[Classifier, Tensor, list[dict[str, float]]]:
    """Train; the model, its confusion matrix [true, predicted] and one row of numbers an epoch."""
    torch.manual_seed(derive_seed(settings.seed, NETWORK, "weights"))
    model, optimizer = make_classifier(data, world)
    epochs = settings.epochs_of(NETWORK, len(data.train_labels))
    config = settings_config(NETWORK, data, settings, world, epochs)
    checkpoint = Checkpoint(folder / f"{NETWORK}.pt", config, {"cnn": model}, {"cnn": optimizer})
    if resume:
        checkpoint.resume()
    trained = world.wrap(model)
    batches = Batches(len(data.train_labels), settings.batch_size, settings.seed, world)
    progress.begin(NETWORK, epochs, len(batches), checkpoint.epoch)
    for epoch in range(checkpoint.epoch, epochs):
        torch.manual_seed(derive_seed(settings.seed, NETWORK, epoch, world.rank))
        model.train()
        start = time.perf_counter()
        total = torch.zeros(2, device=world.device)  # loss times images, images
        for index, chosen in enumerate(batches.epoch(epoch)):
            rate = learning_rate(epoch * len(batches) + index, epochs * len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = augment(data.train_images[chosen]).to(world.device)
            labels = data.train_labels[chosen].to(world.device)
            loss = training_step(trained, optimizer, images, labels)
            total += torch.stack([loss * len(chosen), loss.new_tensor(len(chosen))])
            progress.step(len(chosen) * world.size)
        loss_sum, images_seen = world.sum(total).tolist()
        seconds = time.perf_counter() - start
        matrix = confusion_matrix(model, data, world)
        row = {
            "epoch": epoch + 1,
            "loss": loss_sum / images_seen,
            "test_accuracy": accuracy(matrix),
            "images_per_second": images_seen / seconds,
            "seconds": seconds,
        }
        checkpoint.epoch = epoch + 1
        checkpoint.history.append(row)
        if world.is_main:
            checkpoint.save()
        progress.epoch(epoch + 1, row)
    progress.end()
    return model, confusion_matrix(model, data, world), checkpoint.history


def accuracy(matrix: Tensor) -> float:
    """The share of a confusion matrix that is on its diagonal."""
    return float(matrix.diagonal().sum()) / max(1, int(matrix.sum()))


def settings_config(
    network: str, data: Data, settings: Settings, world: World, epochs: int
) -> dict[str, str | int | None]:
    """What a network's result depends on: a checkpoint resumes only where all of it is the same."""
    return {
        "network": network,
        "images": data.fingerprint,
        "epochs": epochs,
        "batch size": settings.batch_size,
        "seed": settings.seed,
        "backend": settings.backend,
        "processes": world.size,
    }
