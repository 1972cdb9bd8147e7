"""The CUDA backend's algorithms, and which calls each of them takes."""

from __future__ import annotations

from .kernels import Call, NativeConv


class Choice:
    """kernels.Choice: PyTorch's convolution alone, or with the epilogue behind it."""

    def __init__(self, call: Call) -> None:
        self.why_not: dict[str, str] = {}

    def native(self, algorithm: str) -> NativeConv | None:
        """The algorithm, ready to run; None where it is no convolution of the backend's own."""
        return None


def choose(call: Call) -> Choice:
    """What the backend makes of a call."""
    return Choice(call)
