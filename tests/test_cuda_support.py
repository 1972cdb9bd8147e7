"""Whether the CUDA kernels can run, and what is said where they can't."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import cuda_support, native

needs_native = pytest.mark.skipif(native.module is None, reason=native.reason or "built")


def fake_native(monkeypatch: pytest.MonkeyPatch, why: str, driver: int) -> None:
    cuda = types.SimpleNamespace(driver_version=lambda: driver)
    module = types.SimpleNamespace(why_no_cuda=why, cuda=cuda)
    monkeypatch.setattr(native, "module", module)
    monkeypatch.setattr(cuda_support, "_EMULATED", False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize(
    ("why", "driver", "reason"),
    [
        ("built where no nvcc was found", 0, "not built: built where no nvcc was found"),
        ("", 0, "no driver"),
        ("", 13000, ""),
    ],
)
def test_the_build_and_the_driver(
    monkeypatch: pytest.MonkeyPatch, why: str, driver: int, reason: str
) -> None:
    fake_native(monkeypatch, why, driver)
    kernels, found = cuda_support._load()
    assert reason in found
    assert (kernels is None) == bool(found)


def test_the_pytorch_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_native(monkeypatch, "", 13000)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in cuda_support._load()[1]
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "ROCm" in cuda_support._load()[1]
    monkeypatch.setattr(native, "module", None)
    assert cuda_support._load() == (None, native.reason)


@pytest.mark.parametrize(("capability", "reason"), [((7, 5), "7.5"), ((8, 0), ""), ((12, 1), "")])
def test_the_device(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str
) -> None:
    monkeypatch.setattr(cuda_support, "_EMULATED", False)
    monkeypatch.setattr(cuda_support, "_REASON", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in cuda_support.why_unavailable()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_support, "_found", [capability])
    found = cuda_support.why_unavailable()
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.skipif(cuda_support.emulated(), reason="the emulator is here")
def test_named_where_it_cannot_run_it_raises_with_the_reason() -> None:
    reason = cuda_support.why_unavailable()
    assert reason
    row = next(row for row in cmf.backends() if row.name == "cuda")
    assert not row.available
    assert row.reason == reason
    for call in (
        lambda: cmf.conv_act_pool2d(
            torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), backend="cuda"
        ),
        lambda: cmf.gan_generator_loss(torch.zeros(3), backend="cuda"),
    ):
        with pytest.raises(NotImplementedError) as error:
            call()
        assert reason in str(error.value)


@needs_native
def test_the_module_loads_without_a_driver() -> None:
    """The runtime is linked statically: what is missing shows when a kernel is asked for."""
    assert native.module is not None
    if native.module.why_no_cuda:
        assert not hasattr(native.module, "cuda")
    else:
        assert native.module.cuda.runtime_version() >= 11000
        assert native.module.cuda.driver_version() >= 0


@needs_native
def test_the_emulator_says_where_it_is_not_built() -> None:
    code = """
import sys
sys.modules["crossmedia_fast._cuda_shim"] = None
import crossmedia_fast as cmf
print(next(row.reason for row in cmf.backends() if row.name == "cuda"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CROSSMEDIA_FAST_CUDA_SHIM": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "the emulator was not built" in done.stdout
