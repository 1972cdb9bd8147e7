"""The overhead suite for pytest-benchmark: calls whose arithmetic takes microseconds.

    pytest benchmarks/test_overhead.py --benchmark-enable --benchmark-json=overhead.json

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
    if peer.module == "torch_peer" and "overhead" in peer.suites and "compile" not in peer.name
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", suite("overhead"), ids=lambda case: case.id)
def test_overhead(measure: Measure, case: Case, variant: str) -> None:
    measure(case, variant)
