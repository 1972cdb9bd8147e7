"""The models suite: the same network for everyone, counted work, and memory that is measured."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from benchmarks import memory, models
from benchmarks.networks import NETWORKS
from benchmarks.shapes import INFERENCE, MODEL_SHAPES, TRAINING, Case, ModelShape, suite

LENET = next(shape for shape in MODEL_SHAPES if shape.name == "lenet5")


def test_every_network_is_measured() -> None:
    assert {shape.name for shape in MODEL_SHAPES} == set(NETWORKS)


@pytest.mark.parametrize("case", suite("models"), ids=lambda case: case.id)
def test_sizes(case: Case) -> None:
    """On meta tensors: every layer takes what it is given."""
    shape = models.output_shape(case)
    assert shape[0] == case.batch
    assert Case.from_json(case.to_json()) == case
    assert str(case.size) in case.description


def test_a_network_is_the_same_wherever_it_is_made() -> None:
    case = Case(ModelShape("progan_discriminator", 1, 128, 1, 128, width=0.125), TRAINING)
    one = models.network(case)
    torch.rand(3)
    other = models.network(case)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert one.training
    assert not models.network(Case(LENET, INFERENCE)).training


def test_nothing_is_dropped_in_training() -> None:
    model = models.network(Case(ModelShape("alexnet", 1, 64, 1, 64, width=0.0625), TRAINING))
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert dropouts
    assert all(m.p == 0 for m in dropouts)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), model(x))


def test_work_of_lenet_by_hand() -> None:
    conv1, conv2 = 28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25
    linear = 400 * 120 + 120 * 84 + 84 * 10
    forward = 2 * 64 * (conv1 + conv2 + linear)
    parameters = 6 * 26 + 16 * 151 + 401 * 120 + 121 * 84 + 85 * 10
    elements = 64 * (28 * 28 + 10)
    inference = models.count(Case(LENET, INFERENCE))
    assert (inference.operations, inference.bytes) == (forward, 4 * (parameters + elements))
    training = models.count(Case(LENET, TRAINING))
    assert training.operations == 3 * forward - 2 * 64 * conv1  # the images get no gradient
    assert training.bytes == 4 * (3 * parameters + elements)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not say")
def test_the_peak_of_memory() -> None:
    kept = []

    def call() -> None:
        kept[:] = [torch.ones(8 << 20)]  # 32 MiB, beside them 64 MiB for a moment
        torch.ones(16 << 20)

    peak = memory.peak_bytes(call)
    if peak is None:
        pytest.skip("/proc/self/clear_refs can't be written here")
    assert 90 << 20 < peak < 130 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not say")
def test_what_was_there_before_a_call_counts_if_told() -> None:
    before = memory.resident_bytes()
    kept = torch.ones(8 << 20)  # 32 MiB, as weights that a runtime has prepared
    peak = memory.peak_bytes(lambda: torch.ones(4 << 20), before)
    if peak is None:
        pytest.skip("/proc/self/clear_refs can't be written here")
    assert kept.sum() == 8 << 20
    assert 45 << 20 < peak < 70 << 20
