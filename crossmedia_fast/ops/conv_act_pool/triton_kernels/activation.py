"""The activations and their gradients as Triton functions on a tile of any shape.

Formula by formula the twin of csrc/common/activation.h, NaN and infinities included; `ACTIVATION`
is the name, `PARAM` leaky_relu's negative_slope, elu's alpha or softplus's beta.

What Triton has no function for is made of its `exp` and `log`: the vendors' libraries of functions
have no interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def expm1(z):
    """e^z - 1 without cancellation: a polynomial where |z| <= 1/2 (Taylor, error below 3e-9 z)."""
    series = 1.0 / 362880
    if z.dtype == tl.float64:  # the same series with the terms that 2^-53 needs
        series = 1.0 / 6227020800 + z * (1.0 / 87178291200 + z * (1.0 / 1307674368000))
        series = 1.0 / 39916800 + z * (1.0 / 479001600 + z * series)
        series = 1.0 / 362880 + z * (1.0 / 3628800 + z * series)
    series = 1.0 / 5040 + z * (1.0 / 40320 + z * series)
    series = 1.0 / 120 + z * (1.0 / 720 + z * series)
    series = 1.0 / 6 + z * (1.0 / 24 + z * series)
    series = z + z * z * (0.5 + z * series)
    return tl.where(tl.abs(z) <= 0.5, series, tl.exp(z) - 1.0)


@triton.jit
def log1p(z):
    """log(1 + z) for z >= -1: log(u) of the rounded u = 1 + z, and what the rounding lost."""
    u = 1.0 + z
    lost = (z - (u - 1.0)) / u
    return tl.log(u) + tl.where((u > 0.0) & (u < float("inf")), lost, 0.0)


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def softplus(z):
    """log(1 + e^z) without overflow. NaN stays."""
    return tl.where(z < 0.0, 0.0, z) + log1p(tl.exp(-tl.abs(z)))


@triton.jit
def tanh(z):
    """(1 - e) / (1 + e) with e = exp(-2 |z|): the numerator by expm1, exact near 0."""
    minus_numerator = expm1(-2.0 * tl.abs(z))
    magnitude = -minus_numerator / (2.0 + minus_numerator)
    return tl.where(z < 0.0, -magnitude, magnitude)


@triton.jit
def gelu_tanh_inner(z):
    return (z * z * z * 0.044715 + z) * 0.79788456080286535588  # sqrt(2 / pi)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, PARAM: tl.constexpr):
    """act(z)."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0.0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0.0, z, z * PARAM)
    elif ACTIVATION == "relu6":
        z = tl.where(z < 0.0, 0.0, tl.where(z > 6.0, 6.0, z))
    elif ACTIVATION == "elu":
        z = tl.where(z < 0.0, expm1(z) * PARAM, z)
    elif ACTIVATION == "silu":
        z = z * sigmoid(z)
    elif ACTIVATION == "gelu":
        z = (z * 0.5) * (tl.erf(z * 0.70710678118654752440) + 1.0)
    elif ACTIVATION == "gelu_tanh":
        z = (z * 0.5) * (tanh(gelu_tanh_inner(z)) + 1.0)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    elif ACTIVATION == "sigmoid":
        z = sigmoid(z)
    elif ACTIVATION == "softplus":
        z = tl.where(z * PARAM > 20.0, z, softplus(z * PARAM) / PARAM)
    elif ACTIVATION == "hardswish":
        z = z * tl.where(z < -3.0, 0.0, tl.where(z > 3.0, 6.0, z + 3.0)) / 6.0
    else:
        tl.static_assert(ACTIVATION == "identity")
    return z


@triton.jit
def backward_from_output(dy, y, ACTIVATION: tl.constexpr, PARAM: tl.constexpr):
    """dy · act'(z) from y = act(z). Where the derivative is 0 by definition: 0, not 0 · dy."""
    if ACTIVATION == "relu":
        dy = tl.where(y <= 0.0, 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        dy = tl.where(y > 0.0, dy, dy * PARAM)
    elif ACTIVATION == "relu6":
        dy = tl.where((y <= 0.0) | (y >= 6.0), 0.0, dy)
    elif ACTIVATION == "elu":
        dy = tl.where(y > 0.0, dy, dy * (y + PARAM))
    elif ACTIVATION == "tanh":
        dy = dy * (1.0 - y * y)
    elif ACTIVATION == "sigmoid":
        dy = dy * ((1.0 - y) * y)
    elif ACTIVATION == "softplus":
        dy = tl.where(y * PARAM > 20.0, dy, dy * -expm1(-(y * PARAM)))
    else:
        tl.static_assert(ACTIVATION == "identity")
    return dy


@triton.jit
def backward_from_input(dy, z, ACTIVATION: tl.constexpr, PARAM: tl.constexpr):
    """dy · act'(z) from z, for every activation."""
    if ACTIVATION == "elu":
        dy = tl.where(z > 0.0, dy, dy * (tl.exp(z) * PARAM))
    elif ACTIVATION == "silu":
        s = sigmoid(z)
        dy = dy * (s * (z * (1.0 - s) + 1.0))
    elif ACTIVATION == "gelu":
        cdf = tl.erf(z * 0.70710678118654752440) * 0.5 + 0.5
        pdf = tl.exp(z * z * -0.5) * 0.39894228040143267794
        dy = dy * (z * pdf + cdf)
    elif ACTIVATION == "gelu_tanh":
        t = tanh(gelu_tanh_inner(z))
        slope = (z * z * (3 * 0.044715) + 1.0) * 0.79788456080286535588
        dy = dy * ((t + 1.0) * 0.5 + (z * 0.5) * (1.0 - t * t) * slope)
    elif ACTIVATION == "tanh":
        dy = backward_from_output(dy, tanh(z), ACTIVATION, PARAM)
    elif ACTIVATION == "sigmoid":
        dy = backward_from_output(dy, sigmoid(z), ACTIVATION, PARAM)
    elif ACTIVATION == "softplus":
        dy = tl.where(z * PARAM > 20.0, dy, dy * sigmoid(z * PARAM))
    elif ACTIVATION == "hardswish":
        dy = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, dy, dy * (z / 3.0 + 0.5)))
    else:  # made of comparisons that hold for z and act(z) alike
        dy = backward_from_output(dy, z, ACTIVATION, PARAM)
    return dy


@triton.jit
def passes_gradient(z, ACTIVATION: tl.constexpr):
    """The side of its kink on which z lies: the mask bit of the piecewise linear activations."""
    if ACTIVATION == "leaky_relu":
        side = z > 0.0
    elif ACTIVATION == "relu6":
        side = (z <= 0.0) | (z >= 6.0)
        side = side == 0  # NaN passes
    else:
        tl.static_assert(ACTIVATION == "relu")
        side = (z <= 0.0) == 0  # NaN passes
    return side
