"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from crossmedia_fast.fusion.bound import BoundCall

from .conv_native_launch import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Hundreds of small references: starting threads would cost more than they do."""
    with threads(1):
        yield


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call that was found bound, whether it ran."""
    seen: list[bool] = []
    run = BoundCall.run

    def record(self: BoundCall, *arguments: Any) -> Tensor | None:
        y = run(self, *arguments)
        seen.append(y is not None)
        return y

    monkeypatch.setattr(BoundCall, "run", record)
    return seen
