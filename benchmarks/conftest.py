"""What every suite's tests share: the machine's limits, and how a figure gets its physics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import data, limits, work
from benchmarks.peers import Prepared, Unsupported, torch_peer
from benchmarks.shapes import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=torch.get_num_threads())


@pytest.fixture(scope="session")
def machine_limits(request: pytest.FixtureRequest) -> limits.Limits:
    return limits.measure_apart(request.config.getoption("--threads"), seconds=0.2)


class Measure:
    """Prepares a case, checks what it computes, times it."""

    def __init__(self, benchmark: Any, machine: limits.Limits) -> None:
        self.benchmark, self.limits = benchmark, machine

    def __call__(self, case: Case, variant: str) -> None:
        arrays = data.make_arrays(case)
        try:
            prepared: Prepared = torch_peer.build(case, arrays, self.limits.threads, variant)
        except Unsupported as error:
            pytest.skip(str(error))
        errors = data.compare(prepared.outputs(), data.expected(case, arrays))
        needed = work.count(case)
        limit = needed.limit_seconds(self.limits)
        self.benchmark.group = case.id
        self.benchmark.extra_info.update(
            description=case.description,
            errors=errors,
            operations=needed.operations,
            bytes=needed.bytes,
            bound=needed.bound(self.limits),
            limit_seconds=limit,
            threads=self.limits.threads,
        )
        if prepared.kept_bytes is not None:
            self.benchmark.extra_info["kept_bytes"] = prepared.kept_bytes()
        self.benchmark(prepared.call)
        if self.benchmark.stats is not None:  # None where benchmarks are disabled
            seconds = self.benchmark.stats.stats.median
            self.benchmark.extra_info.update(
                percent_of_limit=100 * limit / seconds,
                gflops=needed.operations / seconds / 1e9,
                gbytes_per_second=needed.bytes / seconds / 1e9,
            )


@pytest.fixture
def measure(benchmark: Any, machine_limits: limits.Limits) -> Measure:
    return Measure(benchmark, machine_limits)
