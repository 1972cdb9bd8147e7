"""Functions, types and modules by name, so that what holds them can be pickled."""

from __future__ import annotations

import importlib
import pickle
import types
from typing import Any

import torch
import torch.nn.functional as F


def pack(value: Any) -> Any:
    """`value` in a form that pickles: torch's functions and modules by where they are found."""
    if isinstance(value, types.ModuleType):
        return ("module", value.__name__, "")
    name = getattr(value, "__name__", None)
    if isinstance(name, str) and callable(value):
        for place in (F, torch):
            if getattr(place, name, None) is value:
                return ("attribute", place.__name__, name)
    return ("value", value, "")


def unpack(packed: Any) -> Any:
    """What `pack` was given."""
    kind, value, name = packed
    if kind == "module":
        return importlib.import_module(value)
    if kind == "attribute":
        return getattr(importlib.import_module(value), name)
    return value


def picklable(value: Any) -> bool:
    """Whether `pack`'s form of `value` pickles."""
    try:
        pickle.dumps(pack(value))
    except Exception:  # any object may raise anything from its own __reduce__
        return False
    return True
