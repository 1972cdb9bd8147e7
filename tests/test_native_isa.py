"""The compiled module itself: which instruction sets it has, how one is chosen, what it links."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from crossmedia_fast import native

if native.module is None:
    pytest.skip(native.reason, allow_module_level=True)

MODULE: ModuleType = native.module
ISAS = {name: (features, missing) for name, features, missing in MODULE.isas()}
RUNNABLE = [name for name, (_, missing) in ISAS.items() if not missing]
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64, "amx": 64}
# how Linux spells what compilers spell otherwise
LINUX_NAMES = {"avx512bf16": "avx512_bf16", "amx-tile": "amx_tile", "amx-bf16": "amx_bf16"}

_REPORT = """
from crossmedia_fast import native
if native.module is None:
    print("none", native.reason)
else:
    print(native.module.isa(), native.module.vector_bytes())
"""


def report_with(isa: str) -> str:
    """What a fresh process says with CROSSMEDIA_FAST_ISA set."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "CROSSMEDIA_FAST_ISA": isa}
    environment["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    result = subprocess.run(
        [sys.executable, "-c", _REPORT], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_the_baseline_runs_everywhere() -> None:
    features, missing = ISAS["baseline"]
    assert features == []
    assert missing == ""


def test_features_are_a_superset_of_the_narrower_set() -> None:
    """An ISA whose gate forgot a feature of its predecessor would run on a CPU that lacks it."""
    feature_sets = [set(features) for features, _ in ISAS.values()]
    for narrower, wider in itertools.pairwise(feature_sets):
        assert narrower < wider


def test_what_is_missing_follows_from_the_cpus_features() -> None:
    present = set(MODULE.cpu_features())
    for name, (features, missing) in ISAS.items():
        absent = [feature for feature in features if feature not in present]
        assert missing == (absent[0] if absent else ""), name


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's /proc/cpuinfo")
def test_cpu_features_agree_with_the_operating_system() -> None:
    known = {feature for features, _ in ISAS.values() for feature in features}
    line = next(
        (
            line
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("flags")
        ),
        "",
    )
    flags = set(line.split())
    expected = {feature for feature in known if LINUX_NAMES.get(feature, feature) in flags}
    assert set(MODULE.cpu_features()) & known == expected


def test_the_widest_is_the_default() -> None:
    if os.environ.get("CROSSMEDIA_FAST_ISA"):
        pytest.skip("this process has CROSSMEDIA_FAST_ISA set")
    assert MODULE.isa() == RUNNABLE[-1]


@pytest.mark.parametrize("isa", RUNNABLE)
def test_an_isa_can_be_forced(isa: str) -> None:
    assert report_with(isa) == f"{isa} {VECTOR_BYTES[isa]}"


def test_an_unknown_isa_is_an_error_that_names_the_known_ones() -> None:
    report = report_with("avx3")
    assert report.startswith("none ")
    assert "must be one of " + ", ".join(ISAS) in report
    assert "avx3" in report


@pytest.mark.skipif(len(RUNNABLE) == len(ISAS), reason="this CPU runs every instruction set")
def test_an_isa_that_cannot_run_is_an_error_that_names_what_is_missing() -> None:
    name, (_, missing) = next(item for item in ISAS.items() if item[0] not in RUNNABLE)
    report = report_with(name)
    assert report.startswith("none ")
    assert missing in report


def test_pytorch_is_not_linked() -> None:
    """One build serves every PyTorch version: nothing in it refers to PyTorch's libraries."""
    binary = Path(MODULE.__file__ or "").read_bytes()
    for library in (b"libtorch", b"libc10"):
        assert library not in binary


FAULTS = """
import platform, resource
import torch, crossmedia_fast
def call():  # what a few layers take and give back
    x = torch.ones(1 << 20)
    for _ in range(4):
        x = x + 1
        x = torch.cat([x[: 1 << 19], x[1 << 19 :]])
        parts = [x[:100000].clone() for _ in range(4)]
def faults():  # a call
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20
print(min(faults() for _ in range(6)))  # the heap grows until each block finds a hole
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is glibc's way to free memory")
def test_freed_feature_maps_are_taken_again_without_page_faults() -> None:
    names = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    command = [sys.executable, "-c", FAULTS]

    result = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert float(result.stdout) < 100  # without the package 880
