"""The package on a processor without AVX: run by `make baseline-x86` on an emulated one."""

from __future__ import annotations

import sys
import warnings
from typing import Any

modules: dict[str, Any] = sys.modules
modules["numpy"] = None  # PyTorch would import it where it is, and its wheels need SSE4.2
warnings.filterwarnings("ignore", "Failed to initialize NumPy")

import torch  # noqa: E402

import crossmedia_fast as cmf  # noqa: E402
from crossmedia_fast import native  # noqa: E402

# [N, C, H, W], K, groups, and the arguments of a call that each algorithm of its own takes
CASES = {
    "few_channels": ((2, 3, 20, 20), 16, 1, {"padding": 1}),
    "winograd": ((2, 32, 24, 24), 32, 1, {"padding": 1}),
    "depthwise": ((2, 32, 24, 24), 32, 32, {"padding": 1, "pool": "none"}),
    "pointwise": ((4, 64, 16, 16), 32, 1, {"pool": "none"}),
}


def check(algorithm: str) -> None:
    shape, filters, groups, arguments = CASES[algorithm]
    taps = 1 if algorithm == "pointwise" else 3
    operands = [
        torch.randn(shape),
        torch.randn(filters, shape[1] // groups, taps, taps),
        torch.randn(filters),
    ]
    with torch.no_grad():
        plan = cmf.explain(*operands, groups=groups, backend="cpu", **arguments)
    assert plan.algorithm == algorithm, plan
    leaves = [x.requires_grad_() for x in operands]
    exact = [x.detach().double().requires_grad_() for x in operands]
    y = cmf.conv_act_pool2d(*leaves, groups=groups, backend="cpu", **arguments)
    want = cmf.conv_act_pool2d_reference(*exact, groups=groups, **arguments)
    pairs = zip(
        (y, *torch.autograd.grad(y.sum(), leaves)),
        (want, *torch.autograd.grad(want.sum(), exact)),
        strict=True,
    )
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    print(f"{algorithm}: error {error:.1e}", flush=True)
    assert error < 2e-5, error


def main() -> None:
    assert native.module is not None, native.reason
    isas = {name: missing for name, _, missing in native.module.isas()}
    print("instruction set:", native.module.isa(), "| lacking:", isas)
    assert native.module.isa() == "baseline"
    assert isas["avx2"], "the emulated processor has AVX2"
    torch.manual_seed(0)
    for algorithm in CASES:
        check(algorithm)
    scores = torch.randn(64, requires_grad=True)
    cmf.gan_discriminator_loss(scores, scores.detach(), backend="cpu").backward()
    (want,) = torch.autograd.grad(
        torch.nn.functional.softplus(-scores.double()).mean(), scores, retain_graph=False
    )
    torch.testing.assert_close(scores.grad, want.float())
    print("losses: equal")


if __name__ == "__main__":
    main()
