"""GANLoss in the calls of the widespread code bases, against their published definitions.

Each family's criterion is written here from its formula with PyTorch's own functions: values and
gradients must agree, for every call that the family makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossmedia_fast.nn import GANLoss

Criterion = Callable[..., Tensor]


def scores(seed: int = 0) -> Tensor:
    """Of a PatchGAN, with values on both sides of every kink, and at them."""
    x = 2 * torch.randn(2, 1, 6, 5, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[:3] = torch.tensor([0.0, 5.0, -5.0])
    return x


def agree(ours: Callable[[Any], Tensor], theirs: Callable[[Any], Tensor], *inputs: Tensor) -> None:
    """Both give the same value and, for what a scheduler multiplies it with, the same gradients;
    several inputs are a list."""
    results = []
    for function in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        loss = function(leaves if len(leaves) > 1 else leaves[0])
        gradients = torch.autograd.grad(1.7 * loss.sum(), leaves)
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert all(g.abs().sum() > 0 for g in results[1][1])


def labels(x: Tensor, is_real: bool, real: float = 1.0, fake: float = 0.0) -> Tensor:
    return torch.full_like(x, real if is_real else fake)


# ---- CycleGAN and pix2pix: criterion(prediction, target_is_real)

CYCLEGAN: dict[str, tuple[str, Criterion]] = {
    "lsgan": ("least_squares", lambda x, label, is_real: F.mse_loss(x, label)),
    "vanilla": (
        "minimax",
        lambda x, label, is_real: F.binary_cross_entropy_with_logits(x, label),
    ),
    "wgangp": ("wasserstein", lambda x, label, is_real: -x.mean() if is_real else x.mean()),
}


@pytest.mark.parametrize("is_real", [True, False])
@pytest.mark.parametrize("target_labels", [(1.0, 0.0), (0.9, 0.1)], ids=str)
@pytest.mark.parametrize("mode", CYCLEGAN)
def test_cyclegan(mode: str, target_labels: tuple[float, float], is_real: bool) -> None:
    name, definition = CYCLEGAN[mode]
    real, fake = target_labels
    criterion = GANLoss(name, real_label=real, fake_label=fake)

    def theirs(x: Tensor) -> Tensor:
        return definition(x, labels(x, is_real, real, fake), is_real)

    agree(lambda x: criterion(x, is_real), theirs, scores())


def test_cyclegan_discriminator_step() -> None:
    """loss_D = (criterion(real, True) + criterion(fake, False)) / 2."""
    criterion = GANLoss("least_squares")

    def ours(x: list[Tensor]) -> Tensor:
        return 0.5 * (criterion(x[0], True) + criterion(x[1], False))

    def theirs(x: list[Tensor]) -> Tensor:
        return 0.5 * ((x[0] - 1).square().mean() + x[1].square().mean())

    agree(ours, theirs, scores(), scores(1))
    agree(lambda x: criterion.discriminator(*x), theirs, scores(), scores(1))


# ---- BasicSR and Real-ESRGAN: criterion(prediction, target_is_real, is_disc=...)


def _basicsr_hinge(x: Tensor, label: Tensor, is_real: bool, is_disc: bool) -> Tensor:
    if is_disc:
        return F.relu(1 - x if is_real else 1 + x).mean()
    return -x.mean()


BASICSR: dict[str, tuple[str, Criterion]] = {
    "vanilla": (
        "minimax",
        lambda x, label, is_real, is_disc: F.binary_cross_entropy_with_logits(x, label),
    ),
    "lsgan": ("least_squares", lambda x, label, is_real, is_disc: F.mse_loss(x, label)),
    "wgan": (
        "wasserstein",
        lambda x, label, is_real, is_disc: -x.mean() if is_real else x.mean(),
    ),
    "wgan_softplus": (  # StyleGAN2's
        "non_saturating",
        lambda x, label, is_real, is_disc: F.softplus(-x if is_real else x).mean(),
    ),
    "hinge": ("hinge", _basicsr_hinge),
}


@pytest.mark.parametrize(
    ("gan_type", "is_real", "is_disc"),
    [
        (gan_type, is_real, is_disc)
        for gan_type in BASICSR
        for is_real in (True, False)
        for is_disc in (True, False)
        if gan_type != "hinge" or is_real or is_disc  # refused: at the end of this file
    ],
)
def test_basicsr(gan_type: str, is_real: bool, is_disc: bool) -> None:
    """loss_weight on the generator's loss alone; label values for vanilla and lsgan."""
    name, definition = BASICSR[gan_type]
    by_label = gan_type in ("vanilla", "lsgan")
    real, fake = (0.9, 0.1) if by_label else (1.0, 0.0)
    criterion = GANLoss(name, real_label=real, fake_label=fake, loss_weight=0.1)

    def theirs(x: Tensor) -> Tensor:
        loss = definition(x, labels(x, is_real, real, fake), is_real, is_disc)
        return loss if is_disc else 0.1 * loss

    agree(lambda x: criterion(x, is_real, is_disc=is_disc), theirs, scores())
    agree(lambda x: criterion(x, is_real, is_disc), theirs, scores())


