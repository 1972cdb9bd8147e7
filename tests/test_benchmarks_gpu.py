"""The GPU benchmark's cases, run tiny and untimed in the emulator: each way computes the right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "crossmedia_fast._cuda_shim", reason="built without the emulator (CROSSMEDIA_FAST_CUDA_SHIM)"
)
ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "CROSSMEDIA_FAST_CUDA_SHIM": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_dry_run() -> None:
    picked = r"mnist\.conv1.*(float32|float16):con|dcgan\.d2:training:bf|max3s2.*last|hinge"
    done = run("--dry-run", "--cases", picked)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    notes = {(row[1], row[6]) for row in rows if row[1].startswith("cuda")}
    assert ("cuda epilogue", "") in notes
    assert ("cuda", "") in notes
    # a case that picks nothing is an error, not a success
    assert run("--dry-run", "--cases", "no such case").returncode == 1
