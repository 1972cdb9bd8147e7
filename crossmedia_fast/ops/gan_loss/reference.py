"""The GAN losses in pure PyTorch: the definition of correct."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .arguments import Problem
from .calls import discriminator_call, generator_call, log_loss_call, loss_dtype
from .formulas import compose


def run(problem: Problem, operands: list[Tensor]) -> Tensor:
    """One problem by PyTorch's own functions, one after another."""
    return compose(problem, operands, loss_dtype(operands))


def gan_discriminator_loss_reference(
    real: Tensor | Sequence[Tensor],  # [*]
    fake: Tensor | Sequence[Tensor],  # [*]
    *,
    loss: str = "minimax",
    from_logits: bool = True,
    real_label: float = 1.0,
    fake_label: float = 0.0,
    reduction: str = "mean",
) -> Tensor:  # []; [*] with reduction "none"
    """:func:`gan_discriminator_loss` in pure PyTorch: what every backend must compute.

    Arguments, shapes and errors as there.
    """
    call = discriminator_call(real, fake, loss, from_logits, real_label, fake_label, reduction)
    return call.map(run)


def gan_generator_loss_reference(
    fake: Tensor | Sequence[Tensor],  # [*]
    real: Tensor | Sequence[Tensor] | None = None,  # [*]
    *,
    loss: str = "non_saturating",
    from_logits: bool = True,
    real_label: float = 1.0,
    reduction: str = "mean",
) -> Tensor:  # []; [*] with reduction "none"
    """:func:`gan_generator_loss` in pure PyTorch: what every backend must compute.

    Arguments, shapes and errors as there.
    """
    return generator_call(fake, real, loss, from_logits, real_label, reduction).map(run)


def log_loss_reference(
    input: Tensor,  # [*]
    target: Tensor,  # [*]
    *,
    from_logits: bool = True,
    weight: Tensor | None = None,  # broadcasts to [*]
    reduction: str = "mean",
) -> Tensor:  # []; [*] with reduction "none"
    """:func:`log_loss` in pure PyTorch: what every backend must compute.

    Equivalent to: ``F.binary_cross_entropy_with_logits(input, target, weight,
    reduction=reduction)``, without logits ``F.binary_cross_entropy(…)``, which is also how it is
    written.
    """
    return log_loss_call(input, target, from_logits, weight, reduction).map(run)
