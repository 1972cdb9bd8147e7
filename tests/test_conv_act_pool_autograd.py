"""Derivatives of conv_act_pool2d beyond the first, transforms, and what autograd keeps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import crossmedia_fast as cmf
from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS

from .conv_act_pool_cases import POOLS, algorithm, make
from .tolerances import GRADIENTS, SAME_DTYPE, VALUES, assert_within

# Finite differences need float64; the tensors are small because a check costs a call per element.
SMALL: dict[str, Any] = {"size": (6, 5), "dtype": torch.float64}
OVERLAPPING: dict[str, Any] = {
    "padding": 1, "pool_size": 3, "pool_stride": 2, "pool_padding": 1, "activation": "silu",
}  # fmt: skip


@pytest.fixture(params=["direct", "winograd", "epilogue"], autouse=True)
def each_algorithm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of this file runs with each; where one can't run, the plan's choice does."""
    with algorithm(request.param):
        yield


def leaves(**arguments: Any) -> list[Tensor]:
    return [t.requires_grad_() for t in make(**{**SMALL, **arguments})]


@pytest.mark.parametrize("pool", ["max2", "avg2", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_second_and_forward_derivatives(activation: str, pool: str) -> None:
    def f(*tensors: Tensor) -> Tensor:
        return cmf.conv_act_pool2d(*tensors, padding=1, activation=activation, **POOLS[pool])

    tensors = leaves()
    gradcheck(f, tensors, fast_mode=True)
    gradgradcheck(f, tensors, fast_mode=True)
    gradcheck(f, tensors, fast_mode=True, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize(
    "pool", ["max3s2p1_ceil", "max3s1", "max_gaps", "avg3s2p1_valid", "avg2s1"]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_second_derivatives_of_unusual_windows(pool: str, channels_last: bool) -> None:
    for activation in ("relu", "silu"):
        gradgradcheck(
            lambda *t: cmf.conv_act_pool2d(*t, padding=1, activation=activation, **POOLS[pool]),  # noqa: B023
            leaves(channels_last=channels_last),
            fast_mode=True,
        )


def _third_derivative(function: Any) -> Tensor:
    x, w, b = leaves()
    y = function(x, w, b, **OVERLAPPING)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    return torch.autograd.grad(second.pow(2).sum(), x)[0]


def test_third_derivative() -> None:
    assert_within(
        _third_derivative(cmf.conv_act_pool2d),
        _third_derivative(cmf.conv_act_pool2d_reference),
        GRADIENTS[torch.float64],
    )


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "silu"])
def test_r1_penalty_trains_as_with_the_reference(activation: str) -> None:
    """Mescheder et al. 2018: the squared gradient at the input, differentiated again."""

    def penalty(function: Any) -> tuple[Tensor, ...]:
        x, w, b = leaves(in_channels=2, out_channels=4)
        score = function(x, w, b, padding=1, activation=activation).sum((1, 2, 3))
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        (gradient.square().sum((1, 2, 3)).mean() + score.mean()).backward()
        return x.grad, w.grad, b.grad

    for ours, theirs in zip(
        penalty(cmf.conv_act_pool2d), penalty(cmf.conv_act_pool2d_reference), strict=True
    ):
        assert_within(ours, theirs, GRADIENTS[torch.float64])


@pytest.mark.parametrize(
    "arguments", [OVERLAPPING, {"pool": "avg"}, {"activation": "tanh"}], ids=str
)
def test_functional_transforms(arguments: dict[str, Any]) -> None:
    x, w, b = make(**SMALL)
    batch = torch.randn(4, *x.shape, dtype=x.dtype)
    weights, biases = torch.randn(4, *w.shape, dtype=x.dtype), torch.randn(4, 3, dtype=x.dtype)

    def transformed(op: Any) -> list[Tensor]:
        def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return op(x, w, b, **arguments)

        def loss(w: Tensor, x: Tensor) -> Tensor:
            return f(x, w, b).pow(2).sum()

        return [
            grad(loss)(w, x),
            vmap(lambda x: f(x, w, b))(batch),
            vmap(lambda w, b: f(x, w, b))(weights, biases),
            vmap(lambda x, b: f(x, w, b), in_dims=(1, 0))(batch.movedim(0, 1), biases),
            vmap(grad(loss), in_dims=(None, 0))(w, batch),
            jacfwd(lambda b: f(x, w, b))(b),
            jacrev(lambda b: f(x, w, b))(b),
            hessian(lambda b: f(x, w, b).pow(3).sum())(b),
        ]

    for ours, theirs in zip(
        transformed(cmf.conv_act_pool2d), transformed(cmf.conv_act_pool2d_reference), strict=True
    ):
        assert_within(ours, theirs, GRADIENTS[torch.float64])


def test_functional_call_of_the_module() -> None:
    layer = cmf.nn.ConvActPool2d(2, 3, 3, padding=1).double()
    x = make(**SMALL)[0]
    state = {name: torch.randn_like(value) for name, value in layer.state_dict().items()}
    y = functional_call(layer, state, (x,))
    want = cmf.conv_act_pool2d_reference(x, state["weight"], state["bias"], padding=1)
    assert_within(y, want, 1e-14)


def test_batched_gradients() -> None:
    tensors = leaves()
    y = cmf.conv_act_pool2d(*tensors)
    dy = torch.randn(3, *y.shape, dtype=y.dtype)
    batched = torch.autograd.grad(y, tensors, dy, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        single = torch.autograd.grad(y, tensors, dy[i], retain_graph=True)
        for ours, theirs in zip(batched, single, strict=True):
            assert_within(ours[i], theirs, GRADIENTS[torch.float64])


def test_backward_can_run_twice() -> None:
    tensors = leaves()
    y = cmf.conv_act_pool2d(*tensors)
    first = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    second = torch.autograd.grad(y.sum(), tensors)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_some_gradients_alone(wanted: tuple[int, ...]) -> None:
    for pool in ("max", "avg", "none"):
        both = []
        for op in (cmf.conv_act_pool2d, cmf.conv_act_pool2d_reference):
            tensors = list(make(**SMALL))
            for i in wanted:
                tensors[i].requires_grad_()
            y = op(*tensors, pool=pool, activation="sigmoid")
            both.append(torch.autograd.grad(y.sum(), [tensors[i] for i in wanted]))
        for ours, theirs in zip(*both, strict=True):
            assert_within(ours, theirs, GRADIENTS[torch.float64])


def test_a_saved_output_changed_in_place_is_noticed() -> None:
    y = cmf.conv_act_pool2d(*leaves())
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant: bool) -> None:
    plain, checkpointed = leaves(), leaves()
    cmf.conv_act_pool2d(*plain).sum().backward()
    checkpoint(cmf.conv_act_pool2d, *checkpointed, use_reentrant=use_reentrant).sum().backward()
    for a, b in zip(plain, checkpointed, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_inference_mode(pool: str) -> None:
    x, w, b = make()
    with torch.inference_mode():
        y = cmf.conv_act_pool2d(x, w, b, pool=pool, activation="elu")
        nested = cmf.conv_act_pool2d(y, torch.randn(2, 3, 1, 1), pool=pool)
    assert y.is_inference()
    assert nested.is_inference()
    want = cmf.conv_act_pool2d_reference(x, w, b, pool=pool, activation="elu")
    assert_within(y, want, VALUES[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_conv2d_has_it(dtype: torch.dtype) -> None:
    for pool in ("max", "avg", "none"):
        tensors = [t.requires_grad_() for t in make()]
        with torch.autocast("cpu", dtype=dtype):
            y = cmf.conv_act_pool2d(*tensors, pool=pool)
            want = cmf.conv_act_pool2d_reference(*tensors, pool=pool)
        assert y.dtype == want.dtype == dtype
        assert_within(y.detach(), want.detach(), SAME_DTYPE[dtype])
        y.float().sum().backward()
        assert all(t.grad.dtype == torch.float32 for t in tensors)
        assert cmf.conv_act_pool2d(*tensors, pool=pool).dtype == torch.float32


def _kept_bytes(function: Any, tensors: list[Tensor]) -> int:
    """Bytes that autograd keeps beside `tensors`."""
    own = {t.untyped_storage().data_ptr() for t in tensors}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(*tensors)
    del y
    return sum(kept.values())


@pytest.mark.parametrize(
    ("activation", "pool", "bytes_per_output"),
    [
        *(
            (a, "max", 5)
            for a in ("relu", "leaky_relu", "relu6", "elu", "tanh", "sigmoid", "softplus")
        ),
        ("identity", "max", 1),  # the index alone
        *((a, "none", 4) for a in ("relu", "tanh", "sigmoid", "softplus")),
        ("identity", "avg", 0),
        *((a, "avg", 1) for a in ("relu", "leaky_relu", "relu6")),  # a mask
        ("silu", "max", 5),  # the pre-activation at the chosen positions, and the index
    ],
)
def test_what_backward_keeps(activation: str, pool: str, bytes_per_output: int) -> None:
    for channels_last in (False, True):
        tensors = [t.requires_grad_() for t in make(size=(16, 16), channels_last=channels_last)]

        def f(*t: Tensor) -> Tensor:
            return cmf.conv_act_pool2d(*t, padding=1, activation=activation, pool=pool)

        outputs = f(*tensors).numel()
        assert _kept_bytes(f, tensors) == bytes_per_output * outputs


def test_deepcopy_and_pickle() -> None:
    layer = cmf.nn.ConvActPool2d(2, 3, 3, pool_size=[3, 3], activation="elu", activation_param=0.5)
    x = make()[0]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
