"""The losses suite for pytest-benchmark: GAN losses and their gradients.

    pytest benchmarks/test_losses.py --benchmark-enable --benchmark-json=losses.json

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
    if peer.module == "torch_peer" and "losses" in peer.suites and "compile" not in peer.name
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", suite("losses"), ids=lambda case: case.id)
def test_losses(measure: Measure, case: Case, variant: str) -> None:
    measure(case, variant)
