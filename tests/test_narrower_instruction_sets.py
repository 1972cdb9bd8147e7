"""The kernels of the instruction sets that a processor has beside the one it runs.

An instruction set is chosen when the module is loaded, so each has processes of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossmedia_fast import native

if native.module is None:
    pytest.skip(native.reason, allow_module_level=True)

_TESTS = Path(__file__).resolve().parent
_FILES = sorted(
    {
        path
        for pattern in ("test_*_native.py", "test_conv_few_channels_*.py", "test_linear.py")
        for path in _TESTS.glob(pattern)
    }
)
_PARTS = 3  # of the files: as many can run side by side
_OTHERS = [
    name for name, _, missing in native.module.isas() if not missing and name != native.module.isa()
]


@pytest.mark.skipif("CROSSMEDIA_FAST_ISA" in os.environ, reason="one was asked for")
@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("isa", _OTHERS)
def test_kernels(isa: str, part: int) -> None:
    files = map(str, _FILES[part::_PARTS])
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files],
        env={**os.environ, "CROSSMEDIA_FAST_ISA": isa},
        cwd=_TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed" in result.stdout
