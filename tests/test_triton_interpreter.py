"""Runs the tests of the Triton kernels in Triton's interpreter, in processes of their own.

The interpreter is chosen where a kernel is defined, so the tests that compile kernels and those
that interpret them can't share a process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crossmedia_fast import triton_support

TESTS = Path(__file__).parent
# A process each: file, and which of its tests (as pytest's -k).
PARTS = (
    ("test_triton_conv.py", "test_values_and_gradients and none"),
    ("test_triton_conv.py", "test_values_and_gradients and not none"),
    ("test_triton_conv.py", "not test_values_and_gradients"),
    ("test_triton_epilogue.py", ""),
    ("test_triton_gan_loss.py", ""),
    ("test_triton_public.py", ""),
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the same tests run on the GPU here")
@pytest.mark.skipif(triton_support.interpreting(), reason="this is that process")
@pytest.mark.skipif(
    bool(triton_support.why_not_importable()), reason=triton_support.why_not_importable()
)
@pytest.mark.parametrize(("file", "selection"), PARTS)
def test_the_kernels_in_the_interpreter(file: str, selection: str) -> None:
    # one thread: numpy's products are tiny, and other tests run beside this
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(TESTS / file), "-k", selection]
    result = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-10000:] + result.stderr[-2000:]
    assert re.search(r"[1-9]\d* passed", result.stdout), result.stdout[-2000:]
    assert "skipped" not in result.stdout.splitlines()[-1], result.stdout[-2000:]
