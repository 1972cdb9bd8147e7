"""Operations and bytes that a case cannot avoid, and how long they take at the machine's limits."""

from __future__ import annotations

import dataclasses

from .limits import Limits
from .shapes import TRAINING, Case, ConvShape, ModelShape

FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations: multiplications and additions of the direct convolution. Bytes: each tensor once
    per pass that must see it."""

    operations: int
    bytes: int

    def limit_seconds(self, limits: Limits) -> float:
        """The time at the arithmetic peak or at the copy bandwidth, whichever is longer."""
        return max(
            self.operations / limits.operations_per_second,
            self.bytes / limits.bandwidth(self.bytes),
        )

    def bound(self, limits: Limits) -> str:
        compute = self.operations / limits.operations_per_second
        return "arithmetic" if compute >= self.bytes / limits.bandwidth(self.bytes) else "memory"


def count(case: Case) -> Work:
    shape = case.shape
    if isinstance(shape, ModelShape):
        from . import models

        return models.count(case)
    if not isinstance(shape, ConvShape):
        # I/O: read each logit; in training write its gradient. Operations: not counted, no
        # multiply-add defines a softplus.
        tensors = shape.tensors + (shape.loss == "log_loss")
        writes = shape.tensors if case.mode == TRAINING else 0
        return Work(0, FLOAT * shape.count * (tensors + writes))
    taps = shape.channels // shape.groups * shape.kernel**2
    x = case.batch * shape.channels * shape.size**2
    w = shape.filters * taps
    y = case.batch * shape.filters * shape.pooled_size**2
    forward = 2 * case.batch * shape.filters * shape.conv_size**2 * taps
    if case.mode != TRAINING:
        return Work(forward, FLOAT * (x + w + shape.filters + y))  # I/O: read x, w, b; write y
    # I/O: forward reads x, w, b, writes y and a byte of index; backward reads dy, the index, x, w,
    # writes dw, db and, but for a first layer, dx.
    elements = 2 * x + 3 * w + 2 * shape.filters + 2 * y + (0 if shape.first else x)
    index = 2 * y if shape.pool == "max" else 0
    return Work(forward * (2 if shape.first else 3), FLOAT * elements + index)
