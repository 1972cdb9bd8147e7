"""GANLoss: the fused GAN losses as the criterion that training code calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.gan_loss.arguments import check_choices, check_label
from ..ops.gan_loss.interface import discriminator_loss, generator_loss, target_loss

# A discriminator's output: a tensor, a list of them (one a scale), or a list a scale of what its
# layers gave, the prediction last.
Prediction = Tensor | Sequence[Any]


class GANLoss(nn.Module):
    """The losses of a GAN's two players.

    ::

        criterion = GANLoss("hinge")
        loss_d = criterion.discriminator(discriminator(images), discriminator(fakes.detach()))
        loss_g = criterion.generator(discriminator(fakes))

    The methods are :func:`gan_discriminator_loss` and :func:`gan_generator_loss`, by their table.
    Calling the module is the form that image-translation and super-resolution code bases use, one
    prediction at a time, and means what it means there::

        loss_d = criterion(discriminator(images), True) + criterion(discriminator(fakes), False)
        loss_g = criterion(discriminator(fakes), True, for_discriminator=False)

    =================  ============================================================================
    minimax,           binary cross-entropy with real_label or fake_label, for both players (so the
    non_saturating     generator, who wants its images taken for real, gets the non-saturating loss)
    least_squares      E[(s − label)²], **not halved**: ``nn.MSELoss`` as there, twice the methods'
    hinge              E[max(0, 1 ∓ s)]; for the generator −E[s]
    wasserstein        −E[s] for real, E[s] for fake
    relativistic       compares real with fake: only the methods can
    =================  ============================================================================

    Args:
        loss: a row of the table of :func:`gan_discriminator_loss`.
        real_label, fake_label: the targets; buffers of the ``state_dict``, as in those code bases,
            and followed when they are loaded or changed.
        from_logits: whether predictions are logits (minimax and non_saturating alone look at it).
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (a list of tensors for several scales).
        scales: ``"mean"`` or ``"sum"`` over the scales of a multi-scale discriminator, which gives
            a list of tensors, or a list of lists whose last tensors are the predictions.
        loss_weight: multiplies the generator's loss alone.

    Shapes: predictions [*]; losses [], with ``reduction="none"`` [*].
    """

    real_label: Tensor
    fake_label: Tensor

    def __init__(
        self,
        loss: str = "non_saturating",
        *,
        real_label: float = 1.0,
        fake_label: float = 0.0,
        from_logits: bool = True,
        reduction: str = "mean",
        scales: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_choices(loss, from_logits, reduction)
        real = check_label("real_label", real_label, loss, from_logits)
        fake = check_label("fake_label", fake_label, loss, from_logits)
        if not isinstance(scales, str):
            raise TypeError(f"scales must be a string, got {type(scales).__name__}")
        if scales not in ("mean", "sum"):
            raise ValueError(f"scales must be mean or sum, got {scales!r}")
        if not isinstance(loss_weight, (int, float)):
            raise TypeError(f"loss_weight must be a number, got {type(loss_weight).__name__}")
        if not math.isfinite(loss_weight):
            raise ValueError(f"loss_weight must be finite, got {loss_weight}")
        self.loss = loss
        self.from_logits = from_logits
        self.reduction = reduction
        self.scales = scales
        self.loss_weight = float(loss_weight)
        self.register_buffer("real_label", torch.tensor(real))
        self.register_buffer("fake_label", torch.tensor(fake))
        # The kernels take the labels as numbers. Reading a tensor waits for its device, so the
        # values are kept, with the tensors and the versions that they were read from.
        self._labels = (real, fake)
        self._labels_of = self._label_state()

    def _label_state(self) -> tuple[Tensor, int, Tensor, int]:
        real, fake = self._buffers["real_label"], self._buffers["fake_label"]
        assert real is not None
        assert fake is not None
        return real, _version(real), fake, _version(fake)

    def _read_labels(self) -> None:
        kept = []
        for name, value in zip(("real_label", "fake_label"), self._labels, strict=True):
            buffer = self._buffers[name]
            assert buffer is not None
            if not buffer.is_meta:
                stored = float(buffer)
                # a label that its buffer merely rounds stays what the caller gave
                if torch.tensor(value, dtype=buffer.dtype).item() != stored:
                    value = check_label(name, stored, self.loss, self.from_logits)
            kept.append(value)
        self._labels = (kept[0], kept[1])
        self._labels_of = self._label_state()

    def _current_labels(self) -> tuple[float, float]:
        if torch.compiler.is_compiling():
            return self._labels
        real, real_version, fake, fake_version = self._labels_of
        buffers = self._buffers
        if (
            buffers["real_label"] is not real
            or buffers["fake_label"] is not fake
            or _version(real) != real_version
            or _version(fake) != fake_version
        ):
            self._read_labels()
        return self._labels

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read_labels()

    def discriminator(self, real: Prediction, fake: Prediction) -> Tensor:
        """The discriminator's loss: :func:`gan_discriminator_loss` with this module's settings."""
        real_label, fake_label = self._current_labels()
        return discriminator_loss(
            _predictions(real),
            _predictions(fake),
            self.loss,
            self.from_logits,
            real_label,
            fake_label,
            self.reduction,
            None,
            self.scales,
            1.0,
        )

    def generator(self, fake: Prediction, real: Prediction | None = None) -> Tensor:
        """The generator's loss: loss_weight · :func:`gan_generator_loss` with these settings."""
        return generator_loss(
            _predictions(fake),
            _predictions(real),
            self.loss,
            self.from_logits,
            self._current_labels()[0],
            self.reduction,
            None,
            self.scales,
            self.loss_weight,
        )

    def forward(
        self,
        prediction: Prediction,
        target_is_real: bool,
        for_discriminator: bool | None = None,
        *,
        is_disc: bool | None = None,
    ) -> Tensor:
        """One prediction held against real or fake; the class's second table.

        `for_discriminator` (None = True) and `is_disc` are two names for one argument: whether the
        discriminator is trained. The generator's loss is multiplied by loss_weight.
        """
        for name, value in (
            ("target_is_real", target_is_real),
            ("for_discriminator", for_discriminator),
            ("is_disc", is_disc),
        ):
            if not isinstance(value, bool) and (value is not None or name == "target_is_real"):
                raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
        if is_disc is not None:
            if for_discriminator is not None and for_discriminator != is_disc:
                raise ValueError(
                    "is_disc must agree with for_discriminator, its other name, got "
                    f"{is_disc} and {for_discriminator}"
                )
            for_discriminator = is_disc
        elif for_discriminator is None:
            for_discriminator = True
        if self.loss == "relativistic":
            raise ValueError(
                "loss must not be relativistic where the module is called: it compares real with "
                "fake; use .discriminator(real, fake) and .generator(fake, real)"
            )
        if self.loss == "hinge" and not (for_discriminator or target_is_real):
            raise ValueError(
                "target_is_real must be True for the generator's hinge loss, which has no other "
                "form, got False"
            )
        return target_loss(
            _predictions(prediction),
            self.loss,
            self.from_logits,
            self._current_labels()[0 if target_is_real else 1],
            target_is_real,
            for_discriminator,
            self.reduction,
            None,
            self.scales,
            1.0 if for_discriminator else self.loss_weight,
        )

    def extra_repr(self) -> str:
        real_label, fake_label = self._labels
        return (
            f"{self.loss!r}, real_label={real_label:g}, fake_label={fake_label:g}, "
            f"from_logits={self.from_logits}, reduction={self.reduction!r}, "
            f"scales={self.scales!r}, loss_weight={self.loss_weight:g}"
        )


def _version(tensor: Tensor) -> int:
    # a tensor made in inference mode counts nothing, and can't be changed outside it
    return 0 if tensor.is_inference() else tensor._version


def _predictions(output: Any) -> Any:
    """A discriminator's output with the last tensor of each inner list in the list's place."""
    if isinstance(output, (list, tuple)):
        return [
            inner[-1] if isinstance(inner, (list, tuple)) and len(inner) else inner
            for inner in output
        ]
    return output
