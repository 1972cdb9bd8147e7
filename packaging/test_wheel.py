"""Installs the wheel of dist/ where there is no compiler, and runs the tests against it.

    packaging/test_wheel.py [--python PYTHON] [--torch VERSION] [pytest's arguments]

The tests are copied out of the checkout, so that what they import is what was installed. Those that
look at the sources, or at what a wheel leaves out, or need a compiler (torch.compile's default
backend, Triton), stay behind.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "wheel-test"
# the extras "test", "demo" and "info" but for Triton: older versions of PyTorch pin one too old
TOOLS = (
    "pytest>=8", "pytest-benchmark>=5", "hypothesis>=6.100", "expecttest>=0.2",
    "threadpoolctl>=3.5", "rich>=13", "matplotlib>=3.8", "mlxtend>=0.23", "numpy>=1.26",
    "pillow>=10",
)  # fmt: skip
LEFT_BEHIND = ("test_docs*", "test_triton*", "test_benchmarks*", "test_cuda*", "__pycache__")
COMPILING = (
    "tests/test_conv_act_pool_compile.py::test_compile_with_inductor",
    "tests/test_gan_loss_compile.py::test_compile_with_the_default_backend",
)


def python_of(environment: pathlib.Path) -> str:
    return str(environment / ("Scripts" if os.name == "nt" else "bin") / "python")


def install(python: str, torch: str | None, wheels: list[pathlib.Path]) -> None:
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    version = [f"torch=={torch}"] if torch else ["-c", str(ROOT / "constraints.txt"), "torch"]
    subprocess.run([*pip, *version], check=True)
    # Python's own version picks the wheel; what it requires is installed by now
    subprocess.run(
        [*pip, "--no-index", "--no-deps", "--find-links", str(wheels[0].parent), "crossmedia_fast"],
        check=True,
    )
    subprocess.run([*pip, *TOOLS], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--torch", help="a version; default: constraints.txt's")
    options, pytest_arguments = parser.parse_known_args()
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    if not wheels:
        parser.error("dist/ holds no wheel: make wheel")
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    environment = PLACE / "venv"
    subprocess.run([options.python, "-m", "venv", str(environment)], check=True)
    python = python_of(environment)
    install(python, options.torch, wheels)

    shutil.copytree(ROOT / "tests", PLACE / "tests", ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    # whole networks are defined beside the benchmarks
    networks = pathlib.Path("benchmarks", "networks")
    shutil.copytree(ROOT / networks, PLACE / networks)
    shutil.copy(ROOT / "benchmarks" / "__init__.py", PLACE / "benchmarks")
    shutil.copy(ROOT / "pyproject.toml", PLACE)
    # nothing but the environment's own programs: no compiler
    bare = {"PATH": str(environment / "bin"), "HOME": str(PLACE), "CC": "false", "CXX": "false"}
    for compiler in ("cc", "c++", "gcc", "g++", "clang"):
        if shutil.which(compiler, path=bare["PATH"]):
            parser.error(f"{compiler} is within reach of the tests")
    for command in (
        ["-m", "crossmedia_fast", "info"],
        ["-m", "pytest", "-q", *(f"--deselect={t}" for t in COMPILING), *pytest_arguments],
    ):
        status = subprocess.run([python, *command], cwd=PLACE, env=bare).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
