"""The JSON that a comparison writes: what is in it, and the check of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from typing import Any

from .driver import ROOT

FORMAT = 2  # 1 had no versions
_STATUSES = ("measured", "unsupported", "failed")


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            fields = dict(re.findall(r"^([^\t\n]+)\t*: (.*)$", file.read(), re.MULTILINE))
        model = fields.get("model name", model)
        model += f" (family {fields['cpu family']}, model {fields['model']})"
        flags = fields.get("flags", "").split()
        wide = "avx512f" if "avx512f" in flags else "avx2" if "avx2" in flags else "baseline"
    except (OSError, KeyError):
        wide = "unknown"
    return {
        "cpu": model,
        "isa": wide,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Of what was measured; a peer's own is in its row."""
    import numpy
    import torch

    import crossmedia_fast
    from crossmedia_fast import native

    module = native.module
    built = f"{module.compiler}, {module.isa()}" if module is not None else native.reason
    return {
        "crossmedia_fast": crossmedia_fast.__version__,
        "native module": built,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def machine_name() -> str:
    """A folder's name for this machine."""
    info = machine()
    words = re.sub(r"[^a-z0-9]+", "-", f"{info['cpu']} {info['cores']} cores".lower())
    return words.strip("-")


def commit() -> str:
    """The checkout's commit, marked where files differ from it; "unknown" without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _process_medians(row: dict[str, Any], processes: Any) -> bool:
    """Whether there is a median a process. Older documents don't say how many there were."""
    medians = row.get("process_medians")
    if processes is None and medians is None:
        return True
    if not isinstance(medians, list) or not all(_number(m) and m > 0 for m in medians):
        return False
    return bool(medians) if processes is None else len(medians) == processes


def check(document: Any) -> list[str]:
    """What is wrong with a results document; empty where it is well-formed."""
    wrong: list[str] = []

    def expect(condition: bool, text: str) -> bool:
        if not condition:
            wrong.append(text)
        return condition

    if not expect(isinstance(document, dict), "document: expected an object"):
        return wrong
    expect(document.get("format") in (1, FORMAT), f"format: expected {FORMAT}")
    if document.get("format") != 1:
        expect(isinstance(document.get("versions"), dict), "versions: expected dict")
    for key, kind in (
        ("suite", str), ("command", str), ("date", str), ("commit", str), ("machine", dict),
        ("settings", dict), ("limits", dict), ("peers", dict), ("cases", list), ("summary", dict),
    ):  # fmt: skip
        expect(isinstance(document.get(key), kind), f"{key}: expected {kind.__name__}")
    if wrong:
        return wrong
    processes = document["settings"].get("processes")
    if processes is not None:
        whole = isinstance(processes, int) and not isinstance(processes, bool)
        expect(whole and processes > 0, "settings.processes: expected a positive number")
    for peer, row in document["peers"].items():
        expect(
            "label" in row and ("version" in row or "reason" in row), f"peers.{peer}: incomplete"
        )
    for case in document["cases"]:
        name = case.get("id", "?")
        for key in ("operations", "bytes", "limit_seconds"):
            expect(_number(case.get(key)), f"{name}.{key}: expected a number")
        for peer, row in case.get("results", {}).items():
            where = f"{name}.{peer}"
            if not expect(row.get("status") in _STATUSES, f"{where}.status: unknown"):
                continue
            if row["status"] != "measured":
                expect(bool(row.get("reason")), f"{where}.reason: missing")
                continue
            times = row.get("seconds", {})
            numbers = [times.get(key) for key in ("p20", "median", "p80")]
            if expect(all(map(_number, numbers)), f"{where}.seconds: incomplete"):
                ordered = 0 < numbers[0] <= numbers[1] <= numbers[2]
                expect(ordered, f"{where}.seconds: not positive and ordered")
            expect(
                _process_medians(row, processes),
                f"{where}.process_medians: expected a positive number a process",
            )
            expect(_number(row.get("share_of_limit")), f"{where}.share_of_limit: missing")
            expect(bool(row.get("errors")), f"{where}.errors: not validated")
    return wrong
