"""Every tolerance of the test-suite, and why it is what it is.

A tolerance is relative to the largest magnitude of the expected tensor, because a convolution's
rounding error grows with the terms it adds, not with the value that is left of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Against float64. A convolution of a few dozen terms loses a few units in the last place (float32:
# 6e-8 each); ours adds one rounding (the bias) and an activation of at most 2 ulp. Where the plan
# takes Winograd's F(4×4), its error is relative to the largest pre-activation, which tanh and
# sigmoid hide: those of the tests reach 6, and 3.7e-6 was seen. WINOGRAD is relative to the output.
# The half types round the convolution's output once, before the activation, and the result once.
VALUES = {
    torch.float64: 1e-13,
    torch.float32: 8e-6,
    torch.float16: 4e-3,  # 4 units of 2^-10
    torch.bfloat16: 3.2e-2,  # 4 units of 2^-7
}

# float32 multiplied as tf32: each operand is rounded to 2^-11, so a product is off by at most
# 2^-10, and a sum of many signs by about as much as one of them. Seen: 4e-4.
TF32 = 2e-3

# Gradients of weights add over the whole batch and both planes: some hundred terms.
GRADIENTS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
}

# A bias gradient adds dy · act'(z) over every image and window, terms of either sign: what each
# loses does not shrink with what is left of their sum. Where act' follows from the pre-activation
# (GELU, SiLU), a term inherits z's error times |act''| <= 1. Relative to the sum of the terms'
# magnitudes.
BIAS_GRADIENTS = {
    torch.float64: 1e-13,
    torch.float32: 3e-6,
}

# In the half types an element's rounding may move a maximum to its neighbour, and a whole gradient
# with it; no fixed bound holds. Our error may be at most twice that of PyTorch in the same dtype.
HALF_GRADIENT_FACTOR = 2.0
# And where PyTorch is lucky (a bias gradient is a few numbers): the derivative of an activation
# follows from an output rounded to u, 2^-11 or 2^-9, whoever computes; four of them.
HALF_GRADIENT_SLACK = {torch.float16: 2e-3, torch.bfloat16: 8e-3}

# Same dtype, same convolution, another order of the operations behind it: two roundings and an
# activation apart.
SAME_DTYPE = {
    torch.float64: 1e-14,
    torch.float32: 5e-7,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}

# Winograd's F(4×4, r), by r: its transforms round, and the larger the points the more. Measured
# against float64 over 16 to 512 channels: at most 2.2e-6 (r = 3), 4.3e-6 (2), 1.7e-6 (4, few
# channels alone), 6.5e-6 (5); half as much again for other data.
WINOGRAD = {2: 6.5e-6, 3: 3.5e-6, 4: 5e-6, 5: 1e-5}
WINOGRAD_F6 = 2.5e-5  # F(6×6, 3×3), for those who opt in: measured 1e-5 to 1.5e-5

# Its gradients: the same matrices transposed. Measured against float64 over up to 256 channels, the
# input's and the weight's: at most 1.2e-6 (r = 2), 3.8e-6 (3), 4.3e-6 (4), 1.3e-5 (5).
WINOGRAD_GRADIENTS = {2: 3e-6, 3: 6e-6, 4: 7e-6, 5: 2e-5}

# Batch normalization in training: z = (x - mean) · scale + shift rounds four or five times, by up
# to 6e-8 each, and the statistics are in error by the float32 sums within blocks, by less than one
# such unit. Relative to the largest |z|, which no activation's slope magnifies by more than 1.13.
# Seen: 1.3e-7. The gradient of x adds three such terms; those of the parameters add many, and
# theirs is relative to the sum of their magnitudes.
NORM = 5e-7
NORM_GRADIENTS = 1e-6
NORM_SUMS = 1e-6


def assert_within(
    actual: Tensor, expected: Tensor, tolerance: float, scale: float | None = None
) -> None:
    """Equal shapes, NaN and infinities; elsewhere |difference| <= tolerance · scale.

    The scale is the largest |expected| unless given.
    """
    assert actual.shape == expected.shape
    expected = expected.to(torch.float64)
    actual = actual.to(torch.float64)
    if scale is None:
        finite = expected[expected.isfinite()]
        scale = finite.abs().max().item() if finite.numel() else 1.0
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance * max(scale, 1e-3), equal_nan=True
    )
