"""The training suite for pytest-benchmark: layers of real networks, forward and backward.

    pytest benchmarks/test_training.py --benchmark-enable --benchmark-json=training.json

All variants run in this one process; benchmarks.compare gives each its own, and turns.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import Measure
from benchmarks.peers import PEERS
from benchmarks.shapes import Case, suite

# torch.compile takes seconds a shape: benchmarks.compare has it, in processes of its own.
VARIANTS = [
    peer.name
    for peer in PEERS.values()
    if peer.module == "torch_peer" and "training" in peer.suites and "compile" not in peer.name
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", suite("training"), ids=lambda case: case.id)
def test_training(measure: Measure, case: Case, variant: str) -> None:
    measure(case, variant)
