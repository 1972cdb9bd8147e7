"""Augmentation: small shifts and rotations, a whole batch at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT = 2.0  # pixels
MAX_DEGREES = 12.0


def augment(
    images: Tensor,  # [N, C, H, W]
    *,
    max_shift: float = MAX_SHIFT,
    max_degrees: float = MAX_DEGREES,
    background: float = -1.0,
    generator: torch.Generator | None = None,
) -> Tensor:  # [N, C, H, W]
    """Shift and rotate every image by its own random amount.

    1. one angle and two shifts an image, uniform in +-max_degrees and +-max_shift pixels;
    2. bilinear sampling at the moved positions; what comes from outside is `background`.
    """
    n, _, height, width = images.shape
    if n == 0:
        return images
    # Drawn on the CPU whatever the device, so that a seed means the same images everywhere.
    draw = torch.rand(3, n, generator=generator).mul_(2).sub_(1).to(images)
    angle = draw[0] * math.radians(max_degrees)
    cos, sin = angle.cos(), angle.sin()
    # affine_grid's coordinates run from -1 to 1 over the image: a pixel is 2 / width of them.
    theta = torch.stack(
        [
            torch.stack([cos, -sin * height / width, draw[1] * max_shift * 2 / width], dim=1),
            torch.stack([sin * width / height, cos, draw[2] * max_shift * 2 / height], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # grid_sample fills with 0 only: move the background there and back.
    moved = F.grid_sample(images - background, grid, padding_mode="zeros", align_corners=False)
    return moved + background
