"""The benchmark of random layers: what it draws, that both sides compute the same, and a run."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks import sweep
from crossmedia_fast import native

from .tolerances import WINOGRAD, WINOGRAD_GRADIENTS, assert_within

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)


def test_layers_are_drawn_by_the_seed_and_within_the_limits() -> None:
    source, again = random.Random(3), random.Random(3)
    for kind in sweep.KINDS:
        for _ in range(10):
            layer = sweep.draw(source, kind)
            assert layer == sweep.draw(again, kind)
            assert sweep.LEAST_WORK <= layer.work <= sweep.MOST_WORK
            assert min(layer.out_size) >= 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", sweep.KINDS)
def test_both_sides_compute_the_same(
    kind: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MOST_WORK", 5e6)
    monkeypatch.setattr(sweep, "LEAST_WORK", 1e5)
    torch.manual_seed(0)
    with torch.inference_mode():
        layer = sweep.draw(random.Random(kind), kind)
        ours, eager = sweep.calls(layer, False, channels_last)
        assert ours().shape[1] == layer.filters
        assert_within(ours(), eager(), 2 * WINOGRAD[5])
    # what is no kink: beside one, and at nearly equal maxima, both round to other gradients
    smooth = {name: sweep.ACTIVATIONS[name] for name in ("silu", "identity")}
    monkeypatch.setattr(sweep, "ACTIVATIONS", smooth)
    monkeypatch.setattr(sweep, "POOLS", ("none", "avg"))
    layer = sweep.draw(random.Random(kind), kind)
    ours, eager = sweep.calls(layer, True, channels_last)
    gradients = ours()
    assert len(gradients) == (2 if sweep.KINDS[kind].first else 3)
    for a, e in zip(gradients, eager(), strict=True):
        assert_within(a, e, 2 * WINOGRAD_GRADIENTS[5])


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_run_prints_the_slowest(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "MOST_WORK", 2e6)
    arguments = ["sweep", "--mode", mode, "--kinds", "patch,rows", "--layers", "2", "--turn", "0"]
    monkeypatch.setattr("sys.argv", [*arguments, "--threads", str(torch.get_num_threads())])
    sweep.main()
    printed = capsys.readouterr().out
    assert f"{mode}: " in printed
    assert "patch " in printed
    assert printed.count("eager ") >= 2


def test_an_unknown_kind_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sweep", "--kinds", "9x9"])
    with pytest.raises(SystemExit):
        sweep.main()
