"""nn.GANLoss against the losses of the code bases whose calls it serves, written out."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import crossmedia_fast as cmf
from crossmedia_fast.nn import GANLoss


def _scores(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)


@pytest.mark.parametrize("real_label", [1.0, 0.9])
def test_cyclegan(real_label):
    """vanilla = BCEWithLogitsLoss, lsgan = MSELoss, against an expanded label; wgangp = ∓mean."""
    real, fake = _scores()
    labels = {True: torch.full_like(real, real_label), False: torch.zeros_like(real)}
    for loss, written_out in (
        ("minimax", lambda x, is_real: F.binary_cross_entropy_with_logits(x, labels[is_real])),
        ("least_squares", lambda x, is_real: F.mse_loss(x, labels[is_real])),
        ("wasserstein", lambda x, is_real: -x.mean() if is_real else x.mean()),
    ):
        criterion = GANLoss(loss, real_label=real_label)
        for is_real in (True, False):
            torch.testing.assert_close(criterion(real, is_real), written_out(real, is_real))
            torch.testing.assert_close(criterion(fake, is_real), written_out(fake, is_real))
    # its discriminator step halves the two least squares: the method's loss
    criterion = GANLoss("least_squares", real_label=real_label)
    halved = 0.5 * (criterion(real, True) + criterion(fake, False))
    torch.testing.assert_close(criterion.discriminator(real, fake), halved)


def test_basicsr():
    """loss_weight only where not is_disc; hinge; wgan_softplus; lists by their mean."""
    real, fake = _scores(1)
    for loss, written_out in (
        ("non_saturating", lambda x, t, d: F.softplus(-x).mean() if t else F.softplus(x).mean()),
        ("hinge", lambda x, t, d: F.relu(1 + (-x if t else x)).mean() if d else -x.mean()),
        ("wasserstein", lambda x, t, d: -x.mean() if t else x.mean()),
    ):
        criterion = GANLoss(loss, loss_weight=0.1)
        for is_disc in (True, False):
            for target in (True, False):
                if loss == "hinge" and not target and not is_disc:
                    continue
                weight = 1.0 if is_disc else 0.1
                want = weight * written_out(fake, target, is_disc)
                torch.testing.assert_close(criterion(fake, target, is_disc=is_disc), want)
                torch.testing.assert_close(criterion(fake, target, is_disc), want)
    # relativistic average GAN: the criterion takes an expression
    criterion = GANLoss("minimax")
    got = criterion(real - fake.mean(), True, is_disc=True) * 0.5
    want = F.binary_cross_entropy_with_logits(real - fake.mean(), torch.ones_like(real)) * 0.5
    torch.testing.assert_close(got, want)


def test_spade_and_pix2pixhd():
    """A list a scale whose last tensor is the prediction: SPADE's mean, pix2pixHD's sum."""
    real, fake = _scores(2)
    features = torch.full((2, 8), 1e9)
    nested = [[features, real], [features, fake]]

    def hinge(x, is_real):
        return -torch.min((x if is_real else -x) - 1, torch.zeros_like(x)).mean()

    mean, total = GANLoss("hinge"), GANLoss("hinge", scales="sum")
    for is_real in (True, False):
        want = hinge(real, is_real) + hinge(fake, is_real)
        torch.testing.assert_close(mean(nested, is_real), want / 2)
        torch.testing.assert_close(mean([real, fake], is_real), want / 2)
        torch.testing.assert_close(total(nested, is_real), want)
    torch.testing.assert_close(mean(nested, True, False), -(real.mean() + fake.mean()) / 2)
    torch.testing.assert_close(
        total.discriminator(nested, nested), 2 * mean.discriminator(nested, nested)
    )
    torch.testing.assert_close(total.generator(nested), -(real.mean() + fake.mean()))


def test_monai_unreduced_lists():
    real, fake = _scores(3)
    criterion = GANLoss("least_squares", reduction="none", loss_weight=0.5)
    got = criterion([real, fake], True, for_discriminator=False)
    assert isinstance(got, list)
    torch.testing.assert_close(got, [0.5 * (real - 1).square(), 0.5 * (fake - 1).square()])
    torch.testing.assert_close(
        criterion.discriminator([real], [fake])[0], (real - 1).square() / 2 + fake.square() / 2
    )


def test_taming_transformers():
    """hinge_d_loss and vanilla_d_loss halve the sum; the adaptive weight runs backward twice."""
    real, fake = _scores(4)
    fake.requires_grad_()
    hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    torch.testing.assert_close(0.5 * GANLoss("hinge").discriminator(real, fake), hinge)
    vanilla = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    torch.testing.assert_close(0.5 * GANLoss("minimax").discriminator(real, fake), vanilla)
    loss = GANLoss("hinge").generator(fake)
    (slope,) = torch.autograd.grad(loss, fake, retain_graph=True)
    (slope.norm() * loss).backward()
    torch.testing.assert_close(fake.grad, slope.norm() * slope)


def test_methods_are_the_functions():
    real, fake = _scores(5)
    real, fake = real.double(), fake.double()
    for loss in ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein"):
        criterion = GANLoss(loss, real_label=0.9, fake_label=0.1, loss_weight=0.3)
        want = cmf.gan_discriminator_loss(real, fake, loss=loss, real_label=0.9, fake_label=0.1)
        torch.testing.assert_close(criterion.discriminator(real, fake), want, rtol=0, atol=0)
        want = 0.3 * cmf.gan_generator_loss(fake, loss=loss, real_label=0.9)
        torch.testing.assert_close(criterion.generator(fake), want)
    criterion = GANLoss("relativistic", loss_weight=2.0)
    want = 2 * cmf.gan_generator_loss(fake, real, loss="relativistic")
    torch.testing.assert_close(criterion.generator(fake, real), want)


def test_labels_are_buffers_and_are_followed():
    x, _ = _scores(6)
    criterion = GANLoss("least_squares")
    assert set(criterion.state_dict()) == {"real_label", "fake_label"}
    torch.testing.assert_close(criterion(x, True), (x - 1).square().mean())
    criterion.load_state_dict({"real_label": torch.tensor(0.5), "fake_label": torch.tensor(0.25)})
    torch.testing.assert_close(criterion(x, True), (x - 0.5).square().mean())
    torch.testing.assert_close(criterion(x, False), (x - 0.25).square().mean())
    criterion.real_label.fill_(0.75)
    torch.testing.assert_close(criterion(x, True), (x - 0.75).square().mean())
    criterion.real_label = torch.tensor(2.0)
    for module in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(module(x, True), (x - 2).square().mean())
        assert set(module.state_dict()) == {"real_label", "fake_label"}
    with pytest.raises(ValueError, match="real_label must be finite"):
        criterion.load_state_dict(
            {"real_label": torch.tensor(float("nan")), "fake_label": torch.tensor(0.0)}
        )


def test_state_dict_of_a_plain_criterion_with_the_same_buffers():
    other = torch.nn.Module()
    other.register_buffer("real_label", torch.tensor(0.9))
    other.register_buffer("fake_label", torch.tensor(0.0))
    criterion = GANLoss()
    criterion.load_state_dict(other.state_dict())
    other.load_state_dict(criterion.state_dict())


def test_repr_says_what_it_does():
    assert repr(GANLoss("hinge", loss_weight=0.1)) == (
        "GANLoss('hinge', real_label=1, fake_label=0, from_logits=True, reduction='mean', "
        "scales='mean', loss_weight=0.1)"
    )


X = torch.zeros(3)
BAD = {
    "loss": (lambda: GANLoss("vanilla"), ValueError, "loss must be one of.*'vanilla'"),
    "real_label": (lambda: GANLoss(real_label="1"), TypeError, "real_label must be a number"),
    "label range": (
        lambda: GANLoss(fake_label=-0.1, from_logits=False),
        ValueError,
        "fake_label must be between 0 and 1",
    ),
    "reduction": (lambda: GANLoss(reduction="avg"), ValueError, "reduction must be one of"),
    "scales": (lambda: GANLoss(scales="max"), ValueError, "scales must be mean or sum, got 'max'"),
    "scales type": (lambda: GANLoss(scales=2), TypeError, "scales must be a string, got int"),
    "loss_weight": (lambda: GANLoss(loss_weight="1"), TypeError, "loss_weight must be a number"),
    "loss_weight NaN": (
        lambda: GANLoss(loss_weight=float("nan")),
        ValueError,
        "loss_weight must be finite",
    ),
    "prediction": (lambda: GANLoss()(1.0, True), TypeError, "prediction must be a torch.Tensor"),
    "empty scale": (lambda: GANLoss()([[]], True), TypeError, r"prediction\[0\] must be"),
    "target_is_real": (lambda: GANLoss()(X, 1), TypeError, "target_is_real must be a bool"),
    "for_discriminator": (
        lambda: GANLoss()(X, True, 1),
        TypeError,
        "for_discriminator must be a bool",
    ),
    "is_disc": (lambda: GANLoss()(X, True, is_disc="no"), TypeError, "is_disc must be a bool"),
    "both names": (
        lambda: GANLoss()(X, True, True, is_disc=False),
        ValueError,
        "is_disc must agree with for_discriminator.*False and True",
    ),
    "relativistic": (
        lambda: GANLoss("relativistic")(X, True),
        ValueError,
        "loss must not be relativistic",
    ),
    "hinge generator": (
        lambda: GANLoss("hinge")(X, False, False),
        ValueError,
        "target_is_real must be True",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_call(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
