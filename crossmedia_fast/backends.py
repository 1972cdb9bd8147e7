"""Which implementations exist here, which one is asked for, and why one can't run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from . import cuda_support, native, triton_support

NAMES = ("cpu", "cuda", "triton", "reference")
# cuda before triton: what was measured for a device comes before what was written for any
_SUPPORT: dict[str, Any] = {"cuda": cuda_support, "triton": triton_support}
_FLOATS = ("float32", "float64", "float16", "bfloat16")


class BackendInfo(NamedTuple):
    """A row of :func:`backends`."""

    name: str
    available: bool
    reason: str  # why not available, or ""
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]


class BackendTable(tuple[BackendInfo, ...]):
    """The rows of :func:`backends`; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        header = ("backend", "available", "devices", "dtypes", "why not")
        rows = [
            (
                row.name,
                "yes" if row.available else "no",
                ", ".join(row.devices) or "-",
                ", ".join(row.dtypes),
                row.reason,
            )
            for row in self
        ]
        widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
        lines = (header, tuple("-" * width for width in widths), *rows)
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    __repr__ = __str__


def why_unavailable(name: str) -> str:
    """Why backend `name` can't run in this process; "" where it can."""
    if name == "cpu":
        return native.reason
    support = _SUPPORT.get(name)
    return support.why_unavailable() if support else ""


def _devices(name: str) -> tuple[str, ...]:
    """The types of device that backend `name` runs on."""
    if name == "reference":
        return ("any",)
    support = _SUPPORT.get(name)
    return support.devices() if support else ("cpu",)


def _dtypes(name: str) -> tuple[str, ...]:
    support = _SUPPORT.get(name)
    return support.DTYPES if support else _FLOATS


def backends() -> BackendTable:
    """A row a backend: name, available, why not, devices, dtypes.

    >>> import crossmedia_fast as cmf
    >>> {row.name for row in cmf.backends()} == {"cpu", "cuda", "triton", "reference"}
    True
    """
    return BackendTable(
        BackendInfo(name, not (why := why_unavailable(name)), why, _devices(name), _dtypes(name))
        for name in NAMES
    )


def check_name(name: str, argument: str = "backend") -> str:
    """`name` if it is a backend's, else ValueError (TypeError where it is no string)."""
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a string or None, got {type(name).__name__}")
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _from_environment() -> str | None:
    name = os.environ.get("CROSSMEDIA_FAST_BACKEND", "")
    return check_name(name, "CROSSMEDIA_FAST_BACKEND") if name else None


# One setting for the process, as torch.backends' own flags: torch.compile guards on a module global
# and can't read a context variable.
_requested: str | None = _from_environment()


def requested() -> str | None:
    """The backend asked for by `use_backend` or the environment; None = choose."""
    return _requested


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op of the block on backend `name`; None = choose.

    Like ``torch.backends.cudnn.flags`` it holds for the whole process while the block runs. A
    backend that can't run raises with the reason where an op is called: nothing falls back
    silently. An op's own ``backend=`` argument comes before the block, the block before the
    environment variable ``CROSSMEDIA_FAST_BACKEND``.
    """
    global _requested
    before = _requested
    _requested = None if name is None else check_name(name, "name")
    try:
        yield
    finally:
        _requested = before


def _why_not_these(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why backend `name` does not take tensors of this device and dtype; "" where it does."""
    if name == "reference":
        return ""
    devices = _devices(name)
    # no kernel runs on the meta device: shapes alone are asked for, and the CPU's plan gives them
    if device.type not in devices and not (name == "cpu" and device.type == "meta"):
        return f"runs on {' and '.join(devices)} tensors, the input is on {device.type}"
    if str(dtype).removeprefix("torch.") not in _dtypes(name):
        return f"takes {', '.join(_dtypes(name))}, the input is {dtype}"
    return ""


def resolve(
    backend: str | None, device: torch.device, dtype: torch.dtype
) -> tuple[str, dict[str, str]]:
    """The backend that runs on `device` and, for every other one, why it doesn't.

    Raises NotImplementedError with the reason where a named backend can't run.
    """
    named = backend if backend is not None else requested()
    reasons = {}
    for name in NAMES:
        reason = why_unavailable(name) or _why_not_these(name, device, dtype)
        if reason:
            reasons[name] = reason
    if named is not None:
        check_name(named)
        if named in reasons:
            raise NotImplementedError(f"backend {named!r} can't run here: {reasons[named]}")
        for name in NAMES:
            if name != named:
                reasons.setdefault(name, f"backend {named!r} was asked for by name")
        return named, reasons
    chosen = next(name for name in NAMES if name not in reasons)
    for name in NAMES:
        if name != chosen:
            reasons.setdefault(name, f"backend {chosen!r} comes first")
    return chosen, reasons
