"""Where the oldest versions of PyTorch that the package takes differ from what it computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmedia_fast.ops.conv_act_pool.activation import activate as _activate


def _slope_at_the_corner() -> float:
    z = torch.tensor([-3.0], requires_grad=True)
    (slope,) = torch.autograd.grad(F.hardswish(z).sum(), z)
    return slope.item()


# At -3 and 3 newer versions, and the kernels, take the slopes outside, 0 and 1; older ones (2.6)
# the one between, -1/2, and at 3 the one or the other by the number of elements.
_OLD_CORNERS = _slope_at_the_corner() != 0


def activate(z: Tensor, activation: str, param: float | None) -> Tensor:
    """The reference's activation, with the derivative of newer versions at hardswish's corners."""
    y = _activate(z, activation, param)
    if activation == "hardswish" and _OLD_CORNERS:
        y = torch.where(z.abs() == 3, F.relu(z), y)
    return y
