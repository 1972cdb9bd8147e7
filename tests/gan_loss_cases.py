"""What the tests of the GAN losses share: the cases, and the tolerances with their reasons."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast import native

LOSSES = ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic")
REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

needs_native = pytest.mark.skipif(native.module is None, reason=native.reason or "built")

# Relative to |expected| plus the typical size of what was summed: (tolerance, reason).
#   float32   exp, log and the division are within 2 ulp each, a block's lanes add 128 values: 2^-20
#   float64   the same in double, with libm: 2^-46
#   float16, bfloat16   arithmetic in float32, rounded where stored (an unreduced sum of two terms
#             twice): 2 units in the last of 11 and 8 bits
RELATIVE = {
    torch.float32: 2.0**-20,
    torch.float64: 2.0**-46,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
# Below it nothing is left of the relative size: float32 results under 2^-126 are 0, float16's
# subnormals are 2^-24 apart.
ABSOLUTE = {
    torch.float32: 2.0**-126,
    torch.float64: 0.0,
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-126,
}


def assert_near(
    actual: Tensor, expected: Tensor, scale: float | Tensor, dtype: torch.dtype
) -> None:
    """|actual - expected| within RELATIVE · (|expected| + scale) + ABSOLUTE; NaN and inf equal."""
    assert actual.shape == expected.shape
    actual = actual.detach().double()
    expected = expected.detach().double()
    expected = torch.where(expected.to(dtype).isfinite(), expected, expected.to(dtype).double())
    special = ~expected.isfinite()  # also what overflows the dtype
    torch.testing.assert_close(actual[special], expected[special], rtol=0, atol=0, equal_nan=True)
    bound = RELATIVE[dtype] * (expected.abs() + scale) + ABSOLUTE[dtype]
    off = ~((actual - expected).abs() <= bound) & ~special  # NaN is off too
    assert not off.any(), (
        f"{int(off.sum())} of {off.numel()} are off, the first: "
        f"{actual[off][0].item()!r}, expected {expected[off][0].item()!r}"
    )


def both_players(loss: str, reduction: str, from_logits: bool = True):
    """(name, fused, reference) of the discriminator's and the generator's loss of (real, fake)."""
    kw = {"loss": loss, "reduction": reduction, "from_logits": from_logits}
    labels = {"real_label": 0.9, "fake_label": 0.1}
    return (
        (
            "discriminator",
            lambda r, f, **more: cmf.gan_discriminator_loss(r, f, **kw, **labels, **more),
            lambda r, f: cmf.gan_discriminator_loss_reference(r, f, **kw, **labels),
        ),
        (
            "generator",
            lambda r, f, **more: cmf.gan_generator_loss(f, r, **kw, **more),
            lambda r, f: cmf.gan_generator_loss_reference(f, r, **kw),
        ),
    )