def test_basicsr_relativistic_average() -> None:
    """ESRGAN: the criterion takes real − mean(fake), and the other way round."""
    criterion = GANLoss("minimax", loss_weight=5e-3)

    def ours(x: list[Tensor]) -> Tensor:
        real, fake = x
        return 0.5 * (
            criterion(real - fake.mean(), False, is_disc=False)
            + criterion(fake - real.mean(), True, is_disc=False)
        )

    def theirs(x: list[Tensor]) -> Tensor:
        real, fake = x
        return 5e-3 * (
            0.5 * (F.softplus(real - fake.mean()).mean() + F.softplus(real.mean() - fake).mean())
        )

    agree(ours, theirs, scores(), scores(1))


# ---- MONAI: criterion(input, target_is_real, for_discriminator), a list a scale

MONAI: dict[str, tuple[str, Criterion]] = {
    # the criterion activates what it is given: sigmoid, leaky ReLU of 0.05, tanh
    "bce": (
        "minimax",
        lambda x, is_real: F.binary_cross_entropy(torch.sigmoid(x), labels(x, is_real)),
    ),
    "least_squares": (
        "least_squares",
        lambda x, is_real: F.mse_loss(F.leaky_relu(x, 0.05), labels(x, is_real)),
    ),
    "hinge": (
        "hinge",
        lambda x, is_real: (
            -torch.min((1 if is_real else -1) * torch.tanh(x) - 1, torch.zeros(())).mean()
        ),
    ),
}
MONAI_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bce": lambda x: x,  # from logits: the sigmoid is the loss's own
    "least_squares": lambda x: F.leaky_relu(x, 0.05),
    "hinge": torch.tanh,
}


@pytest.mark.parametrize("is_real", [True, False])
@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("name", MONAI)
def test_monai(name: str, scales: int, is_real: bool) -> None:
    loss, definition = MONAI[name]
    criterion, activate = GANLoss(loss), MONAI_ACTIVATIONS[name]

    def ours(x: Any) -> Tensor:
        x = x if isinstance(x, list) else [x]
        return criterion([activate(s) for s in x], is_real, True)

    def theirs(x: Any) -> Tensor:
        x = x if isinstance(x, list) else [x]
        return torch.stack([definition(s, is_real) for s in x]).mean()

    # scales of different sizes: the mean of their means, not of all values
    agree(ours, theirs, *[scores(k)[:, :, : 6 - k] for k in range(scales)])


def test_monai_sum_and_none() -> None:
    x = [scores(), scores(1)[:, :, :3]]
    total = GANLoss("least_squares", reduction="sum", scales="sum")
    want = sum((s - 1).square().sum() for s in x)
    torch.testing.assert_close(total(x, True, True), want)
    each = GANLoss("least_squares", reduction="none")(x, True, True)
    torch.testing.assert_close(each, [(s - 1).square() for s in x])


