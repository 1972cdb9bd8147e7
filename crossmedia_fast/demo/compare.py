"""Time and memory of the demo's own training steps: fused operations beside the reference.

The reference is the same PyTorch operations one by one, in the same memory format, on the same
batch. Variants run in turn, so that what else the machine does meets them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backends import use_backend
from .data import Data
from .distributed import World
from .train_cnn import make_classifier, training_step
from .train_gan import discriminator_step, draw_noise, generator_step, make_trainable_gan

_WARM_UP = 3
_ROUNDS = 15


@dataclass(frozen=True)
class Measurement:
    """One training step with one variant."""

    step: str
    variant: str  # "fused" or "reference"
    backend: str | None  # what use_backend was given; None = the package chooses
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    saved_bytes: int  # what autograd keeps from forward for backward, parameters not counted


class _SavedBytes:
    """Counts the storages that autograd saves, each once, those of the parameters left out."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._parameters = {
            tensor.untyped_storage().data_ptr()
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        self._sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        # Returned as it is: the graph keeps it alive, so no other storage takes its address.
        return tensor

    @property
    def total(self) -> int:
        return sum(self._sizes.values())


@dataclass(frozen=True)
class _Step:
    name: str
    modules: list[nn.Module]
    run: Callable[[], object]


def _steps(data: Data, batch_size: int, gan_kinds: tuple[str, ...], world: World) -> list[_Step]:
    """The three kinds of training step, on new networks: the trained ones stay as they are."""
    chosen = torch.arange(batch_size) % len(data.train_labels)
    images = data.train_images[chosen].to(world.device)
    labels = data.train_labels[chosen].to(world.device)
    classifier, optimizer = make_classifier(data, world)
    classifier.train()
    steps = [
        _Step("CNN", [classifier], lambda: training_step(classifier, optimizer, images, labels))
    ]
    for kind in gan_kinds:
        gan = make_trainable_gan(kind, world)
        modules = [gan.bare_generator, gan.bare_discriminator]
        noise = draw_noise(batch_size, world.device)
        with torch.no_grad():
            fixed = gan.bare_generator(noise)
        # Default arguments hold this round's values; a closure would see the last round's.
        steps += [
            _Step(
                f"{kind} discriminator",
                modules,
                lambda gan=gan, fixed=fixed: discriminator_step(gan, images, fixed),  # type: ignore[misc]
            ),
            _Step(
                f"{kind} generator",
                modules,
                lambda gan=gan, noise=noise: generator_step(gan, gan.bare_generator(noise)),  # type: ignore[misc]
            ),
        ]
    return steps


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def compare(
    data: Data,
    *,
    batch_size: int,
    gan_kinds: tuple[str, ...],
    backend: str | None,
    world: World,
    rounds: int = _ROUNDS,
) -> list[Measurement]:
    """Measure every step with both variants. Networks are new, and only this process takes part."""
    alone = World(0, 1, world.device)
    # With --backend reference the run had no fused operation: here the package chooses one.
    variants = {"fused": None if backend == "reference" else backend, "reference": "reference"}
    results = []
    # The random state is put back: measuring must not change what is drawn after it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in _steps(data, batch_size, gan_kinds, alone):
            times: dict[str, list[float]] = {name: [] for name in variants}
            saved: dict[str, int] = {}
            for index in range(_WARM_UP + rounds):
                for name, chosen in variants.items():
                    with use_backend(chosen):
                        if index == 0:
                            counter = _SavedBytes(step.modules)
                            hooks = torch.autograd.graph.saved_tensors_hooks(
                                counter.pack, lambda tensor: tensor
                            )
                            with hooks:
                                step.run()
                            saved[name] = counter.total
                        elapsed = _milliseconds(step.run, world.device)
                    if index >= _WARM_UP:
                        times[name].append(elapsed)
            for name, chosen in variants.items():
                results.append(
                    Measurement(
                        step=step.name,
                        variant=name,
                        backend=chosen,
                        median_ms=statistics.median(times[name]),
                        fastest_ms=min(times[name]),
                        slowest_ms=max(times[name]),
                        saved_bytes=saved[name],
                    )
                )
    return results
