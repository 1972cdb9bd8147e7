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


def resources() -> dict[str, list[str]]:
    """What each kernel of the convolutions uses, once a GPU that the build is for."""
    usage: dict[str, list[str]] = {}
    for name, line in re.findall(
        r"Function (\w*multiply_(?:tile|pixels)\w*):\s*(.*)", dump("-res-usage")
    ):
        usage.setdefault(name, []).append(line)
    # three types and float32's own products; by chunks in two sizes of tile, and by elements
    assert len(usage) == 4 * (3 + 2 + 2)
    return usage


def test_nothing_lies_in_local_memory() -> None:
    for name, lines in resources().items():
        for line in lines:
            assert "STACK:0 " in line, name
            assert "LOCAL:0 " in line, name


def test_products_run_on_the_matrix_units() -> None:
    # float16's are bfloat16's but for one instruction, the smaller tiles are the larger ones cut
    names = [n for n in resources() if "MultiplyE1" not in n and "ELi64ELb" not in n]
    assert len(names) == 3 * (2 + 1 + 2)
    instructions: dict[str, Counter[str]] = {}
    name = ""
    for line in dump("-sass", "-arch", "sm_90", "-fun", ",".join(names)).splitlines():
        if found := re.search(r"Function : (\w+)", line):
            name = found[1]
        elif found := re.search(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", line):
            instructions.setdefault(name, Counter())[found[1]] += 1
    assert sorted(instructions) == sorted(names)
    for name, counts in instructions.items():
        products = sum(n for text, n in counts.items() if text.startswith("HMMA"))
        assert (products == 0) == ("MultiplyE3" in name), name  # float32 as it is
        # 16 bytes a copy, past the registers
        wide = [text for text in counts if text.startswith("LDGSTS")]
        assert all("128" in text for text in wide), name
        assert wide or "multiply_pixels" in name, name  # whose elements are single ones
