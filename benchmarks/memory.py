"""How much memory a process needs, as Linux counts it; None where the system doesn't say."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    with open("/proc/self/status") as file:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found.group(1)) * 1024


def _of_files() -> int:
    """Libraries' code and the like: shared by processes, and read in when it first runs."""
    return _status("RssFile")


def resident_bytes() -> int | None:
    """What the process holds by now of its own, without what it has freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what earlier calls have freed shall count when it is taken again
    try:
        return _status("VmRSS") - _of_files()
    except OSError:
        return None


def peak_bytes(call: Callable[[], object], before: int | None = None) -> int | None:
    """How far the process is above `before` during a call; unless told, above its state now."""
    now = resident_bytes()
    if now is None:
        return None
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the highest mark begins anew
    except OSError:
        return None
    call()
    return _status("VmHWM") - _of_files() - (now if before is None else before)
