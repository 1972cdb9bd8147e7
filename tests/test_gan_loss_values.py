"""The GAN losses' values and first gradients against their definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import crossmedia_fast as cmf
from tests.gan_loss_cases import (
    DTYPES,
    LOSSES,
    REDUCTIONS,
    assert_near,
    both_players,
    needs_native,
)

# Around a vector (4 to 16 lanes), two of them, a block of 512 and a chunk of 4096; and over the
# size from which threads share the work.
SIZES = (1, 3, 33, 513, 4097, 33001)


def _check(fused, reference, inputs, reduction, dtype) -> None:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    actual, expected = fused(*leaves), reference(*doubles)
    assert actual.dtype == dtype
    numel = leaves[0].numel()
    # a sum of n numbers of size 1 that may cancel
    scale = math.sqrt(numel) if reduction == "sum" else 1.0
    assert_near(actual, expected, scale, dtype)
    for grad in (torch.ones_like(actual), torch.rand_like(actual) + 0.5):
        kw = {"allow_unused": True, "retain_graph": True}
        got = torch.autograd.grad(actual, leaves, grad, **kw)
        want = torch.autograd.grad(expected, doubles, grad.double(), **kw)
        for g, w in zip(got, want, strict=True):
            assert (g is None) == (w is None)
            if g is not None:
                assert g.dtype == dtype
                assert_near(g, w, float(w.abs().max()), dtype)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients(loss, from_logits, dtype):
    torch.manual_seed(0)
    for numel in SIZES:
        real, fake = (torch.randn(2, numel) * 3).to(dtype)
        if not from_logits:
            # away from 0 and 1, where the derivative's guard makes float32 and float64 differ
            real, fake = (x.float().sigmoid().clamp(0.01, 0.99).to(dtype) for x in (real, fake))
        for reduction in REDUCTIONS:
            for _, fused, reference in both_players(loss, reduction, from_logits):
                _check(fused, reference, (real, fake), reduction, dtype)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("from_logits", [True, False])
def test_log_loss(from_logits, weighted, dtype):
    torch.manual_seed(1)
    for numel in SIZES:
        input = torch.randn(numel).to(dtype)
        if not from_logits:
            input = input.float().sigmoid().clamp(0.01, 0.99).to(dtype)
        target = torch.rand(numel).to(dtype)
        weight = torch.rand(numel).to(dtype) if weighted else None
        for reduction in REDUCTIONS:
            kw = {"from_logits": from_logits, "reduction": reduction}
            _check(
                lambda x, t, kw=kw, w=weight: cmf.log_loss(x, t, weight=w, **kw),
                lambda x, t, kw=kw, w=weight: cmf.log_loss_reference(
                    x, t, weight=None if w is None else w.double(), **kw
                ),
                (input, target),
                reduction,
                dtype,
            )


def test_log_loss_is_pytorchs_binary_cross_entropy():
    torch.manual_seed(2)
    x, t, w = torch.randn(3, 4), torch.rand(3, 4), torch.rand(4)
    p = x.sigmoid()
    torch.testing.assert_close(
        cmf.log_loss(x, t, weight=w), F.binary_cross_entropy_with_logits(x, t, w)
    )
    torch.testing.assert_close(
        cmf.log_loss(p, t, weight=w, from_logits=False, reduction="sum"),
        F.binary_cross_entropy(p, t, w, reduction="sum"),
    )


INFINITY = float("inf")
SPECIAL = (INFINITY, -INFINITY, math.nan, 1e4, -1e4, 0.0, -0.0, 1e-30, 88.0, -88.0, 104.0, -104.0)


@needs_native
@pytest.mark.parametrize("loss", LOSSES)
def test_special_values_as_the_reference(loss):
    real = torch.tensor(SPECIAL * 3)  # vectors and their rest
    fake = real.flip(0)
    for _, fused, reference in both_players(loss, "none"):
        a = [x.clone().requires_grad_() for x in (real, fake)]
        b = [x.clone().requires_grad_() for x in (real, fake)]
        actual, expected = fused(*a), reference(*b)
        torch.testing.assert_close(actual, expected, equal_nan=True)
        got = torch.autograd.grad(actual.sum(), a, allow_unused=True)
        want = torch.autograd.grad(expected.sum(), b, allow_unused=True)
        torch.testing.assert_close(got, want, equal_nan=True, rtol=2e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_special_logits_of_log_loss_as_pytorchs(target):
    x = torch.tensor(SPECIAL * 3, requires_grad=True)
    t = torch.full_like(x, target).requires_grad_()
    actual = cmf.log_loss(x, t, reduction="none")
    expected = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    torch.testing.assert_close(actual, expected, equal_nan=True)
    got = torch.autograd.grad(actual.sum(), (x, t))
    want = torch.autograd.grad(expected.sum(), (x, t))
    torch.testing.assert_close(got, want, equal_nan=True, rtol=2e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_probabilities_at_the_ends_as_pytorchs(target):
    p = torch.tensor((0.0, 1.0, 1e-45, 1e-38, 1e-30, 1e-7, 0.5, 1 - 2.0**-24) * 3)
    p.requires_grad_()
    t = torch.full_like(p, target).requires_grad_()
    actual = cmf.log_loss(p, t, from_logits=False, reduction="none")
    expected = F.binary_cross_entropy(p, t, reduction="none")
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=0)
    got = torch.autograd.grad(actual.sum(), (p, t))
    want = torch.autograd.grad(expected.sum(), (p, t))
    torch.testing.assert_close(got, want, rtol=2e-6, atol=0, equal_nan=True)


def test_stable_where_log_of_sigmoid_is_not():
    real = torch.tensor([-1e4, 1e4, -200.0, 30.0], requires_grad=True)
    loss = cmf.gan_generator_loss(real, reduction="none")
    torch.testing.assert_close(
        loss.double(),
        torch.tensor([1e4, 0.0, 200.0, math.log1p(math.exp(-30))]).double(),
        rtol=1e-6,
        atol=0,
    )
    loss.sum().backward()
    exact = torch.tensor([-1.0, 0.0, -1.0, -1 / (1 + math.exp(30))])
    torch.testing.assert_close(real.grad, exact, rtol=1e-6, atol=0)
    naive = -torch.log(torch.sigmoid(real.detach()))
    assert naive[0].isinf()
    assert naive[3] == 0


@needs_native
@pytest.mark.parametrize("logit", [0.0, 1.0, 10.0, 20.0, 60.0])
def test_as_accurate_as_pytorchs_for_sure_and_unsure_discriminators(logit):
    # the sum of logarithms is the logarithm of a product, which must neither overflow (odds of 1)
    # nor lose small odds beside the 1 that they are added to
    torch.manual_seed(7)
    x = (logit + torch.rand(5000)).requires_grad_()
    exact = F.softplus(-x.detach().double()).mean()
    loss = cmf.gan_generator_loss(x)
    (grad,) = torch.autograd.grad(loss, x)
    pytorchs = F.binary_cross_entropy_with_logits(x.detach(), torch.ones(5000))
    # two float32 roundings, or PyTorch's own error where that is larger
    bound = max(2.0**-23 * exact, (pytorchs.double() - exact).abs())
    assert (loss.detach().double() - exact).abs() <= bound
    exact_grad = -torch.sigmoid(-x.detach().double()) / 5000
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-6, atol=0)


@needs_native
@pytest.mark.parametrize("place", [0, 100, 511, 513])
def test_nan_and_infinity_anywhere_reach_the_loss(place):
    for bad in (math.nan, -math.inf):
        x = torch.randn(514)
        x[place] = bad
        for loss in (
            cmf.gan_generator_loss(x),
            cmf.gan_generator_loss(x, torch.zeros_like(x), loss="relativistic"),
        ):
            assert loss.isnan() if math.isnan(bad) else loss == math.inf
        assert cmf.log_loss(x, torch.ones_like(x)).isnan()  # as PyTorch's: 0 * inf at infinity


@needs_native
@pytest.mark.parametrize("bad", [1.5, -0.1, math.nan])
def test_a_probability_outside_its_range_raises_as_in_pytorch(bad):
    values = torch.full((40,), 0.5)
    values[37] = bad
    ok = torch.full((40,), 0.5)
    for call in (
        lambda: cmf.gan_discriminator_loss(values, ok, from_logits=False),
        lambda: cmf.gan_generator_loss(values, from_logits=False),
        lambda: cmf.gan_generator_loss(values, from_logits=False, reduction="none"),
        lambda: cmf.gan_generator_loss_reference(values, from_logits=False),
        lambda: cmf.log_loss(ok, values, from_logits=False),
        lambda: cmf.log_loss(values, ok, from_logits=False, backend="reference"),
    ):
        with pytest.raises(RuntimeError, match="between 0 and 1"):
            call()
        with pytest.raises(ValueError, match="between 0 and 1"):
            call()


def test_empty_and_scalar_tensors():
    empty, scalar = torch.empty(0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    assert cmf.gan_generator_loss(empty).isnan()
    assert cmf.gan_generator_loss(empty, reduction="sum") == 0
    assert cmf.gan_generator_loss(empty, reduction="none").shape == (0,)
    cmf.gan_discriminator_loss(empty, empty).backward()
    assert empty.grad.shape == (0,)
    loss = cmf.gan_discriminator_loss(scalar, scalar, reduction="none")
    assert loss.shape == ()
    torch.testing.assert_close(loss, F.softplus(-scalar) + F.softplus(scalar))


@needs_native
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_strides(data):
    shape = data.draw(st.lists(st.integers(0, 5), min_size=0, max_size=4))
    seed = data.draw(st.integers(0, 99))
    loss = data.draw(st.sampled_from(LOSSES))
    reduction = data.draw(st.sampled_from(("sum", "none")))
    generator = torch.Generator().manual_seed(seed)

    def strided():
        kind = data.draw(st.sampled_from(("dense", "permuted", "sliced", "expanded")))
        if kind == "sliced":
            big = torch.randn([2 * size + 1 for size in shape], generator=generator)
            return big[tuple(slice(1, None, 2) for _ in shape)]
        if kind == "permuted":
            order = data.draw(st.permutations(range(len(shape))))
            x = torch.randn([shape[i] for i in order], generator=generator)
            return x.permute([order.index(i) for i in range(len(shape))])
        if kind == "expanded" and shape:
            return torch.randn([1, *shape[1:]], generator=generator).expand(shape)
        return torch.randn(shape, generator=generator)

    for _, fused, reference in both_players(loss, reduction):
        real, fake = strided(), strided()
        inputs = [x.detach().requires_grad_() for x in (real, fake)]
        expected_inputs = [x.double().detach().requires_grad_() for x in (real, fake)]
        actual, expected = fused(*inputs), reference(*expected_inputs)
        assert_near(actual, expected, 20.0, torch.float32)
        weights = torch.rand(actual.shape, generator=generator)
        kw = {"allow_unused": True}
        got = torch.autograd.grad(actual, inputs, weights, **kw)
        want = torch.autograd.grad(expected, expected_inputs, weights.double(), **kw)
        for g, w in zip(got, want, strict=True):
            if w is not None:
                assert_near(g, w, 1.0, torch.float32)


@needs_native
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bits_for_any_number_of_threads(loss):
    torch.manual_seed(3)
    real, fake = torch.randn(2, 70001)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            a, b = real.clone().requires_grad_(), fake.clone().requires_grad_()
            value = cmf.gan_discriminator_loss(a, b, loss=loss)
            results.append((value.detach(), *torch.autograd.grad(value, (a, b))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


def test_lists_are_averaged_over_their_scales():
    torch.manual_seed(4)
    reals = [torch.randn(2, n, requires_grad=True) for n in (7, 3, 1)]
    fakes = [torch.randn(2, n, requires_grad=True) for n in (7, 3, 1)]
    for loss in LOSSES:
        for _, fused, reference in both_players(loss, "mean"):
            single = [reference(r, f) for r, f in zip(reals, fakes, strict=True)]
            torch.testing.assert_close(fused(reals, fakes), sum(single) / 3)
            torch.testing.assert_close(reference(tuple(reals), tuple(fakes)), sum(single) / 3)
        for _, fused, reference in both_players(loss, "none"):
            result = fused(reals, fakes)
            assert isinstance(result, list)
            for x, r, f in zip(result, reals, fakes, strict=True):
                torch.testing.assert_close(x, reference(r, f))


def test_two_dtypes_are_promoted():
    real, fake = torch.randn(5, requires_grad=True), torch.randn(5).double().requires_grad_()
    loss = cmf.gan_discriminator_loss(real, fake)
    assert loss.dtype == torch.float64
    loss.backward()
    assert real.grad.dtype == torch.float32
    torch.testing.assert_close(loss, cmf.gan_discriminator_loss(real.double(), fake))


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32(dtype):
    x = torch.randn(33).to(dtype).requires_grad_()
    p = x.detach().sigmoid().requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = cmf.gan_discriminator_loss(x, x)
        unreduced = cmf.gan_generator_loss(x, reduction="none")
        from_probabilities = cmf.gan_generator_loss(p, from_logits=False)
    assert loss.dtype == unreduced.dtype == from_probabilities.dtype == torch.float32
    torch.testing.assert_close(loss, cmf.gan_discriminator_loss(x.float(), x.float()))
    torch.testing.assert_close(unreduced, F.softplus(-x.float()))
    loss.backward()
    assert x.grad.dtype == dtype
    assert cmf.gan_discriminator_loss(x, x).dtype == dtype  # and outside again the inputs'


@needs_native
def test_negated_views_are_read_with_their_sign():
    x = torch.imag(torch.randn(1, dtype=torch.complex64).conj())
    assert x.is_neg()
    torch.testing.assert_close(cmf.gan_generator_loss(x), F.softplus(-x.resolve_neg()).mean())
