"""Bad arguments of the GAN losses: which error, and that it names the argument and what came."""

from __future__ import annotations

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import native
from tests.gan_loss_cases import needs_native

X = torch.zeros(4)
D, G, L = cmf.gan_discriminator_loss, cmf.gan_generator_loss, cmf.log_loss
NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)

# call, error, what the message must hold
BAD_CALLS = {
    "real list of nothing": (lambda: D([], []), ValueError, "real must hold"),
    "real None": (lambda: D(None, X), TypeError, "real must be a torch.Tensor.*NoneType"),
    "fake number": (lambda: D(X, 1.0), TypeError, "fake must be a torch.Tensor.*float"),
    "fake list of number": (lambda: D([X], [1]), TypeError, r"fake\[0\] must be.*int"),
    "list and tensor": (lambda: D([X], X), TypeError, "fake must be a list"),
    "tensor and list": (lambda: D(X, [X]), TypeError, "fake must be a list"),
    "unequal lists": (lambda: D([X, X], [X]), ValueError, "fake must have as many.*2.*1"),
    "real integers": (lambda: D(X.int(), X), TypeError, "real must be float32.*int32"),
    "fake bool": (lambda: D(X, X > 0), TypeError, "fake must be float32.*bool"),
    "real complex": (lambda: D(X + 0j, X), TypeError, "real must be float32.*complex64"),
    "real sparse": (lambda: D(X.to_sparse(), X), NotImplementedError, "real must be a dense"),
    "real nested": (lambda: D(NESTED, X), NotImplementedError, "real must be a dense.*nested"),
    "other device": (lambda: D(X, X.to("meta")), ValueError, "fake must be on.*cpu.*meta"),
    "loss unknown": (lambda: D(X, X, loss="lsgan"), ValueError, "loss must be one of.*'lsgan'"),
    "loss no string": (lambda: D(X, X, loss=3), TypeError, "loss must be a string, got int"),
    "loss list": (lambda: D(X, X, loss=["hinge"]), TypeError, "loss must be a string, got list"),
    "loss None": (lambda: G(X, loss=None), TypeError, "loss must be a string, got NoneType"),
    "reduction": (lambda: D(X, X, reduction="max"), ValueError, "reduction must be one of.*'max'"),
    "reduction None": (lambda: G(X, reduction=None), TypeError, "reduction must be a string"),
    "from_logits": (lambda: D(X, X, from_logits=1), TypeError, "from_logits must be a bool.*int"),
    "from_logits None": (lambda: L(X, X, from_logits=None), TypeError, "from_logits must be a b"),
    "label string": (
        lambda: D(X, X, real_label="1"),
        TypeError,
        "real_label must be a number.*str",
    ),
    "label tensor": (lambda: D(X, X, fake_label=X), TypeError, "fake_label must be a number.*Tens"),
    "label NaN": (lambda: D(X, X, real_label=float("nan")), ValueError, "real_label must be fini"),
    "label infinite": (lambda: D(X, X, fake_label=float("inf")), ValueError, "fake_label must be"),
    "label no probability": (
        lambda: D(X, X, real_label=1.2, from_logits=False),
        ValueError,
        "real_label must be between 0 and 1.*1.2",
    ),
    "relativistic shapes": (
        lambda: D(X, torch.zeros(5), loss="relativistic"),
        ValueError,
        r"fake must have the shape of real, \(4,\), got \(5,\)",
    ),
    "relativistic without real": (
        lambda: G(X, loss="relativistic"),
        ValueError,
        "real must be given",
    ),
    "relativistic generator shapes": (
        lambda: G(X, torch.zeros(2, 2), loss="relativistic"),
        ValueError,
        r"real must have the shape of fake, \(4,\), got \(2, 2\)",
    ),
    "relativistic scale's shape": (
        lambda: G([X, X], [X, torch.zeros(3)], loss="relativistic"),
        ValueError,
        r"real\[1\] must have the shape of fake\[1\]",
    ),
    "unreduced shapes": (
        lambda: D(X, torch.zeros(3), reduction="none"),
        ValueError,
        "fake must have the shape of real",
    ),
    "backend unknown": (
        lambda: D(X, X, backend="tpu"),
        ValueError,
        "backend must be one of.*'tpu'",
    ),
    "backend no string": (lambda: G(X, backend=1), TypeError, "backend must be a string"),
    "backend empty": (lambda: G(X, backend=""), ValueError, "backend must be one of.*''"),
    "backend absent": (lambda: G(X, backend="cuda"), NotImplementedError, "'cuda' can't run"),
    "input no tensor": (lambda: L([0.0], X), TypeError, "input must be a torch.Tensor, got list"),
    "target no tensor": (lambda: L(X, 1.0), TypeError, "target must be a torch.Tensor, got float"),
    "target shape": (lambda: L(X, torch.zeros(4, 1)), ValueError, r"target must have.*\(4, 1\)"),
    "target integers": (lambda: L(X, X.long()), TypeError, "target must be float32.*int64"),
    "target device": (lambda: L(X, X.to("meta")), ValueError, "target must be on.*meta"),
    "dtypes": (
        lambda: L(X, X.double(), from_logits=False),
        TypeError,
        "input, target and weight must have one dtype.*float32.*float64",
    ),
    "weight no tensor": (lambda: L(X, X, weight=2.0), TypeError, "weight must be a torch.Tensor"),
    "weight shape": (
        lambda: L(X, X, weight=torch.ones(3)),
        ValueError,
        r"weight must broadcast to the input's shape \(4,\), got \(3,\)",
    ),
    "weight larger": (lambda: L(X, X, weight=torch.ones(2, 4)), ValueError, "weight must broadc"),
    "weight with a gradient": (
        lambda: L(X, X, weight=torch.ones(4, requires_grad=True)),
        NotImplementedError,
        "weight must not require a gradient",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name):
    # what good calls leave in the caches must not let a bad one through
    D(X, X), G(X), L(X, X)
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_the_reference_refuses_the_same():
    for name, (call, error, message) in BAD_CALLS.items():
        if name.startswith("backend"):
            continue
        with cmf.use_backend("reference"), pytest.raises(error, match=message):
            call()


SETTINGS = {
    "loss": "hinge",
    "reduction": "mean",
    "counts": [64],
    "parameters": [1.0],
    "scales": [1.0],
    "dtype": "float32",
    "loss_dtype": "float32",
}


@needs_native
@pytest.mark.parametrize(
    "wrong",
    [
        {"function": "softmax"},
        {"reduction": "max"},
        {"counts": []},
        {"counts": [-1]},
        {"counts": [2**60]},
        {"counts": [1, 2], "parameters": [1.0]},
        {"dtype": "int8"},
        {"loss_dtype": "float64"},
        {"dtype": "float64", "loss_dtype": "float32"},
    ],
)
def test_native_problem_refuses(wrong):
    settings = dict(SETTINGS)
    settings["function"] = settings.pop("loss")
    with pytest.raises(ValueError):
        native.module.GanLossProblem(**(settings | wrong))


@needs_native
def test_native_call_checks_addresses_and_stays_inside():
    settings = dict(SETTINGS)
    settings["function"] = settings.pop("loss")
    problem = native.module.GanLossProblem(**settings | {"counts": [37]})
    forward, backward = native.module.gan_loss_forward, native.module.gan_loss_backward
    sentinel = 12345.0
    x = torch.randn(37)
    loss = torch.full((3,), sentinel)
    gradient = torch.full((37 + 32,), sentinel)
    at = gradient.data_ptr() + 16 * 4
    where = loss.data_ptr() + 4
    for call in (forward, backward):
        for bad in (
            (0, (x.data_ptr(),), (at,), 1),
            (where + 1, (x.data_ptr(),), (at,), 1),
            (where, (), (at,), 1),
            (where, (0,), (at,), 1),
            (where, (x.data_ptr() + 2,), (at,), 1),
            (where, (x.data_ptr(),), (at + 1,), 1),
            (where, (x.data_ptr(),), (at, at), 1),
            (where, (x.data_ptr(),), (at,), 0),
            (where, (x.data_ptr(),), (at,), 10**6),
        ):
            with pytest.raises(ValueError):
                call(problem, *bad)
        with pytest.raises(TypeError):
            call(problem, where, ("x",), (at,), 1)
    assert (gradient == sentinel).all()
    forward(problem, where, (x.data_ptr(),), (at,), 1)
    assert loss[0] == loss[2] == sentinel
    assert loss[1] != sentinel
    assert (gradient[:16] == sentinel).all()
    assert (gradient[16 + 37 :] == sentinel).all()
    assert (gradient[16 : 16 + 37] != sentinel).all()


# The second call of a kind takes a short way that looks at less; what that does not look at must
# raise the same errors there.


@needs_native
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("convert", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_other_layouts_after_a_dense_call(convert, requires_grad, reduction):
    dense = torch.rand(3, 3)
    other = getattr(dense, convert)().detach().requires_grad_(requires_grad)
    for call, argument in (
        (lambda x: D(x, dense, reduction=reduction), "real"),
        (lambda x: D(dense, x, reduction=reduction), "fake"),
        (lambda x: G(x, reduction=reduction), "fake"),
        (lambda x: L(x, dense, reduction=reduction), "input"),
        (lambda x: L(dense, x, reduction=reduction), "target"),
        (lambda x: cmf.nn.GANLoss(reduction=reduction)(x, True), "prediction"),
    ):
        call(dense)
        with pytest.raises(NotImplementedError, match=f"{argument} must be a dense"):
            call(other)


@needs_native
def test_probabilities_are_checked_in_every_call():
    good = torch.rand(9, requires_grad=True)
    bad = torch.full((9,), 1.5, requires_grad=True)
    G(good, from_logits=False)
    for _ in range(2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            G(bad, from_logits=False)
