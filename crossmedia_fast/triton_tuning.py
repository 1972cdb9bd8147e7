"""Chooses among the few configurations of a kernel by measuring them once per class of shapes.

The choice is kept in memory and in a JSON file in ``CROSSMEDIA_FAST_CACHE_DIR`` (by default
``$XDG_CACHE_HOME/crossmedia_fast``, else ``~/.cache/crossmedia_fast``), so that the next process
starts with it. ``CROSSMEDIA_FAST_TUNE=0`` measures nothing and takes the first configuration, which
is also what runs where nothing can be measured: in the interpreter, while a graph is traced or
captured.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from . import triton_support
from .triton_launch import KernelCall

log = logging.getLogger(__name__)


class Config(NamedTuple):
    """A tile: rows, columns and reduced elements a step; and how it is run."""

    rows: int
    columns: int
    reduced: int
    num_warps: int
    num_stages: int


_chosen: dict[str, dict[str, list[int]]] = {}  # by device, then by class of shapes
_loaded: Path | None = None


def size_class(count: int) -> int:
    """Sizes of one power of two are one class: the best tile changes slower than that."""
    return max(count - 1, 0).bit_length()


def cache_file() -> Path:
    """Where choices are kept."""
    folder = os.environ.get("CROSSMEDIA_FAST_CACHE_DIR")
    if folder:
        return Path(folder) / "triton_tuning.json"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "crossmedia_fast/triton_tuning.json"


def choose(
    key: str,  # kernel, dtype and class of shapes
    device: torch.device,
    candidates: Sequence[Config],
    call: Callable[[Config], KernelCall],
) -> Config:
    """The fastest of `candidates`; the first where it can't be measured."""
    if len(candidates) == 1 or device.type != "cuda" or triton_support.interpreting():
        return candidates[0]
    name = _device_name(device)
    _load()
    known = _chosen.setdefault(name, {}).get(key)
    if known is not None and Config(*known) in candidates:
        return Config(*known)
    if not can_measure():
        return candidates[0]
    log.info("tuning %s on %s: %d configurations, once", key, name, len(candidates))
    times = {}
    for config in candidates:
        # one that needs more shared memory or registers than this device has is no candidate
        with contextlib.suppress(_out_of_resources()):
            times[config] = _milliseconds(call(config))
    best = min(times, key=times.__getitem__, default=candidates[0])
    log.info("tuned %s: %s, %.3f ms", key, best, times.get(best, float("nan")))
    _chosen[name][key] = list(best)
    _store()
    return best


def can_measure() -> bool:
    """Whether launches can be timed now; where not, the choice may be another later."""
    return (
        os.environ.get("CROSSMEDIA_FAST_TUNE", "1") != "0"
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch.cuda.is_current_stream_capturing()
    )


@functools.cache
def _device_name(device: torch.device) -> str:
    import triton

    return f"{torch.cuda.get_device_name(device)}, Triton {triton.__version__}"


def _out_of_resources() -> type[Exception]:
    from triton.runtime.errors import OutOfResources

    return OutOfResources


def _milliseconds(call: KernelCall, repeats: int = 7) -> float:
    """The median of a few launches, after one that compiles and one that warms up."""
    call()
    call()
    times = []
    for _ in range(repeats):
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def _load() -> None:
    """Read the file once; what isn't such a file is as good as none."""
    global _loaded
    path = cache_file()
    if _loaded == path:
        return
    _loaded = path
    _chosen.clear()
    try:
        stored = json.loads(path.read_text())
        for name, choices in stored.items():
            kept = {key: [int(x) for x in value] for key, value in choices.items()}
            _chosen[name] = {key: value for key, value in kept.items() if len(value) == 5}
    except (OSError, ValueError, AttributeError, TypeError):
        _chosen.clear()


def _store() -> None:
    """Write beside the file and rename: another process reads the old one or the new one."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".json", delete=False
        ) as beside:
            json.dump(_chosen, beside, indent=1, sort_keys=True)
        os.replace(beside.name, path)
    except OSError as error:
        log.info("the choice is not kept on disk: %s", error)
