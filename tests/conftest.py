"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .conv_native_launch import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Hundreds of small references: starting threads would cost more than they do."""
    with threads(1):
        yield
