"""The GAN losses' derivatives of any order and kind."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, vmap

import crossmedia_fast as cmf
from tests.gan_loss_cases import LOSSES, REDUCTIONS, both_players, needs_native

pytestmark = needs_native


def _pair(from_logits: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    x, y = torch.randn(2, 5, dtype=torch.double)
    if not from_logits:
        x, y = x.sigmoid(), y.sigmoid()
    return x.clone().requires_grad_(), y.clone().requires_grad_()


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss, reduction, from_logits):
    for _, fused, _ in both_players(loss, reduction, from_logits):
        inputs = _pair(from_logits)
        assert torch.autograd.gradcheck(
            fused, inputs, check_forward_ad=True, check_batched_grad=True
        )
        assert torch.autograd.gradgradcheck(fused, inputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("from_logits", [True, False])
def test_gradcheck_log_loss(from_logits, weighted):
    x, _ = _pair(from_logits)
    t = torch.rand(5, dtype=torch.double, requires_grad=True)
    weight = torch.rand(5, dtype=torch.double) if weighted else None
    for reduction in ("mean", "none"):

        def fused(x, t, reduction=reduction):
            return cmf.log_loss(x, t, weight=weight, from_logits=from_logits, reduction=reduction)

        assert torch.autograd.gradcheck(fused, (x, t), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(fused, (x, t))


@pytest.mark.parametrize("loss", LOSSES)
def test_function_transforms(loss):
    torch.manual_seed(1)
    x, y = torch.randn(2, 5, dtype=torch.double)
    batch, other = torch.randn(3, 5, dtype=torch.double), torch.randn(5, 3, dtype=torch.double)
    for _, fused, reference in both_players(loss, "mean"):
        for transform in (
            lambda f: grad(f, argnums=1)(x, y),
            lambda f: hessian(f, argnums=1)(x, y),
            lambda f: jacfwd(grad(f, argnums=1), argnums=1)(x, y),
            lambda f: jvp(f, (x, y), (batch[0], batch[1])),
            lambda f: vmap(f, (0, 1))(batch, other),
            lambda f: vmap(f, (0, None))(batch, y),
            lambda f: vmap(grad(f, argnums=1))(batch, other.T),
        ):
            torch.testing.assert_close(transform(fused), transform(reference))


def test_tensors_left_over_from_a_transform():
    x, left = torch.randn(5), []

    def keep(x):
        left.append(x * 2)
        return cmf.gan_generator_loss(x)

    grad(keep)(x)
    wrapped = left.pop()
    for _ in range(2):  # the second call of a kind takes a short way
        torch.testing.assert_close(cmf.gan_generator_loss(wrapped), cmf.gan_generator_loss(x * 2))
        torch.testing.assert_close(
            cmf.gan_discriminator_loss(x, wrapped), cmf.gan_discriminator_loss(x, x * 2)
        )


def test_forward_mode_dual_numbers():
    x, tangent = torch.randn(2, 5, dtype=torch.double)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        got = forward_ad.unpack_dual(cmf.gan_generator_loss(dual)).tangent
    want = grad(cmf.gan_generator_loss_reference)(x) @ tangent
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_gradient_penalty_differentiates_twice(loss):
    torch.manual_seed(2)
    weights = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    images = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    constant = torch.randn(4, 3, dtype=torch.double)
    for _, fused, reference in both_players(loss, "sum"):

        def penalty(function):
            scores = torch.tanh(images @ weights)
            slope = torch.autograd.grad(function(constant, scores), images, create_graph=True)[0]
            return torch.autograd.grad(slope.square().sum(), weights)[0]

        torch.testing.assert_close(penalty(fused), penalty(reference))


def test_backward_is_repeatable_and_gives_nothing_twice():
    x = torch.randn(100, requires_grad=True)
    loss = cmf.gan_generator_loss(x)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    kept = first.clone()
    first.zero_()  # whoever got it may do so
    second = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(second, kept)
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(x.grad, kept * 2)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_stored_gradient_becomes_the_leafs_own():
    x = torch.randn(100, requires_grad=True)
    loss = cmf.gan_generator_loss(x)
    address = loss.grad_fn.gradients[0].data_ptr()
    loss.backward()
    assert x.grad.data_ptr() == address  # no copy on the way
    assert not loss.grad_fn.gradients


def test_other_incoming_gradients_are_exact():
    x = torch.randn(100, requires_grad=True)
    for factor in (0.5, -1.0, 65536.0, 0.0):
        (got,) = torch.autograd.grad(cmf.gan_generator_loss(x) * factor, x)
        (want,) = torch.autograd.grad(cmf.gan_generator_loss(x), x)
        torch.testing.assert_close(got, want * factor, rtol=1e-6, atol=0)


def test_gradients_only_where_they_are_wanted():
    x, y = torch.randn(2, 10)
    x.requires_grad_()
    loss = cmf.gan_discriminator_loss(x, y, loss="relativistic")
    assert loss.grad_fn.gradients[0] is None
    loss.backward()
    assert y.grad is None
    assert not cmf.gan_discriminator_loss(x.detach(), y).requires_grad
    with torch.no_grad():
        assert not cmf.gan_discriminator_loss(x, y).requires_grad
    with torch.inference_mode():
        assert cmf.gan_discriminator_loss(x, y).is_inference()


def test_logits_changed_in_place_are_noticed():
    x = torch.randn(10, requires_grad=True)
    logits = x * 1
    loss = cmf.gan_generator_loss(logits)
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_checkpointing():
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(10, requires_grad=True)
    checkpoint(lambda x: cmf.gan_generator_loss(x * 2), x, use_reentrant=False).backward()
    (want,) = torch.autograd.grad(cmf.gan_generator_loss(x * 2), x)
    assert torch.equal(x.grad, want)
