"""Loads the compiled module, or remembers why it can't be loaded.

`module` is the pybind11 module or None; `reason` is "" or why `module` is None. Nothing else in the
package imports `_native`, so a machine without a compiler needs no other special case.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

# torch brings libgomp.so.1 into the process; the native module then binds to that same copy. Two
# OpenMP runtimes in one process would each keep a pool of spinning threads.
import torch

module: ModuleType | None = None
reason: str = ""

try:
    module = importlib.import_module("crossmedia_fast._native")
except ModuleNotFoundError as error:
    if error.name != "crossmedia_fast._native":
        raise
    reason = (
        "the native module was not built (installed with CROSSMEDIA_FAST_NATIVE=0, or a source "
        "tree that was never built: `make native`)"
    )
except Exception as error:  # a shared library that doesn't load, an ISA that this CPU lacks
    reason = f"the native module did not load: {error}"

# libgomp's thread pool does not survive fork(): a parallel region in the child would wait for
# threads that don't exist there. One thread needs no pool.
_forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def has_matrix_unit() -> bool:
    """Whether products of tiles run on a unit of their own (AMX), not on plain code."""
    return module is not None and module.isa() == "amx"


def has_wide_vectors() -> bool:
    """Whether a vector is 64 bytes (AVX-512)."""
    return module is not None and module.isa() in ("avx512", "amx")


def thread_count() -> int:
    """How many threads a kernel may use now."""
    return 1 if _forked else torch.get_num_threads()
