"""The public functions on backend "cuda": the plan, autograd and its transforms, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast.ops.conv_act_pool import registration
from crossmedia_fast.ops.conv_act_pool.arguments import check_pool

from . import tolerances
from .conv_act_pool_cases import POOLS, algorithm, gradients, make
from .cuda_calls import DEVICE, runs_kernels

pytestmark = runs_kernels


@pytest.fixture(autouse=True)
def _ieee_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU too, so that one tolerance holds."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def _epilogue():
    """PyTorch's convolution before it, whatever else the plan would take."""
    with algorithm("epilogue"):
        yield


def tensors(dtype: torch.dtype = torch.float32, **sizes: int) -> list[Tensor]:
    return [x.to(DEVICE).requires_grad_() for x in make(dtype=dtype, **sizes)]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_values_and_gradients(activation: str, pool: str) -> None:
    inputs = tensors(size=(12, 16), channels_last=activation == "silu")
    arguments = {"activation": activation, "padding": 1, **POOLS[pool]}
    doubles = [x.detach().double() for x in inputs]
    want = cmf.conv_act_pool2d_reference(*doubles, **arguments)
    dy = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    y, grads = gradients(cmf.conv_act_pool2d, inputs, dy, backend="cuda", **arguments)
    tolerances.assert_within(y, want, tolerances.VALUES[torch.float32])
    _, expected = gradients(cmf.conv_act_pool2d_reference, doubles, dy, **arguments)
    for gradient, wanted in zip(grads, expected, strict=True):
        tolerances.assert_within(gradient, wanted, tolerances.GRADIENTS[torch.float32])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_derivatives_of_second_order(activation: str) -> None:
    inputs = tensors(torch.float64)
    arguments = {"activation": activation, "padding": 1}

    def second(function, **more):
        y = function(*inputs, **arguments, **more)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), inputs[1])[0]

    expected = second(cmf.conv_act_pool2d_reference)
    actual = second(cmf.conv_act_pool2d, backend="cuda")
    tolerances.assert_within(actual, expected, tolerances.GRADIENTS[torch.float64])


def test_forward_mode_and_vmap() -> None:
    x, w, bias = (t.detach() for t in tensors())

    def loss(weight: Tensor) -> Tensor:
        return cmf.conv_act_pool2d(x, weight, bias, padding=1, backend="cuda").square().sum()

    def expected(weight: Tensor) -> Tensor:
        return cmf.conv_act_pool2d_reference(x, weight, bias, padding=1).square().sum()

    tangent = torch.ones_like(w)
    for transform in (
        lambda f: torch.func.jvp(f, (w,), (tangent,))[1],
        lambda f: torch.func.vmap(torch.func.grad(f))(torch.stack([w, 2 * w])),
    ):
        torch.testing.assert_close(transform(loss), transform(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_and_autocast(dtype: torch.dtype) -> None:
    inputs = [x.detach() for x in tensors(dtype)]
    want = cmf.conv_act_pool2d_reference(*[x.double() for x in inputs])
    y = cmf.conv_act_pool2d(*inputs, backend="cuda")
    assert y.dtype == dtype
    tolerances.assert_within(y, want, tolerances.VALUES[dtype])
    with torch.autocast(DEVICE, dtype=dtype):
        y = cmf.conv_act_pool2d(*[x.float() for x in inputs], backend="cuda")
    assert y.dtype == dtype
    tolerances.assert_within(y, want, tolerances.VALUES[dtype])


def test_the_plan() -> None:
    inputs = tensors()
    plan = cmf.explain(*inputs, backend="cuda")
    assert (plan.backend, plan.algorithm) == ("cuda", "epilogue")
    plan = cmf.explain(*inputs, activation="identity", pool="none", backend="cuda")
    assert plan.algorithm == "convolution"


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pool", ["max2", "avg3s2p1", "none"])
def test_the_registered_op(activation: str, pool: str) -> None:
    given = {"pool": "max", "pool_size": 2, **POOLS[pool]}
    pool2d = check_pool(
        activation,
        None,
        given["pool"],
        given["pool_size"],
        given.get("pool_stride"),
        given.get("pool_padding", 0),
        False,
        True,
    )
    z = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    bias = torch.linspace(-1, 1, 3).to(DEVICE)
    arguments = (*registration._as_args(pool2d), False, "cuda", True)
    torch.library.opcheck(
        torch.ops.crossmedia_fast.act_pool2d.default,
        (z.requires_grad_(), bias.requires_grad_(), *arguments),
    )


def test_torch_compile() -> None:
    inputs = tensors()

    def step(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = cmf.conv_act_pool2d(x, w, b, padding=1, activation="silu", backend="cuda")
        return cmf.gan_generator_loss(y, backend="cuda")

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(step(*inputs), inputs)
    actual = torch.autograd.grad(compiled(*inputs), inputs)
    for gradient, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
    torch.compiler.reset()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", ["minimax", "least_squares", "hinge", "wasserstein"])
def test_losses(loss: str, reduction: str) -> None:
    generator = torch.Generator().manual_seed(6)
    real, fake = (torch.randn(40, generator=generator).to(DEVICE).requires_grad_() for _ in "rf")
    for scale in (1.0, 3.0):  # the incoming gradient: stored gradients, and computed again
        kinds = {"loss": loss, "reduction": reduction}
        actual = cmf.gan_discriminator_loss(real, fake, **kinds, backend="cuda")
        want = cmf.gan_discriminator_loss_reference(real, fake, **kinds)
        torch.testing.assert_close(actual, want)
        grads = torch.autograd.grad(scale * actual.sum(), (real, fake))
        torch.testing.assert_close(grads, torch.autograd.grad(scale * want.sum(), (real, fake)))


def test_losses_of_several_scales_and_of_probabilities() -> None:
    real, fake = ([torch.randn(n).to(DEVICE).requires_grad_() for n in (40, 7)] for _ in "rf")
    actual = cmf.gan_discriminator_loss(real, fake, loss="relativistic", backend="cuda")
    want = cmf.gan_discriminator_loss_reference(real, fake, loss="relativistic")
    torch.testing.assert_close(actual, want)
    grads = torch.autograd.grad(actual, real + fake)
    torch.testing.assert_close(grads, torch.autograd.grad(want, real + fake))
    p, target = (torch.rand(9).to(DEVICE) for _ in "pt")
    weight = torch.rand(9).to(DEVICE)
    arguments = {"from_logits": False, "weight": weight}
    actual = cmf.log_loss(p.requires_grad_(), target, **arguments, backend="cuda")
    want = cmf.log_loss_reference(p, target, **arguments)
    torch.testing.assert_close(actual, want)
    torch.testing.assert_close(torch.autograd.grad(actual, p), torch.autograd.grad(want, p))


def test_a_retained_graph_gives_the_same_again() -> None:
    x = torch.randn(9).to(DEVICE).requires_grad_()
    loss = cmf.log_loss(x, torch.rand(9).to(DEVICE), backend="cuda")
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (again,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, again)
    assert first is not again
