"""The GAN losses under torch.compile, torch.export, FakeTensor, meta tensors and make_fx."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import crossmedia_fast as cmf
from tests.gan_loss_cases import needs_native

pytestmark = needs_native

OP = "torch.ops.crossmedia_fast.gan_loss"


def _losses(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (
        cmf.gan_discriminator_loss(a * 2, b * 3)
        + cmf.gan_generator_loss(b, loss="hinge")
        + cmf.gan_generator_loss(b, a, loss="relativistic")
        + cmf.log_loss(a, b.sigmoid(), reduction="sum")
        + cmf.gan_discriminator_loss(a, b, loss="least_squares", reduction="none").sum()
    )


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_in_one_graph(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(_losses, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for numel in (5, 7, 9):
        a, b = (torch.randn(numel, requires_grad=True) for _ in range(2))
        got, want = compiled(a, b), _losses(a, b)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got, (a, b)), torch.autograd.grad(want, (a, b))
        )


def test_compile_with_the_default_backend():
    torch._dynamo.reset()
    compiled = torch.compile(cmf.gan_discriminator_loss, fullgraph=True)
    a, b = (torch.randn(6, requires_grad=True) for _ in range(2))
    compiled(a, b).backward()
    want = torch.autograd.grad(cmf.gan_discriminator_loss(a, b), (a, b))
    torch.testing.assert_close((a.grad, b.grad), want)


def test_compile_the_module():
    torch._dynamo.reset()
    criterion = cmf.nn.GANLoss("least_squares", real_label=0.9, loss_weight=0.1)

    def step(a, b):
        return (
            criterion.discriminator(a, b) + criterion([[a, b], [b]], True, False)
        ) + criterion.generator(a)

    a, b = torch.randn(2, 6)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), step(a, b))


class _Both(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = cmf.nn.GANLoss()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.criterion.discriminator(a, b) + self.criterion.generator(b)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_batch(strict):
    dim = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        _Both(),
        (torch.randn(4, 3), torch.randn(4, 3)),
        dynamic_shapes={"a": {0: dim}, "b": {0: dim}},
        strict=strict,
    )
    assert "crossmedia_fast.gan_loss" in str(exported.graph)
    a, b = torch.randn(2, 9, 3)
    torch.testing.assert_close(exported.module()(a, b), _Both()(a, b))


def test_meta_and_fake_tensors():
    a = torch.empty(3, 4, device="meta", requires_grad=True)
    assert cmf.gan_discriminator_loss(a, a).shape == ()
    assert cmf.gan_discriminator_loss(a, a, reduction="none").shape == (3, 4)
    with FakeTensorMode():
        x = torch.randn(4, dtype=torch.bfloat16, requires_grad=True)
        loss = cmf.gan_generator_loss(x)
        assert isinstance(loss, FakeTensor)
        assert loss.dtype == torch.bfloat16
        loss.backward()
        assert x.grad.shape == (4,)


def test_make_fx_records_the_op():
    x = torch.randn(5)
    traced = make_fx(lambda x: cmf.gan_generator_loss(x))(x)
    assert OP in traced.code
    torch.testing.assert_close(traced(x), cmf.gan_generator_loss(x))


def test_a_tensor_subclass_stays_one():
    class Sub(torch.Tensor):
        pass

    x = torch.randn(5)
    loss = cmf.gan_generator_loss(x.as_subclass(Sub))
    assert type(loss) is Sub
    torch.testing.assert_close(loss.as_subclass(torch.Tensor), cmf.gan_generator_loss(x))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("function", "tensors", "parameters"),
    [
        ("log_loss_logits", 2, [1.0, 0.1]),
        ("log_loss_probabilities", 2, [1.0, 0.1]),
        ("relativistic", 2, [0.0]),
        ("log_loss_logits_target_weight", 3, [0.0]),
        ("log_loss_probabilities_target", 2, [0.0]),
    ],
)
def test_opcheck(function, tensors, parameters, reduction):
    torch.manual_seed(0)
    operands = [(0.1 + 0.8 * torch.rand(4)).requires_grad_() for _ in range(tensors)]
    if tensors == 3:
        operands[2].requires_grad_(False)
    problem = (function, parameters, [1.0] * len(parameters), reduction, None, "cpu")
    torch.library.opcheck(torch.ops.crossmedia_fast.gan_loss.default, (operands, *problem))
    grad = torch.ones(()) if reduction == "mean" else torch.ones(4)
    torch.library.opcheck(
        torch.ops.crossmedia_fast.gan_loss_backward.default,
        (grad, [x.detach() for x in operands], *problem),
    )


@pytest.mark.parametrize(
    ("operands", "problem"),
    [
        ([], ("linear", [], [], "mean", None)),
        ([torch.ones(3)], ("nonsense", [0.0], [1.0], "mean", None)),
        ([torch.ones(3)], ("relativistic", [0.0], [1.0], "mean", None)),
        ([torch.ones(3), torch.ones(4)], ("relativistic", [0.0], [1.0], "mean", None)),
        ([torch.ones(3), torch.ones(4)], ("linear", [0.0] * 2, [1.0] * 2, "none", None)),
        ([torch.ones(3), torch.ones(3).double()], ("linear", [0.0] * 2, [1.0] * 2, "sum", None)),
        ([torch.ones(3)], ("linear", [0.0], [1.0], "median", None)),
        ([torch.ones(3)], ("linear", [0.0], [1.0], "mean", torch.float64)),
    ],
)
def test_the_op_itself_refuses_what_would_break_a_kernel(operands, problem):
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.crossmedia_fast.gan_loss(operands, *problem, "cpu")
