"""What nvcc made of the CUDA kernels of this build: every kernel for every GPU, and what it takes.

Registers and shared memory decide how many threads a multiprocessor runs at once, and so how many
loads are on their way: these kernels are bound by memory.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from crossmedia_fast import native

from . import cubins

pytestmark = pytest.mark.skipif(
    native.module is None or bool(native.module.why_no_cuda),
    reason=native.reason or (native.module and native.module.why_no_cuda) or "built",
)

# blocks of 256 threads that a multiprocessor must have room for
BLOCKS = {
    "act_forward": 5,
    "act_pool_pairs_forward": 5,
    "act_pool_forward": 4,
    "act_backward": 4,
    "act_pool_pairs_backward": 4,
    "act_pool_windows_backward": 4,
    "act_pool_backward": 3,
    "add_partial_sums": 4,
    "gan_loss_reduced": 4,
    "gan_loss_elements": 4,
    "gan_loss_sum": 4,
}
REGISTERS, SHARED = 65536, 100 << 10  # of a multiprocessor; 8.6 has the least shared memory
THREADS = 256


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, cubins.Resources]]:
    """The kernel's name in C++, and its row."""
    assert native.module is not None
    found = cubins.resources(Path(native.module.__file__ or ""))
    return list(zip(cubins.readable([row.kernel for row in found]), found, strict=True))


def family(name: str) -> str:
    return next((f for f in sorted(BLOCKS, key=len, reverse=True) if f in name), "")


def test_every_kernel_is_there_for_every_gpu(rows: list[tuple[str, cubins.Resources]]) -> None:
    assert native.module is not None
    expected = {80, 90} | ({100} if native.module.cuda.runtime_version() >= 12080 else set())
    architectures: dict[str, set[int]] = {}
    for name, row in rows:
        architectures.setdefault(name, set()).add(row.architecture)
    for name, found in architectures.items():
        assert found >= expected, name
    assert {family(name) for name in architectures} >= set(BLOCKS)
    # and for those to come
    assert 80 in cubins.intermediate(Path(native.module.__file__ or ""))


def test_nothing_is_spilled(rows: list[tuple[str, cubins.Resources]]) -> None:
    for name, row in rows:
        # double's functions of two hundred steps may keep a few values on the stack
        most = 64 if "double" in name else 0
        assert not family(name) or row.frame <= most, (name, row)


def test_a_multiprocessor_runs_a_thousand_threads(rows: list[tuple[str, cubins.Resources]]) -> None:
    for name, row in rows:
        blocks = BLOCKS.get(family(name), 0)
        if "double" in name:
            blocks = min(blocks, 2)
        # a warp's registers are handed out by 256
        taken = -(-row.registers // 8) * 8 * THREADS
        assert blocks * taken <= REGISTERS, (name, row)
        assert blocks * (row.shared + 1024) <= SHARED, (name, row)


def _accesses(folder: Path) -> dict[str, set[str]]:
    """The loads and stores of each kernel on sm_90, as the machine code names them."""
    program = shutil.which("nvdisasm")
    if program is None:
        triton = pytest.importorskip("triton")  # whose wheel brings one
        bundled = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
        if not bundled.exists():
            pytest.skip("no nvdisasm")
        program = str(bundled)
    assert native.module is not None
    found: dict[str, set[str]] = {}
    for kind, architecture, content in cubins.images(Path(native.module.__file__ or "")):
        if kind != cubins.ELF or architecture != 90 or b"act_forward" not in bytes(content):
            continue
        file = folder / "kernels.cubin"
        file.write_bytes(content)
        done = subprocess.run(
            [program, "-c", str(file)], capture_output=True, text=True, check=True
        )
        kernel = ""
        for line in done.stdout.splitlines():
            if match := re.match(r"\.text\.(\S+):", line):
                kernel = match[1]
            elif match := re.search(r"\s((?:LDG|STG|LDL|STL)[.\w]*)\s", line):
                found.setdefault(kernel, set()).add(match[1])
    names = list(found)
    return dict(zip(cubins.readable(names), map(found.__getitem__, names), strict=True))


def test_a_run_is_one_access(tmp_path: Path) -> None:
    accesses = _accesses(tmp_path)
    checked = 0
    for name, kinds in accesses.items():
        assert not [kind for kind in kinds if kind.startswith(("LDL", "STL"))], name
        flat = "act_forward" in name or "act_pool_pairs_forward" in name
        if flat and re.search(r", [48]>", name):
            assert "LDG.E.128" in kinds, name
            checked += 1
    # float, float16, bfloat16; alone, and before a maximum and an average
    assert checked == 9
