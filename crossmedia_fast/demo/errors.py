"""What goes wrong for a reason the user can mend: one line on stderr and exit status 2."""

from __future__ import annotations

import importlib
from types import ModuleType


class DemoError(Exception):
    """A wrong path, a broken file, flags that contradict each other. The message is one line."""


def require(module: str) -> ModuleType:
    """Import an optional dependency of the demo, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DemoError(
            f"the demo needs {module.split('.')[0]} ({error}): pip install crossmedia_fast[demo]"
        ) from None
