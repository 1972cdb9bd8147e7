"""``python -m crossmedia_fast info``: everything a bug report needs, in one screen."""

from __future__ import annotations

import argparse
import os
import platform
from typing import Any

import torch

from . import __version__, native
from .backends import backends, requested
from .precision import get_conv_precision


def _openmp_runtimes() -> list[str]:
    """The OpenMP runtimes in this process; more than one is a defect of the installation."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return ["unknown: pip install 'crossmedia_fast[info]' (threadpoolctl)"]
    return [
        f"{pool['prefix']} {pool.get('version') or ''} ({pool['num_threads']} threads): "
        f"{pool['filepath']}"
        for pool in threadpool_info()
        if pool["user_api"] == "openmp"
    ]


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["none that PyTorch sees"]
    return [
        "{}, sm_{}{}".format(torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i))
        for i in range(torch.cuda.device_count())
    ]


def _isa_lines() -> list[str]:
    module = native.module
    if module is None:
        return []
    return [
        f"{name}{' (in use)' if name == module.isa() else ''}: "
        f"{', '.join(features) or 'no feature beyond the architecture'}"
        f"{f' — this CPU lacks {missing}' if missing else ''}"
        for name, features, missing in module.isas()
    ]


def collect() -> dict[str, Any]:
    """The facts as a dictionary: section -> text or list of lines."""
    module = native.module
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    native_build: list[str] = [f"not loaded: {native.reason}"]
    if module is not None:
        native_build = [
            f"loaded: {module.__file__}",
            f"compiler {module.compiler}, OpenMP {'on' if module.openmp else 'off'}",
        ]
    environment = [
        f"{name}={os.environ[name]}"
        for name in sorted(os.environ)
        if name.startswith("CROSSMEDIA_FAST")
    ]
    return {
        "crossmedia_fast": __version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Triton": triton_version,
        "platform": platform.platform(),
        "CPU": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "CPU features": ", ".join(module.cpu_features()) if module is not None else "unknown",
        "native module": native_build,
        "instruction sets": _isa_lines(),
        "OpenMP runtimes": _openmp_runtimes(),
        "GPUs": _gpus(),
        "backend asked for": requested() or "none: chosen by the plan",
        "convolution precision": get_conv_precision(),
        "environment": environment or ["no CROSSMEDIA_FAST variable is set"],
        "backends": str(backends()).splitlines(),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    facts = collect()
    if arguments.json:
        import json

        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        for i, line in enumerate(lines):
            print(f"{name if i == 0 else '':{width}}  {line}".rstrip())
    return 0
