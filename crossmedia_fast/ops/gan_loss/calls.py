"""Turns the arguments of a public function into problems and their operands.

The reference and the fused functions both start here, so they accept and refuse the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arguments import (
    Problem,
    as_scales,
    check_boolean,
    check_choices,
    check_label,
    check_pairs,
    check_reduction,
    check_same_device,
    check_tensor,
    discriminator_problem,
    generator_problem,
    log_loss_problem,
    target_problem,
)


@dataclass(frozen=True)
class Call:
    """A checked call: one problem, or one a scale where `reduction="none"` meets a list."""

    parts: list[tuple[Problem, list[Tensor]]]
    as_list: bool

    def map(self, function: Callable[[Problem, list[Tensor]], Tensor]) -> Any:
        """`function` of each part: a tensor, or a list of them for unreduced scales."""
        results = [function(problem, operands) for problem, operands in self.parts]
        return results if self.as_list else results[0]


def loss_dtype(operands: list[Tensor]) -> torch.dtype | None:
    """The dtype in which the loss is returned where it isn't the operands' own.

    Autocast gives losses in float32, as PyTorch's own list of float32 operations has them.
    """
    first = operands[0]
    if first.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(
        first.device.type
    ):
        return torch.float32
    return None


def _promoted(operands: list[Tensor]) -> list[Tensor]:
    dtype = operands[0].dtype
    for operand in operands[1:]:
        dtype = torch.promote_types(dtype, operand.dtype)
    return [operand if operand.dtype == dtype else operand.to(dtype) for operand in operands]


def _shares(each: Sequence[Any], scales: str, factor: float) -> tuple[float, ...]:
    """What each scale's loss is multiplied by; `scales` is "mean" or "sum"."""
    share = factor / len(each) if scales == "mean" else factor
    return (share,) * len(each)


def discriminator_call(
    real: Any,
    fake: Any,
    loss: Any,
    from_logits: Any,
    real_label: Any,
    fake_label: Any,
    reduction: Any,
    scales: str = "mean",
    factor: float = 1.0,
) -> Call:
    """Checks the arguments of gan_discriminator_loss; see `_shares` for the last two."""
    check_choices(loss, from_logits, reduction)
    real_label = check_label("real_label", real_label, loss, from_logits)
    fake_label = check_label("fake_label", fake_label, loss, from_logits)
    reals, fakes = as_scales("real", real), as_scales("fake", fake)
    as_list = isinstance(real, (list, tuple))
    if as_list != isinstance(fake, (list, tuple)):
        raise TypeError(
            f"fake must be a list of tensors exactly where real is one, "
            f"got {type(real).__name__} and {type(fake).__name__}"
        )
    check_same_device("real", reals, reals[0])
    check_same_device("fake", fakes, reals[0])
    paired = loss == "relativistic" or reduction == "none"
    if paired:
        check_pairs("fake", fakes, "real", reals)
    elif len(fakes) != len(reals):
        raise ValueError(f"fake must have as many scales as real ({len(reals)}), got {len(fakes)}")

    def part(reals: list[Tensor], fakes: list[Tensor]) -> tuple[Problem, list[Tensor]]:
        problem = discriminator_problem(
            loss, from_logits, real_label, fake_label, reduction, _shares(reals, scales, factor)
        )
        if loss == "relativistic":
            operands = [x for pair in zip(fakes, reals, strict=True) for x in pair]
        else:
            operands = reals + fakes
        return problem, _promoted(operands)

    if reduction == "none" and as_list:
        return Call([part([r], [f]) for r, f in zip(reals, fakes, strict=True)], True)
    return Call([part(reals, fakes)], False)


def generator_call(
    fake: Any,
    real: Any,
    loss: Any,
    from_logits: Any,
    real_label: Any,
    reduction: Any,
    scales: str = "mean",
    factor: float = 1.0,
) -> Call:
    """Checks the arguments of gan_generator_loss; see `_shares` for the last two."""
    check_choices(loss, from_logits, reduction)
    real_label = check_label("real_label", real_label, loss, from_logits)
    fakes = as_scales("fake", fake)
    check_same_device("fake", fakes, fakes[0])
    as_list = isinstance(fake, (list, tuple))
    if loss == "relativistic":
        if real is None:
            raise ValueError('real must be given with loss="relativistic", got None')
        reals = as_scales("real", real)
        check_same_device("real", reals, fakes[0])
        check_pairs("real", reals, "fake", fakes)
        each = [[r, f] for r, f in zip(reals, fakes, strict=True)]
    else:
        each = [[f] for f in fakes]

    def part(each: list[list[Tensor]]) -> tuple[Problem, list[Tensor]]:
        problem = generator_problem(
            loss, from_logits, real_label, reduction, _shares(each, scales, factor)
        )
        return problem, _promoted([x for scale in each for x in scale])

    if reduction == "none" and as_list:
        return Call([part([scale]) for scale in each], True)
    return Call([part(each)], False)


def target_call(
    prediction: Any,
    loss: str,
    from_logits: bool,
    label: float,
    is_real: bool,
    for_discriminator: bool,
    reduction: str,
    scales: str,
    factor: float,
) -> Call:
    """One prediction held against real or fake; all but `prediction` has been checked."""
    predictions = as_scales("prediction", prediction)
    check_same_device("prediction", predictions, predictions[0])

    def part(predictions: list[Tensor]) -> tuple[Problem, list[Tensor]]:
        problem = target_problem(
            loss,
            from_logits,
            label,
            is_real,
            for_discriminator,
            reduction,
            _shares(predictions, scales, factor),
        )
        return problem, _promoted(predictions)

    if reduction == "none" and isinstance(prediction, (list, tuple)):
        return Call([part([x]) for x in predictions], True)
    return Call([part(predictions)], False)


def log_loss_call(input: Any, target: Any, from_logits: Any, weight: Any, reduction: Any) -> Call:
    """Checks the arguments of log_loss."""
    check_boolean("from_logits", from_logits)
    check_reduction(reduction)
    check_tensor("input", input)
    check_tensor("target", target)
    check_same_device("target", [target], input)
    check_pairs("target", [target], "input", [input])
    operands = [input, target]
    if weight is not None:
        check_tensor("weight", weight)
        check_same_device("weight", [weight], input)
        if weight.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                "weight must not require a gradient (binary cross-entropy is not differentiable "
                "with respect to it in PyTorch either), got one that does"
            )
        try:
            operands.append(weight.expand(input.shape))
        except RuntimeError:
            raise ValueError(
                f"weight must broadcast to the input's shape {tuple(input.shape)}, "
                f"got {tuple(weight.shape)}"
            ) from None
    dtypes = {operand.dtype for operand in operands}
    if len(dtypes) > 1 and not from_logits:
        raise TypeError(
            "input, target and weight must have one dtype with from_logits=False, got "
            + ", ".join(str(operand.dtype) for operand in operands)
        )
    return Call(
        [(log_loss_problem(from_logits, weight is not None, reduction), _promoted(operands))], False
    )
