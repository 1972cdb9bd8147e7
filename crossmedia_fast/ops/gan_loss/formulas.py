"""The elementwise functions of the losses and their gradients in plain PyTorch.

The formulas that the compiled kernels implement stand in csrc/common/gan_loss.h; these twins are
the reference, and serve every derivative beyond the first, so they can be differentiated
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import OPERANDS, Problem


class ProbabilityError(ValueError, RuntimeError):
    """A probability (or its target) lies outside [0, 1].

    A ValueError as every bad argument of this package, and a RuntimeError as
    ``torch.nn.functional.binary_cross_entropy`` raises it.
    """

    def __init__(self) -> None:
        super().__init__(
            "with from_logits=False every element of real, fake, input, prediction and target must "
            "be between 0 and 1, got one outside; for raw scores pass from_logits=True"
        )


def _binary_cross_entropy(p: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    try:
        return F.binary_cross_entropy(p, target, weight, reduction="none")
    except RuntimeError as error:
        if "between 0 and 1" in str(error):
            raise ProbabilityError from error
        raise


def value(function: str, operands: Sequence[Tensor], parameter: float) -> Tensor:
    """The function of one term, element by element, from PyTorch's own functions."""
    x, *others = operands
    if function == "log_loss_logits":
        # -log sigmoid(x) and -log(1 - sigmoid(x)), each exact where the other is huge
        if parameter == 1.0:
            return -F.logsigmoid(x)
        if parameter == 0.0:
            return -F.logsigmoid(-x)
        return -parameter * F.logsigmoid(x) - (1.0 - parameter) * F.logsigmoid(-x)
    if function == "log_loss_probabilities":
        return _binary_cross_entropy(x, torch.full_like(x, parameter))
    if function == "least_squares":
        return 0.5 * (x - parameter).square()
    if function == "hinge":
        return F.relu(1.0 + parameter * x)
    if function == "linear":
        return x.clone()
    if function == "relativistic":
        return -F.logsigmoid(others[0] - x)
    if function.startswith("log_loss_logits_target"):
        weight = others[1] if len(others) > 1 else None
        return F.binary_cross_entropy_with_logits(x, others[0], weight, reduction="none")
    return _binary_cross_entropy(x, *others)


def gradients(
    function: str, operands: Sequence[Tensor], parameter: float, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """grad · ∂function/∂operand for each operand of a term, differentiable to any order.

    `grad` has the operands' shape or broadcasts to it. A weight has no gradient, as in PyTorch.
    """
    x, *others = operands
    if function == "log_loss_logits":
        return (grad * (torch.sigmoid(x) - parameter),)
    if function == "log_loss_probabilities":
        target = torch.full_like(x, parameter)
        return (_binary_cross_entropy_backward(grad, x, target, None),)
    if function == "least_squares":
        return (grad * (x - parameter),)
    if function == "hinge":
        # 0, not 0 · grad, on the flat side; NaN is not on the flat side: both as F.relu
        flat = 1.0 + parameter * x <= 0
        return (torch.where(flat, torch.zeros_like(x), grad * parameter),)
    if function == "linear":
        return (grad.expand_as(x),)
    if function == "relativistic":
        dx = grad * torch.sigmoid(x - others[0])
        return dx, -dx
    target, *weights = others
    weight = weights[0] if weights else None
    if function.startswith("log_loss_logits_target"):
        weighted = grad if weight is None else grad * weight
        dx, dtarget = weighted * (torch.sigmoid(x) - target), weighted * -x
    else:
        dx = _binary_cross_entropy_backward(grad, x, target, weight)
        # not clamped, as in PyTorch
        dtarget = (grad if weight is None else grad * weight) * (torch.log1p(-x) - torch.log(x))
    return (dx, dtarget) if weight is None else (dx, dtarget, None)


def _binary_cross_entropy_backward(
    grad: Tensor, p: Tensor, target: Tensor, weight: Tensor | None
) -> Tensor:
    # PyTorch's own op: its derivative, with its guards near 0 and 1, is the definition here
    reduction_none = 0
    return torch.ops.aten.binary_cross_entropy_backward(
        grad.expand_as(p), p, target, weight, reduction_none
    )


def terms(problem: Problem, operands: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """The operands of each term."""
    step = OPERANDS[problem.function]
    return [operands[start : start + step] for start in range(0, len(operands), step)]


def reduce(elements: Tensor, reduction: str) -> Tensor:
    """The elements themselves, their mean or their sum."""
    if reduction == "mean":
        return elements.mean()
    return elements.sum() if reduction == "sum" else elements


def compose(
    problem: Problem, operands: Sequence[Tensor], dtype: torch.dtype | None = None
) -> Tensor:
    """The whole loss in PyTorch operations, computed in `dtype` where it is given."""
    if dtype is not None:
        operands = [operand.to(dtype) for operand in operands]
    total: Tensor | None = None
    for term, parameter, scale in zip(
        terms(problem, operands), problem.parameters, problem.scales, strict=True
    ):
        loss = reduce(value(problem.function, term, parameter), problem.reduction)
        if scale != 1.0:
            loss = scale * loss
        total = loss if total is None else total + loss
    assert total is not None
    return total


def differentiable_backward(
    problem: Problem, operands: Sequence[Tensor], grad: Tensor, dtype: torch.dtype | None = None
) -> list[Tensor | None]:
    """The gradient of each operand of :func:`compose`, itself differentiable to any order."""
    result: list[Tensor | None] = []
    for term, parameter, scale in zip(
        terms(problem, operands), problem.parameters, problem.scales, strict=True
    ):
        factor = scale / max(term[0].numel(), 1) if problem.reduction == "mean" else scale
        cast = term if dtype is None else [operand.to(dtype) for operand in term]
        for operand, gradient in zip(
            term, gradients(problem.function, cast, parameter, grad * factor), strict=True
        ):
            result.append(None if gradient is None else gradient.to(operand.dtype))
    return result


def directional(
    problem: Problem,
    operands: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Forward mode: the derivative of :func:`compose` along `tangents` (None = zero)."""
    total: Tensor | None = None
    for term, along, parameter, scale in zip(
        terms(problem, operands),
        terms(problem, tangents),  # type: ignore[arg-type]
        problem.parameters,
        problem.scales,
        strict=True,
    ):
        cast = term if dtype is None else [operand.to(dtype) for operand in term]
        elements: Tensor | None = None
        for index, tangent in enumerate(along):
            if tangent is None:
                continue
            along_one = tangent.to(cast[index].dtype)
            part = gradients(problem.function, cast, parameter, along_one)[index]
            if part is not None:
                elements = part if elements is None else elements + part
        if elements is None:
            elements = torch.zeros_like(cast[0])
        loss = scale * reduce(elements, problem.reduction)
        total = loss if total is None else total + loss
    assert total is not None
    return total
