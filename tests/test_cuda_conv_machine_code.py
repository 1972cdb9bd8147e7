"""The machine code of the CUDA convolutions, where this build has it: nothing lies in local memory,
and products run on the matrix units."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from crossmedia_fast import native


def _cuobjdump() -> str | None:
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton")  # whose wheel brings one
        bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        found = str(bundled) if bundled.exists() else None
    return found


def dump(*options: str) -> str:
    if native.module is None or native.module.why_no_cuda:
        pytest.skip("built without CUDA")
    program = _cuobjdump()
    if program is None:
        pytest.skip("no cuobjdump")
    command = [program, *options, str(native.module.__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_nothing_lies_in_local_memory() -> None:
    usage = dump("-res-usage")
    kernels = re.findall(r"Function (\w*multiply_(?:tile|pixels)\w*):\s*(.*)", usage)
    targets = len(set(re.findall(r"sm_\d+", usage)))
    # three types and float32's own products; by chunks in two sizes of tile, and by elements
    assert len(kernels) >= 4 * (3 + 2 + 2) * max(targets, 1)
    for name, resources in kernels:
        assert "STACK:0 " in resources, name
        assert "LOCAL:0 " in resources, name


def test_products_run_on_the_matrix_units() -> None:
    instructions: dict[str, Counter[str]] = {}
    name = ""
    for line in dump("-sass", "-arch", "sm_90").splitlines():
        if found := re.search(r"Function : (\w+)", line):
            name = found[1]
        elif found := re.search(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", line):
            instructions.setdefault(name, Counter())[found[1]] += 1
    checked = 0
    for name, counts in instructions.items():
        if "multiply_tile" not in name and "multiply_pixels" not in name:
            continue
        checked += 1
        products = sum(n for text, n in counts.items() if text.startswith("HMMA"))
        assert (products == 0) == ("MultiplyE3" in name), name
        # 16 bytes a copy, past the registers
        wide = [text for text in counts if text.startswith("LDGSTS")]
        assert all("128" in text for text in wide), name
        assert wide or "multiply_pixels" in name, name
    assert checked >= 4 * (3 + 2 + 2)
