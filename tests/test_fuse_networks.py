"""Whole networks of the literature: fused and unfused agree, in both modes and both layouts.

The networks are the benchmarks', narrower and on small images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf
from benchmarks.networks import NETWORKS

from .fuse_models import settle
from .tolerances import WINOGRAD, assert_within

WIDTH, BATCH = 1 / 8, 2

# network -> fused convolutions and all convolutions
EXPECTED = {
    "lenet5": (2, 2),
    "alexnet": (5, 5),
    "vgg11_bn": (8, 8),
    "vgg16": (13, 13),
    "squeezenet1_1": (26, 26),
    "googlenet": (57, 57),
    "resnet18": (20, 20),
    "densenet121": (120, 120),
    "resnext50": (53, 53),
    "regnety_800mf": (75, 75),
    "mobilenet_v3_large": (62, 62),
    "efficientnet_b0": (81, 81),
    "unet": (19, 19),
    "dcgan_generator": (0, 0),  # transposed convolutions alone
    "dcgan_discriminator": (5, 5),
    "progan_discriminator": (14, 14),
    "patchgan": (5, 5),
}
FORMATS = [torch.contiguous_format, torch.channels_last]

# Up to a hundred layers one behind the other, each of Winograd's rounding; what one adds, the
# others hand on. As norms: |error| / |value|.
VALUES = 20 * WINOGRAD[3]
# A maximum, or the side of a ReLU, that tips over takes its gradient with it: as norms, the square
# root of the share of the values that did, one in 10^5 and two gradients each, in a dozen layers.
GRADIENTS = 2e-2
# Normalising eight values of a channel, fifty times, enlarges rounding, PyTorch's too: there what
# its own float32 is off counts, four times, up to ten times the above.
ENLARGES = {"resnext50"}
# In float64 nothing tips over.
GRADIENTS_DOUBLE = 1e-9


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These layers are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[str, nn.Module, nn.Module]:
    """A network's name, the network, and its fused copy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = settle(NETWORKS[request.param].build(WIDTH))
    return request.param, plain, cmf.fuse(copy.deepcopy(plain))


Pair = tuple[str, nn.Module, nn.Module]


def images(name: str, format: torch.memory_format, dtype: torch.dtype) -> Tensor:
    shape = NETWORKS[name].input_shape(BATCH, NETWORKS[name].smallest)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return x.contiguous(memory_format=format)


def distance(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, as norms."""
    error = (actual.double() - expected.double()).norm()
    return (error / expected.double().norm().clamp_min(1e-12)).item()


def test_what_is_fused(pair: Pair) -> None:
    name, plain, fused = pair
    report = cmf.fusion_report(fused)
    assert (sum(row.fused for row in report), len(report)) == EXPECTED[name], str(report)
    assert list(fused.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fused.state_dict(), strict=True)


@pytest.mark.parametrize("format", FORMATS, ids=["contiguous", "channels_last"])
def test_inference(pair: Pair, format: torch.memory_format) -> None:
    name, *models = pair
    plain, fused = (copy.deepcopy(m).to(memory_format=format) for m in models)
    x = images(name, format, torch.float32)
    with torch.no_grad():
        expected, actual = plain(x), fused(x)
        assert_within(actual, expected, VALUES)
        exact = plain.double()(x.double())
        assert distance(actual, exact) < max(VALUES, 4 * distance(expected, exact))
        # from the weights that were folded and transformed by the call before
        assert torch.equal(fused(x), actual)


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of the input and all parameters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)  # of the dropouts
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    (output * weights).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return output.detach(), {"input": x.grad, **found}


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (torch.contiguous_format, torch.float32),
        (torch.channels_last, torch.float32),
        (torch.contiguous_format, torch.float64),
    ],
    ids=["contiguous", "channels_last", "float64"],
)
def test_training(pair: Pair, format: torch.memory_format, dtype: torch.dtype) -> None:
    name, *models = pair
    plain, fused = (copy.deepcopy(m).to(dtype=dtype, memory_format=format).train() for m in models)
    x = images(name, format, dtype)
    want, expected = gradients(plain, x)
    got, actual = gradients(fused, x)
    double = dtype == torch.float64
    own = None
    if name in ENLARGES and not double:
        own = gradients(copy.deepcopy(plain).double(), x.double())
    values, limit = (GRADIENTS_DOUBLE, GRADIENTS_DOUBLE) if double else (VALUES, GRADIENTS)
    if own:
        values = min(max(VALUES, 4 * distance(want, own[0])), 10 * VALUES)
    assert_within(got, want, values)
    assert actual.keys() == expected.keys()
    # what a normalisation cancels (a bias before it) is all rounding: held against the largest
    largest = max(g.norm().item() / g.numel() ** 0.5 for g in expected.values())

    def errors(found: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
        return {
            key: (found[key].double() - e.double()).norm().item()
            / max(e.norm().item(), 1e-3 * largest * e.numel() ** 0.5)
            for key, e in right.items()
        }

    if own:
        limit = min(max(GRADIENTS, 4 * max(errors(expected, own[1]).values())), 10 * GRADIENTS)
    for key, error in errors(actual, expected).items():
        assert error <= limit, key
    for (key, a), e in zip(fused.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5, msg=key)


def test_every_network_is_expected() -> None:
    assert set(EXPECTED) == set(NETWORKS)
