"""What the user chose, and what a network's training follows from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

# Epochs of the default run, for the 4,000 training images of the embedded digits.
DEFAULT_EPOCHS = {"cnn": 12, "gan-mlp": 200, "gan-dcgan": 20}
_EMBEDDED_TRAINING_IMAGES = 4000
GAN_KINDS = ("mlp", "dcgan")


@dataclass(frozen=True)
class Settings:
    data: str | None = None
    gan: str = "both"
    epochs: int | None = None
    batch_size: int = 64
    backend: str | None = None
    seed: int = 0
    out: str = "demo_out"
    resume: bool = False
    threads: int | None = None
    limit: int | None = None

    @property
    def gan_kinds(self) -> tuple[str, ...]:
        return GAN_KINDS if self.gan == "both" else (self.gan,)

    def epochs_of(self, network: str, training_images: int) -> int:
        """Epochs for one network: as asked for, else about the default run's number of steps."""
        if self.epochs is not None:
            return self.epochs
        steps_as = DEFAULT_EPOCHS[network] * _EMBEDDED_TRAINING_IMAGES
        return min(DEFAULT_EPOCHS[network], max(1, math.ceil(steps_as / training_images)))


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from names and numbers: neighbouring seeds and epochs share nothing."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
