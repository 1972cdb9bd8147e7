"""The public functions gan_discriminator_loss, gan_generator_loss and log_loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ...backends import requested
from .arguments import Problem
from .autograd import gan_loss as gan_loss_eager
from .autograd import unwrapped
from .calls import (
    Call,
    discriminator_call,
    generator_call,
    log_loss_call,
    loss_dtype,
    target_call,
)
from .kernels import GanLossLaunch, launch_for
from .plan import make_plan
from .reference import run as run_reference
from .registration import gan_loss as gan_loss_registered

_PLAIN = (Tensor, Parameter)
_MAX_CACHED = 4096

# Calls on plain tensors that were checked and planned before. What a key leaves out (a layout
# without memory, a tensor that a transform left wrapped) raises RuntimeError when the memory is
# asked for; such a call starts again with all checks, which then say what is wrong.
_launches: dict[Any, GanLossLaunch] = {}

# On a small problem looking up a module's attributes costs as much as the kernel.
_any_autocast = torch._C._is_any_autocast_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_compiling = torch.compiler.is_compiling


def _is_plain(x: Any) -> bool:
    """Whether nothing stands between this tensor and its memory: no subclass, no fake device."""
    return type(x) in _PLAIN and (x.is_cpu or x.is_cuda)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def _place(x: Tensor) -> Any:
    """What of a tensor's device a key must hold; asking for the CPU's name costs a microsecond."""
    return x.is_cpu or x.device


def _run(problem: Problem, operands: list[Tensor], backend: str | None, key: Any) -> Tensor:
    """One checked problem on the backend that the plan names."""
    plan = make_plan(operands[0].dtype, operands[0].device, backend)
    if plan.backend == "reference":
        return run_reference(problem, operands)
    dtype = loss_dtype(operands)
    if _is_compiling() or _dispatch_modes() or not all(map(_is_plain, operands)):
        return gan_loss_registered(problem, operands, dtype, plan.backend)
    operands = unwrapped(operands)
    launch = launch_for(plan.backend, problem, operands, dtype)
    if key is not None:
        if len(_launches) >= _MAX_CACHED:
            _launches.clear()
        _launches[key] = launch
    return gan_loss_eager(launch, operands)


def run(call: Call, backend: str | None, key: Any = None) -> Any:
    """A checked call; `key` remembers it where it has one part whose operands are its arguments."""
    return call.map(lambda problem, operands: _run(problem, operands, backend, key))


def discriminator_loss(
    real: Any,
    fake: Any,
    loss: Any,
    from_logits: Any,
    real_label: Any,
    fake_label: Any,
    reduction: Any,
    backend: Any,
    scales: str,
    factor: float,
) -> Any:
    """gan_discriminator_loss times `factor`, with the mean or sum over `scales`."""
    key = None
    if type(real) in _PLAIN and type(fake) in _PLAIN and not _is_compiling():
        try:
            key = (
                loss,
                reduction,
                from_logits,
                type(from_logits),
                real_label,
                fake_label,
                factor,
                real.shape,
                fake.shape,
                real.dtype,
                fake.dtype,
                _place(real),
                _place(fake),
                requested() if backend is None else backend,
                _any_autocast() and _autocast(real),
            )
            launch = _launches.get(key)
            if launch is not None and not _dispatch_modes():
                # a relativistic pair lies [fake, real]
                pair = (fake, real) if loss == "relativistic" else (real, fake)
                return gan_loss_eager(launch, pair)
        except (TypeError, RuntimeError):  # no hash, shape or memory: the checks below name it
            key = None
        if real.dtype != fake.dtype:
            key = None
    call = discriminator_call(
        real, fake, loss, from_logits, real_label, fake_label, reduction, scales, factor
    )
    return run(call, backend, key)


def generator_loss(
    fake: Any,
    real: Any,
    loss: Any,
    from_logits: Any,
    real_label: Any,
    reduction: Any,
    backend: Any,
    scales: str,
    factor: float,
) -> Any:
    """gan_generator_loss times `factor`, with the mean or sum over `scales`."""
    key = None
    paired = loss == "relativistic"  # the others don't look at `real`
    if type(fake) in _PLAIN and not (paired and type(real) not in _PLAIN) and not _is_compiling():
        try:
            key = (
                loss,
                reduction,
                from_logits,
                type(from_logits),
                real_label,
                factor,
                fake.shape,
                fake.dtype,
                _place(fake),
                (real.shape, real.dtype, _place(real)) if paired else None,
                requested() if backend is None else backend,
                _any_autocast() and _autocast(fake),
            )
            launch = _launches.get(key)
            if launch is not None and not _dispatch_modes():
                return gan_loss_eager(launch, (real, fake) if paired else (fake,))
        except (TypeError, RuntimeError):
            key = None
        if paired and real.dtype != fake.dtype:
            key = None
    call = generator_call(fake, real, loss, from_logits, real_label, reduction, scales, factor)
    return run(call, backend, key)


def target_loss(
    prediction: Any,
    loss: str,
    from_logits: bool,
    label: float,
    is_real: bool,
    for_discriminator: bool,
    reduction: str,
    backend: str | None,
    scales: str,
    factor: float,
) -> Any:
    """One prediction held against real or fake; all but `prediction` has been checked."""
    key = None
    if type(prediction) in _PLAIN and not _is_compiling():
        try:
            key = (
                "target",
                loss,
                reduction,
                from_logits,
                label,
                is_real,
                for_discriminator,
                factor,
                prediction.shape,
                prediction.dtype,
                _place(prediction),
                requested() if backend is None else backend,
                _any_autocast() and _autocast(prediction),
            )
            launch = _launches.get(key)
            if launch is not None and not _dispatch_modes():
                return gan_loss_eager(launch, (prediction,))
        except RuntimeError:
            key = None
    call = target_call(
        prediction,
        loss,
        from_logits,
        label,
        is_real,
        for_discriminator,
        reduction,
        scales,
        factor,
    )
    return run(call, backend, key)


def gan_discriminator_loss(
    real: Tensor | Sequence[Tensor],  # [*]
    fake: Tensor | Sequence[Tensor],  # [*]
    *,
    loss: str = "minimax",
    from_logits: bool = True,
    real_label: float = 1.0,
    fake_label: float = 0.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:  # []; [*] with reduction "none"
    r"""The discriminator's loss, to be minimised, as one operation.

    Fused, in one pass that reads each output of the discriminator once:

    1. the loss of ``real`` and of ``fake``, element by element;
    2. their means or sums, added up in float64 in a fixed order: the same bits for any number of
       threads;
    3. where a gradient will be needed, the gradients with respect to both.

    With D = sigmoid(s) of the scores s (D = the given probability with ``from_logits=False``), a
    minimised by

    ==================  ==========================================================================
    ``minimax``         −E[log D(x)] − E[log(1 − D(G(z)))]; other labels: binary cross-entropy with
                        them as soft targets
    ``non_saturating``  as minimax
    ``least_squares``   E[(s(x) − real_label)²]/2 + E[(s(G(z)) − fake_label)²]/2
    ``hinge``           E[max(0, 1 − s(x))] + E[max(0, 1 + s(G(z)))]
    ``wasserstein``     E[s(G(z))] − E[s(x)]
    ``relativistic``    E[softplus(s(G(z)) − s(x))], paired
    ==================  ==========================================================================

    Equivalent to (minimax): ``F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) +
    F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))``; at infinite logits, where
    that line is NaN, the formula's limit. :func:`gan_discriminator_loss_reference` is the
    definition.

    Args:
        real, fake: the discriminator's outputs, of any shape and strides; float32, float64, float16
            or bfloat16. Lists of tensors for a multi-scale discriminator: the mean over the scales.
            Two dtypes are promoted. Relativistic, or unreduced: of one shape.
        loss: one of the table.
        from_logits: whether minimax and non_saturating get logits or probabilities (whose logarithm
            is clamped at −100, as in ``F.binary_cross_entropy``). The other losses are made of the
            raw scores, whatever the discriminator's last layer is: no matter to them.
        real_label, fake_label: the constant targets of minimax, non_saturating (smoothed labels)
            and least_squares; the others have none.
        reduction: ``"mean"``, ``"sum"`` (each per tensor, then over the scales the mean), or
            ``"none"``: the sum of both losses an element, a list of them for lists.
        backend: None = choose; or ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``.

    Returns:
        The loss, [] (with ``reduction="none"`` the inputs' shape), in the inputs' dtype, under
        autocast in float32.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and
            what came. Probabilities outside [0, 1] too (on the CPU).
        NotImplementedError: the named backend can't run, or a tensor is sparse or nested.

    Formulas: Goodfellow et al. 2014 (minimax, non-saturating), Mao et al. 2017 (least squares), Lim
    and Ye 2017 (hinge), Arjovsky et al. 2017 (Wasserstein), Jolicoeur-Martineau 2019
    (relativistic).
    """
    return discriminator_loss(
        real,
        fake,
        loss,
        from_logits,
        real_label,
        fake_label,
        reduction,
        backend,
        "mean",
        1.0,
    )


def gan_generator_loss(
    fake: Tensor | Sequence[Tensor],  # [*]
    real: Tensor | Sequence[Tensor] | None = None,  # [*]
    *,
    loss: str = "non_saturating",
    from_logits: bool = True,
    real_label: float = 1.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:  # []; [*] with reduction "none"
    r"""The generator's loss, to be minimised, as one operation.

    Fused, in one pass that reads each output of the discriminator once: the loss an element, its
    mean or sum, and where it will be needed the gradient. See :func:`gan_discriminator_loss`.

    ==================  ==========================================================================
    ``minimax``         E[log(1 − D(G(z)))], the saturating loss
    ``non_saturating``  −E[log D(G(z))]
    ``least_squares``   E[(s(G(z)) − real_label)²]/2
    ``hinge``           −E[s(G(z))]
    ``wasserstein``     −E[s(G(z))]
    ``relativistic``    E[softplus(s(x) − s(G(z)))], paired, needs ``real``
    ==================  ==========================================================================

    Equivalent to (non_saturating): ``F.binary_cross_entropy_with_logits(fake,
    torch.ones_like(fake))``. :func:`gan_generator_loss_reference` is the definition.

    Args:
        fake: the discriminator's outputs for generated images; a list for a multi-scale one.
        real: its outputs for real images; only relativistic looks at them.
        loss, from_logits, reduction, backend: as :func:`gan_discriminator_loss`.
        real_label: the label of least_squares; the others have none here (smoothed labels are the
            discriminator's).

    Returns and raises: as :func:`gan_discriminator_loss`.
    """
    return generator_loss(
        fake, real, loss, from_logits, real_label, reduction, backend, "mean", 1.0
    )


def log_loss(
    input: Tensor,  # [*]
    target: Tensor,  # [*]
    *,
    from_logits: bool = True,
    weight: Tensor | None = None,  # broadcasts to [*]
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:  # []; [*] with reduction "none"
    r"""Binary cross-entropy, −weight · [y log ŷ + (1 − y) log(1 − ŷ)], as one operation.

    Fused, in one pass over input and target: the loss an element, its mean or sum, and where they
    will be needed the gradients with respect to both.

    Equivalent to: ``F.binary_cross_entropy_with_logits(input, target, weight,
    reduction=reduction)``, with ``from_logits=False`` to ``F.binary_cross_entropy(…)``, for values,
    gradients of every order, NaN and infinity. Two differences: logits and targets of two dtypes
    are promoted (PyTorch returns the target's dtype), and probabilities are allowed under autocast
    (the loss is computed in float32 and the logarithm clamped, so nothing there is unsafe).

    Args:
        input: logits, or probabilities with ``from_logits=False``; any shape and strides.
        target: of the input's shape, hard or soft.
        from_logits: whether ``input`` holds logits.
        weight: a weight an element, or None; broadcasts to the input's shape.
        reduction, backend: as :func:`gan_discriminator_loss`.

    Returns and raises: as :func:`gan_discriminator_loss`.
    """
    key = None
    if weight is None and type(input) in _PLAIN and type(target) in _PLAIN and not _is_compiling():
        try:
            key = (
                "log_loss",
                reduction,
                from_logits,
                type(from_logits),
                input.shape,
                target.shape,
                input.dtype,
                target.dtype,
                _place(input),
                _place(target),
                requested() if backend is None else backend,
                _any_autocast() and _autocast(input),
            )
            launch = _launches.get(key)
            if launch is not None and not _dispatch_modes():
                return gan_loss_eager(launch, (input, target))
        except (TypeError, RuntimeError):
            key = None
        if input.dtype != target.dtype:
            key = None
    return run(log_loss_call(input, target, from_logits, weight, reduction), backend, key)
