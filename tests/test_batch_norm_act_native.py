"""The kernels of batch normalization in training, against float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS, backward_from_input

from .batch_norm_cases import (
    EPS,
    FORMAT_IDS,
    FORMATS,
    MOMENTUM,
    Case,
    Results,
    launch_of,
    make_case,
    norm_of,
    preactivation,
    run_kernels,
    run_reference,
)
from .tolerances import NORM, NORM_GRADIENTS, NORM_SUMS, assert_within

pytestmark = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

# Vectors are of 4, 8 or 16 lanes, tiles of four vectors, blocks of 2048 values or 16 pixels.
SHAPES = [
    (2, 1, 1, 1),
    (1, 1, 3, 5),
    (3, 1, 2, 3),
    (5, 2, 1, 1),
    (2, 3, 7, 5),
    (1, 16, 7, 7),
    (4, 17, 4, 4),
    (150, 5, 2, 2),
    (2, 33, 9, 11),
    (1, 64, 8, 8),
    (3, 70, 6, 5),
    (1, 131, 13, 3),
    (9, 20, 23, 19),
    (1, 4, 61, 67),
    (2, 2, 150, 230),
    (1, 66, 40, 40),
]


def check(found: Results, case: Case, activation: str) -> None:
    norm = norm_of(activation)
    exact = run_reference(case, norm)
    z = preactivation(case.x, case.weight, case.bias)
    size = max(1.0, float(z.abs().max()))
    assert found.y.stride() == case.x.stride()
    assert_within(found.y, exact.y, NORM, size)
    # act'' of the smooth activations is at most 1 or so: a factor that may differ by as much as z
    gain = float(exact.dx.abs().max()) if activation == "identity" else None
    dz = backward_from_input(case.dy.double(), z, *norm[1:])
    weight = torch.ones(z.shape[1]) if case.weight is None else case.weight
    scale = weight.double() / (case.x.double().var((0, 2, 3), correction=0) + EPS).sqrt()
    bound = float((scale[:, None, None] * case.dy.abs()).max())
    assert_within(found.dx, exact.dx, NORM_GRADIENTS, max(gain or 0.0, size * bound))
    xhat = preactivation(case.x, None, None)
    terms = torch.maximum(dz.abs(), case.dy.double().abs())
    for name, magnitude in (("dbias", terms), ("dweight", terms * xhat.abs())):
        scales = magnitude.sum((0, 2, 3))
        difference = (getattr(found, name).double() - getattr(exact, name)).abs()
        assert bool((difference <= NORM_SUMS * size * scales).all()), name
    assert_within(found.running_mean, exact.running_mean, 2e-7)
    assert_within(found.running_var, exact.running_var, 2e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_shapes(shape: tuple[int, ...], format: torch.memory_format, affine: bool) -> None:
    for activation in ("identity", "relu"):
        case = make_case(shape, format, affine, activation=activation)
        check(run_kernels(case, norm_of(activation)), case, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("shape", [(3, 19, 7, 9), (2, 64, 12, 12)], ids=str)
def test_activations(activation: str, format: torch.memory_format, shape: tuple[int, ...]) -> None:
    case = make_case(shape, format, activation=activation)
    check(run_kernels(case, norm_of(activation)), case, activation)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
def test_the_same_bits_for_any_number_of_threads(
    shape: tuple[int, ...], format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(shape, format)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(native, "thread_count", lambda threads=threads: threads)
        results.append(run_kernels(case, norm_of("relu")))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("mean", [1e3, -1e5])
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("shape", [(4, 33, 17, 15), (2, 2, 90, 70)], ids=str)
def test_a_mean_that_is_large_beside_the_deviations(
    mean: float, format: torch.memory_format, shape: tuple[int, ...]
) -> None:
    """As exact as without: PyTorch loses as many digits as the mean has before the point."""
    case = make_case(shape, format, mean=mean)
    found = run_kernels(case, norm_of("identity"))
    check(found, case, "identity")
    exact = run_reference(case, norm_of("identity"))
    pytorch = run_reference(case, norm_of("identity"), dtype=torch.float32)
    assert (found.y - exact.y).abs().max() < (pytorch.y - exact.y).abs().max() / 10


def test_values_that_float32_can_not_square() -> None:
    for format in FORMATS:
        case = make_case((4, 20, 9, 9), format)
        large = case._replace(x=case.x * 1e30)
        found, plain = (run_kernels(c, norm_of("identity")) for c in (large, case))
        assert_within(found.y, plain.y, 2e-4)  # eps counts in one of them
        assert bool(found.running_var.isinf().all())  # 1e60, as PyTorch's
        found = run_kernels(case._replace(x=case.x * 1e-30), norm_of("identity"))
        exact = run_reference(case._replace(x=case.x * 1e-30), norm_of("identity"))
        assert_within(found.y, exact.y, NORM)


@pytest.mark.parametrize(
    ("place", "bad"),
    [
        *itertools.product(["x", "dy", "bias"], [float("nan"), float("inf"), -float("inf")]),
        ("weight", float("nan")),  # of infinity, it depends on where the mean is taken off
    ],
)
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("format", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("shape", [(2, 20, 7, 9), (2, 3, 60, 50)], ids=str)
def test_what_is_not_finite(
    bad: float,
    place: str,
    activation: str,
    format: torch.memory_format,
    shape: tuple[int, ...],
) -> None:
    case = make_case(shape, format, activation=activation)
    target: Tensor = getattr(case, place)
    target[(1, 2, 3, 4) if target.dim() == 4 else (2,)] = bad
    norm = norm_of(activation)
    found = run_kernels(case, norm)
    exact = run_reference(case, norm, dtype=torch.float32)
    for name in Results._fields:
        a, e = getattr(found, name), getattr(exact, name)
        assert torch.equal(a.isfinite(), e.isfinite()), name
        if name in ("y", "running_mean", "running_var", "dbias"):
            assert torch.equal(a.isnan(), e.isnan()), name
            assert torch.equal(a.isposinf(), e.isposinf()), name


def test_running_statistics_over_several_steps() -> None:
    for format in FORMATS:
        mean, variance = torch.zeros(24), torch.ones(24)
        exact_mean, exact_variance = mean.double(), variance.double()
        for step in range(5):
            x = (torch.randn(3, 24, 8, 6) * (step + 1) + step).contiguous(memory_format=format)
            case = make_case((3, 24, 8, 6), format)._replace(
                x=x, running_mean=mean, running_var=variance
            )
            mean, variance = run_kernels(case, norm_of("relu"), 0.3)[-2:]
            case = case._replace(running_mean=exact_mean, running_var=exact_variance)
            exact_mean, exact_variance = run_reference(case, norm_of("relu"), 0.3)[-2:]
        assert_within(mean, exact_mean, 3e-7)
        assert_within(variance, exact_variance, 3e-7)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 7.0])
def test_eps(eps: float) -> None:
    case = make_case((2, 20, 6, 6))
    norm = norm_of("identity", eps)
    found, exact = run_kernels(case, norm), run_reference(case, norm)
    assert_within(found.y, exact.y, NORM)
    assert_within(found.dx, exact.dx, NORM_GRADIENTS)


def test_a_channel_of_one_value() -> None:
    """y is the bias; the gradient of x is 0 but for rounding, that of the weight too."""
    for format in FORMATS:
        case = make_case((2, 20, 6, 6), format)
        case.x[:, 3] = 0.7
        found = run_kernels(case, norm_of("identity"))
        assert case.bias is not None
        assert torch.equal(found.y[:, 3], case.bias[3].expand(2, 6, 6))
        assert float(found.dweight[3]) == 0


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_gradients_that_nobody_asks_for(needed: int) -> None:
    needs = (needed == 0, needed == 1, needed == 2)
    case = make_case((2, 20, 7, 7))
    norm = norm_of("relu")
    launch = launch_of(case.x, norm)
    _, statistics = launch.forward(case.x, case.weight, case.bias, None, None, 0.0)
    found = launch.backward(case.dy, case.x, statistics, case.weight, case.bias, needs)
    every = run_kernels(case, norm)[1:4]
    for gradient, expected, need in zip(found, every, needs, strict=True):
        assert (gradient is not None) == need
        assert gradient is None or torch.equal(gradient, expected)


GOOD = {
    "batch": 2,
    "channels": 3,
    "plane": 12,
    "eps": EPS,
    "activation": "relu",
    "activation_param": 0.0,
    "channels_last": False,
}
HUGE = 2**40
BAD_PROBLEMS = [
    {"batch": 0},
    {"batch": -1},
    {"channels": 0},
    {"channels": -(2**62)},
    {"plane": 0},
    {"plane": HUGE + 1},
    {"batch": 1, "plane": 1},
    {"batch": HUGE, "channels": HUGE},
    {"batch": HUGE, "channels": HUGE, "plane": HUGE},
    {"batch": HUGE, "plane": HUGE},
    {"eps": float("nan")},
    {"eps": -1.0},
    {"eps": float("inf")},
    {"activation": "relu7"},
    {"activation": ""},
]


@pytest.mark.parametrize("bad", BAD_PROBLEMS, ids=str)
def test_problems_without_sense(bad: dict[str, object]) -> None:
    assert native.module is not None
    with pytest.raises((ValueError, TypeError)):
        native.module.BatchNormActProblem(**{**GOOD, **bad})


def test_addresses_and_threads_without_sense() -> None:
    assert native.module is not None
    problem = native.module.BatchNormActProblem(**GOOD)
    x = torch.randn(2, 3, 3, 4)
    y, statistics, row = torch.empty_like(x), torch.empty(3, 3), torch.ones(3)
    a, b, s, r = x.data_ptr(), y.data_ptr(), statistics.data_ptr(), row.data_ptr()
    forward = [problem, a, r, r, r, r, MOMENTUM, b, s, 1]
    native.module.batch_norm_act_forward(*forward)
    for place, value in (
        *((place, 0) for place in (1, 4, 5, 7, 8)),  # running statistics: both or neither
        *((place, a + 1) for place in (1, 2, 3, 4, 5, 7, 8)),
        *((9, threads) for threads in (0, -1, 10**6)),
    ):
        wrong = [*forward]
        wrong[place] = value
        with pytest.raises(ValueError):
            native.module.batch_norm_act_forward(*wrong)
    backward = [problem, a, s, r, r, a, b, r, r, 1]
    native.module.batch_norm_act_backward(*backward)
    for place, value in (
        *((place, 0) for place in (1, 2, 5)),
        *((place, a + 2) for place in range(1, 9)),
        *((9, threads) for threads in (0, -1, 10**6)),
    ):
        wrong = [*backward]
        wrong[place] = value
        with pytest.raises(ValueError):
            native.module.batch_norm_act_backward(*wrong)
