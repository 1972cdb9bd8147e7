"""The benchmark of the plan's model: layers, what a wrong choice costs, and a run of it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

import crossmedia_fast as cmf
from benchmarks import plan_costs
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import prepared

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)


def test_layers_are_drawn_by_the_seed_and_within_the_limits() -> None:
    source, again = random.Random(3), random.Random(3)
    for _ in range(50):
        layer = plan_costs.draw(source)
        assert layer == plan_costs.draw(again)
        assert plan_costs.LEAST_WORK <= layer.work <= plan_costs.MOST_WORK
        assert layer.conv_size >= 2


def test_what_is_lost_is_the_chosen_algorithm_over_the_best() -> None:
    worth = plan_costs.Layer(4, 64, 32, 64, 3, 1, 1, True, False)
    work = {name: worth.work_of(name, "inference") for name in plan_costs.ALGORITHMS}
    assert 1.2 * work["winograd"] < min(work["patches"], work["epilogue"])
    times = {"winograd": 2.0, "patches": 2.5, "epilogue": 3.0}
    assert plan_costs.lost(worth, times, "inference") == 0.0
    times = {"winograd": 3.0, "patches": 2.0, "epilogue": 2.5}
    assert plan_costs.lost(worth, times, "inference") == pytest.approx(math.log(1.5))


def test_a_run_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_costs, "MOST_WORK", 1e6)
    out = tmp_path / "layers.json"
    arguments = ["plan_costs", "--seconds", "0", "--turn", "0", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    plan = prepared.make_plan
    plan_costs.main()
    assert prepared.make_plan is plan  # nothing stays forced
    assert prepared.forced_algorithm is None
    printed = capsys.readouterr().out
    assert "inference: " in printed
    assert "lost over 1 layers" in printed
    (row,) = map(json.loads, out.read_text().splitlines())
    for mode in plan_costs.MODES:
        assert all(row["seconds"][mode][name] > 0 for name in plan_costs.ALGORITHMS)


def test_forces_what_it_says() -> None:
    tensors = (torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3))
    for name in plan_costs.ALGORITHMS:
        with plan_costs.forced(name):
            assert (
                cmf.explain(*tensors, padding=1, activation="relu", pool="none").algorithm == name
            )
