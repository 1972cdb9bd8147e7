"""Runs the tests of the Triton kernels in Triton's interpreter, in a process of its own.

The interpreter is chosen where a kernel is defined, so the tests that compile kernels and those
that interpret them can't share a process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crossmedia_fast import triton_support

TESTS = Path(__file__).parent
# A process each: file, and which of its tests (as pytest's -k).
PARTS = (
    ("test_triton_conv.py", "test_values_and_gradients"),
    ("test_triton_conv.py", "not test_values_and_gradients"),
    ("test_triton_epilogue.py", ""),
    ("test_triton_gan_loss.py", ""),
    ("test_triton_public.py", ""),
)


Run = tuple["subprocess.Popen[bytes]", Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Run]]:
    """All parts at once, each with the file of its output: a part takes one core, for minutes."""
    # one thread: numpy's products are tiny, and others run beside this
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("interpreter")
    started: list[Run] = []
    try:
        for number, (file, selection) in enumerate(PARTS):
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            command += [str(TESTS / file), "-k", selection]
            path = folder / str(number)
            with path.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    cwd=TESTS.parent,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            started.append((process, path))
        yield started
    finally:
        for process, _ in started:
            process.kill()
            process.wait()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the same tests run on the GPU here")
@pytest.mark.skipif(triton_support.interpreting(), reason="this is that process")
@pytest.mark.skipif(
    bool(triton_support.why_not_importable()), reason=triton_support.why_not_importable()
)
@pytest.mark.parametrize("part", range(len(PARTS)), ids=[" ".join(part) for part in PARTS])
def test_the_kernels_in_the_interpreter(part: int, runs: list[Run]) -> None:
    process, path = runs[part]
    process.wait()
    output = path.read_text()
    assert process.returncode == 0, output[-10000:]
    assert re.search(r"[1-9]\d* passed", output), output[-2000:]
    assert "skipped" not in output.splitlines()[-1], output[-2000:]
