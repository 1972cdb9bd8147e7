"""batch_norm_act in pure PyTorch: the definition of correct."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..conv_act_pool.activation import activate


def batch_norm_act(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor | None,  # [C]
    bias: Tensor | None,  # [C]
    running_mean: Tensor | None,  # [C], changed in place
    running_var: Tensor | None,  # [C], changed in place
    momentum: float,
    eps: float,
    activation: str,
    param: float,
) -> Tensor:  # [N, C, H, W]
    """act(batch_norm(x)) with the statistics of x, by PyTorch's own functions."""
    z = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    return activate(z, activation, param)
