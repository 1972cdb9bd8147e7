"""Runs the tests of the CUDA kernels in the emulator, in processes of their own.

The emulator is chosen where the package is imported, and takes CPU tensors for the GPU's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crossmedia_fast import cuda_support

pytest.importorskip(
    "crossmedia_fast._cuda_shim", reason="built without the emulator (CROSSMEDIA_FAST_CUDA_SHIM)"
)
TESTS = Path(__file__).parent
FILES = (
    "test_cuda_conv.py",
    "test_cuda_conv_public.py",
    "test_cuda_epilogue.py",
    "test_cuda_gan_loss.py",
    "test_cuda_public.py",
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the same tests run on the GPU here")
@pytest.mark.skipif(cuda_support.emulated(), reason="this is that process")
@pytest.mark.parametrize("file", FILES)
def test_the_kernels_in_the_emulator(file: str) -> None:
    environment = {**os.environ, "CROSSMEDIA_FAST_CUDA_SHIM": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / file)]
    result = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert re.search(r"[1-9]\d* passed", result.stdout), result.stdout[-2000:]
    assert "skipped" not in result.stdout.splitlines()[-1], result.stdout[-2000:]
