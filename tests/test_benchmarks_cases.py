"""The benchmark cases: sizes, counted work, and a validation that notices wrong results."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import data, work
from benchmarks.limits import Limits
from benchmarks.peers import torch_peer
from benchmarks.shapes import (
    CONV_SHAPES,
    INFERENCE,
    QUICK,
    SUITES,
    TRAINING,
    Case,
    ConvShape,
    LossShape,
    select,
    suite,
)

SMALL = ConvShape("small", 2, 2, 3, 9, 4, kernel=3, padding=1)
SMALL_LOSS = LossShape("small", "discriminator_minimax", 33)


def test_names_are_unique() -> None:
    for name in SUITES:
        ids = [case.id for case in suite(name)]
        assert len(ids) == len(set(ids))


def test_quick_names_exist() -> None:
    for name in SUITES:
        assert {case.name for case in select(name, "quick")} >= set(QUICK[name])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="nosuch"):
        select("inference", "nosuch")
    with pytest.raises(ValueError, match="suite"):
        suite("nosuch")


@pytest.mark.parametrize("shape", CONV_SHAPES, ids=lambda shape: shape.name)
def test_sizes_are_pytorchs(shape: ConvShape) -> None:
    """On meta tensors: PyTorch's own shape rules against the ones that the bytes are counted by."""
    import torch

    operands = {
        "input": torch.empty(1, shape.channels, shape.size, shape.size, device="meta"),
        "weight": torch.empty(
            shape.filters,
            shape.channels // shape.groups,
            shape.kernel,
            shape.kernel,
            device="meta",
        ),
        "bias": torch.empty(shape.filters, device="meta"),
    }
    output = torch_peer.unfused_function(Case(shape, INFERENCE))(operands)
    assert output.shape == (1, shape.filters, shape.pooled_size, shape.pooled_size)


def test_work_by_hand() -> None:
    # 2 x 4 x 9 x 9 outputs of 27 taps; pooled to 4 x 4
    needed = work.count(Case(SMALL, INFERENCE))
    assert needed.operations == 2 * (2 * 4 * 81 * 27)
    assert needed.bytes == 4 * (2 * 3 * 81 + 4 * 27 + 4 + 2 * 4 * 16)
    assert work.count(Case(SMALL, TRAINING)).operations == 3 * needed.operations
    assert work.count(Case(SMALL_LOSS, TRAINING)).bytes == 4 * 33 * 4  # two read, two written


def test_limit_is_the_longer_one() -> None:
    limits = Limits(1, 100.0, {10: 10.0, 1000: 5.0})
    assert limits.bandwidth(11) == 5.0
    assert limits.bandwidth(5000) == 5.0
    assert work.Work(1000, 10).limit_seconds(limits) == 10.0
    assert work.Work(1000, 10).bound(limits) == "arithmetic"
    assert work.Work(100, 1000).limit_seconds(limits) == 200.0


VARIANTS = ("fused", "eager")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", [INFERENCE, TRAINING])
@pytest.mark.parametrize("shape", [SMALL, SMALL_LOSS], ids=["conv", "loss"])
def test_variants_compute_the_same(shape: ConvShape | LossShape, mode: str, variant: str) -> None:
    case = Case(shape, mode)
    arrays = data.make_arrays(case)
    want = data.expected(case, arrays)
    got = torch_peer.build(case, arrays, 1, variant).outputs()
    assert set(got) >= set(want)
    data.compare(got, want)


@pytest.mark.parametrize("name", ["output", "grad_input", "grad_weight", "grad_bias"])
def test_wrong_results_are_noticed(name: str) -> None:
    case = Case(SMALL, TRAINING)
    arrays = data.make_arrays(case)
    want = data.expected(case, arrays)
    data.compare(want, want)
    for wrong in (want[name] * 1.02, want[name].astype(np.float16), want[name] * np.nan):
        if name in ("grad_weight", "grad_bias") and wrong.dtype == np.float16:
            continue  # sums are compared as norms, to 1e-2
        with pytest.raises(data.Mismatch, match=name):
            data.compare({**want, name: wrong}, want)
    with pytest.raises(data.Mismatch, match="missing"):
        data.compare({k: v for k, v in want.items() if k != name}, want)


def test_fused_keeps_less_for_backward() -> None:
    case = Case(SMALL, TRAINING)
    arrays = data.make_arrays(case)
    kept = {}
    for variant in VARIANTS:
        prepared = torch_peer.build(case, arrays, 1, variant)
        assert prepared.kept_bytes is not None
        kept[variant] = prepared.kept_bytes()
    # eager: the activated output, the pooled output's indices (8 bytes an element)
    assert kept["eager"] >= 4 * 2 * 4 * 81 + 8 * 2 * 4 * 16
    assert kept["fused"] < kept["eager"]
