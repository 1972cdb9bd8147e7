"""Where the Triton backend runs, what it refuses and why; and that nothing imports Triton early."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from crossmedia_fast import triton_support
from crossmedia_fast.backends import resolve
from crossmedia_fast.ops.conv_act_pool import triton_conv, triton_tiles
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool

MAX = check_pool("relu", None, "max", 2, None, 0, False, True)


def test_importing_the_package_imports_no_triton() -> None:
    code = (
        "import sys, crossmedia_fast\n"
        "from crossmedia_fast import triton_support, triton_tuning\n"
        "from crossmedia_fast.ops.conv_act_pool import triton, triton_choice, triton_conv\n"
        "from crossmedia_fast.ops.gan_loss import triton\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_on_the_cpu_are_refused_with_the_reason() -> None:
    if triton_support.interpreting():
        pytest.skip("the interpreter takes them")
    with pytest.raises(NotImplementedError, match="backend 'triton' can't run here: "):
        resolve("triton", torch.device("cpu"), torch.float32)
    if not triton_support.why_unavailable():
        with pytest.raises(NotImplementedError, match="runs on cuda tensors"):
            resolve("triton", torch.device("cpu"), torch.float32)
    elif not triton_support.why_not_importable():
        assert "TRITON_INTERPRET=1" in triton_support.why_unavailable()


def test_what_the_convolution_refuses() -> None:
    def why_not(dtype=torch.float32, conv=None, pool=MAX, needs_grad=True, kernel=(3, 3)) -> str:
        return triton_conv.why_not(
            (16, 16, *kernel), dtype, conv or check_conv(1, 1, 1, 1), pool, needs_grad
        )

    assert why_not() == ""
    assert "float64" in why_not(dtype=torch.float64)
    assert "both sides" in why_not(conv=check_conv(1, "same", 1, 1), kernel=(2, 2))
    average = check_pool("gelu", None, "avg", 2, None, 0, False, True)
    assert "backward" in why_not(pool=average)
    assert why_not(pool=average, needs_grad=False) == ""


def test_what_is_no_gain() -> None:
    def why(w_shape=(64, 64, 3, 3), groups=1, pool=MAX) -> str:
        return triton_conv.why_no_gain(w_shape, check_conv(1, 1, 1, groups), pool)

    assert why() == ""
    assert "tile idle" in why((64, 1, 3, 3), groups=64)
    assert "nothing follows" in why(
        pool=check_pool("identity", None, "none", 2, None, 0, False, True)
    )
    overlapping = check_pool("relu", None, "max", 3, 2, 1, False, True)
    assert "overlap" in why(pool=overlapping)
    assert why(pool=check_pool("relu", None, "max", 3, None, 0, False, True)) == ""


def test_float32_products_follow_pytorchs_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    for allowed, precision in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert triton_tiles.precision(torch.float32) == precision
        assert triton_tiles.precision(torch.float16) == "ieee"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert triton_tiles.precision(torch.float32) == "ieee"


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has the older switch alone"
)
def test_float32_products_follow_pytorchs_newer_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for setting, precision in (("ieee", "ieee"), ("tf32", "tf32")):
            torch.backends.cudnn.conv.fp32_precision = setting
            assert triton_tiles.precision(torch.float32) == precision
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
