"""Narrower networks of the same structure, for tests."""

from __future__ import annotations


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, at least 4, a multiple of 4 where `width` is not 1."""
    return channels if width == 1 else max(4, round(channels * width / 4) * 4)