# ---- taming-transformers: hinge_d_loss, vanilla_d_loss, and −mean for the generator


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("hinge", lambda r, f: 0.5 * (F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean())),
        ("minimax", lambda r, f: 0.5 * (F.softplus(-r).mean() + F.softplus(f).mean())),
    ],
    ids=["hinge_d_loss", "vanilla_d_loss"],
)
def test_taming_transformers(name: str, definition: Criterion) -> None:
    criterion = GANLoss(name)

    def ours(x: list[Tensor]) -> Tensor:
        return 0.5 * criterion.discriminator(*x)

    agree(ours, lambda x: definition(*x), scores(), scores(1))


def test_taming_transformers_generator_and_adaptive_weight() -> None:
    """g_loss = −mean, weighted by |∇ reconstruction| / |∇ g_loss| at the last layer, detached."""
    x, last = scores(), torch.tensor(0.7)
    results = []
    for loss in (GANLoss("hinge").generator, GANLoss("wasserstein").generator, lambda y: -y.mean()):
        w = last.clone().requires_grad_()
        reconstruction, g_loss = (w * x - 1).abs().mean(), loss(torch.sin(w * x))
        (a,) = torch.autograd.grad(reconstruction, w, retain_graph=True)
        (b,) = torch.autograd.grad(g_loss, w, retain_graph=True)
        weight = (a.norm() / (b.norm() + 1e-4)).clamp(0, 1e4).detach()
        (reconstruction + weight * g_loss).backward()
        results.append((g_loss.detach(), w.grad))
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[2])


# ---- pix2pixHD and SPADE: a list a scale, its last tensor the prediction


@pytest.mark.parametrize("is_real", [True, False])
@pytest.mark.parametrize("family", ["pix2pixhd", "spade"])
def test_multi_scale_lists(family: str, is_real: bool) -> None:
    features = torch.full((2, 3), float("nan"))  # of feature matching; not looked at
    if family == "pix2pixhd":
        criterion = GANLoss("least_squares", scales="sum")
    else:
        criterion = GANLoss("hinge")

    def ours(x: list[Tensor]) -> Tensor:
        return criterion([[features, features, s] for s in x], is_real)

    def theirs(x: list[Tensor]) -> Tensor:
        if family == "pix2pixhd":
            return sum((F.mse_loss(s, labels(s, is_real)) for s in x), torch.zeros(()))
        each = [-torch.min((s if is_real else -s) - 1, torch.zeros(())).mean() for s in x]
        return sum(each, torch.zeros(())) / len(x)

    agree(ours, theirs, scores(), scores(1)[:, :, :3], scores(2)[:, :, :2])


def test_spade_generator() -> None:
    criterion = GANLoss("hinge")
    agree(
        lambda x: criterion([[s] for s in x], True, for_discriminator=False),
        lambda x: -sum((s.mean() for s in x), torch.zeros(())) / len(x),
        scores(),
        scores(1)[:, :, :3],
    )


# ---- what the calls mean where the families differ; the documentation says so too


def test_the_default_is_the_discriminator() -> None:
    """BasicSR's default is the generator: its own calls all say is_disc."""
    criterion = GANLoss("non_saturating", loss_weight=0.1)
    x = scores()
    assert torch.equal(criterion(x, True), criterion(x, True, is_disc=True))
    torch.testing.assert_close(criterion(x, True, is_disc=False), 0.1 * criterion(x, True))


def test_a_generator_that_wants_fake_is_refused_for_hinge_alone() -> None:
    with pytest.raises(ValueError, match="target_is_real must be True"):
        GANLoss("hinge")(scores(), False, for_discriminator=False)
    for loss in ("minimax", "least_squares", "wasserstein"):
        GANLoss(loss)(scores(), False, for_discriminator=False)  # ESRGAN asks for it
