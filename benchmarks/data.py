"""The numbers of a case and what must come out: the same for every peer, whatever its process."""

from __future__ import annotations

import functools
import zlib

import numpy as np

from .shapes import TRAINING, Case, ConvShape, ModelShape

Arrays = dict[str, np.ndarray]

# |error| <= VALUE_LIMIT * max |expected|. Rounding of float32 stays below: direct convolution 1e-6,
# Winograd F(6x6) 1.5e-5. bfloat16 or TF32 arithmetic (1e-3 and more) does not.
VALUE_LIMIT = 5e-5
# In training, rounding can move the maximum of a window (or the sign of a ReLU's input) where two
# values nearly tie; then one gradient goes to another pixel: in about 1e-5 of the windows. As
# norms, |error| / |expected| is then about sqrt(2 · 1e-5) = 4e-3.
GRADIENT_LIMIT = 1e-2
# A whole network: rounding goes through up to a hundred layers, each of which hands it on; bfloat16
# would be off by a hundredth and more. And in each layer of it values nearly tie.
NETWORK_VALUE_LIMIT = 1e-3
NETWORK_GRADIENT_LIMIT = 5e-2
# Each such move changes R · S · C elements of the input's gradient (in 5×5 over 64 channels
# 1600): a hundredth of them, seen. The others are held to VALUE_LIMIT.
MOVED_SHARE = 0.1


class Mismatch(Exception):
    """A peer computed something else."""


def make_arrays(case: Case) -> Arrays:
    """The operands in float32. Standard normal; weights scaled as He's initialisation."""
    random = np.random.default_rng(zlib.crc32(case.id.encode()))
    normal = functools.partial(random.standard_normal, dtype=np.float32)
    shape = case.shape
    if isinstance(shape, ModelShape):
        from . import models

        arrays = {"input": normal(models.input_shape(case))}
        if case.mode == TRAINING:
            arrays["grad_output"] = normal(models.output_shape(case))
        return arrays
    if not isinstance(shape, ConvShape):
        arrays = {name: 2 * normal(shape.count) for name in ("real", "fake")[: shape.tensors]}
        if shape.loss == "log_loss":
            arrays["target"] = random.random(shape.count, dtype=np.float32)
        return arrays
    per_group = shape.channels // shape.groups
    fan_in = per_group * shape.kernel**2
    pooled = (case.batch, shape.filters, shape.pooled_size, shape.pooled_size)
    arrays = {
        "input": normal((case.batch, shape.channels, shape.size, shape.size)),
        "weight": normal((shape.filters, per_group, shape.kernel, shape.kernel))
        * np.float32((2 / fan_in) ** 0.5),
        "bias": normal(shape.filters),
    }
    if case.mode == TRAINING:
        arrays["grad_output"] = normal(pooled)
    return arrays


def expected(case: Case, arrays: Arrays) -> Arrays:
    """The outputs (and gradients, in training) in float64, by the package's references."""
    import torch

    from . import models
    from .peers.torch_peer import reference_function

    if isinstance(case.shape, ModelShape):
        return models.expected(case, arrays)

    operands = {name: torch.from_numpy(a).double() for name, a in arrays.items()}
    leaves = {name: operands[name] for name in gradient_names(case)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    output = reference_function(case)(operands)
    results = {"output": output.detach().numpy()}
    if leaves:
        output.backward(operands.get("grad_output"))
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            results[f"grad_{name}"] = leaf.grad.numpy()
    return results


def gradient_names(case: Case) -> tuple[str, ...]:
    """The operands whose gradients training computes."""
    if case.mode != TRAINING:
        return ()
    if not isinstance(case.shape, ConvShape):
        return ("real", "fake")[: case.shape.tensors]
    return ("weight", "bias") if case.shape.first else ("input", "weight", "bias")


def compare(got: Arrays, want: Arrays) -> dict[str, float]:
    """The error of each result over its largest value (of a network's gradients, as norms); raises
    Mismatch beyond the limits."""
    errors = {}
    for name, expected_array in want.items():
        array = got.get(name)
        if array is None:
            raise Mismatch(f"{name}: missing")
        if array.shape != expected_array.shape:
            raise Mismatch(f"{name}: expected shape {expected_array.shape}, got {array.shape}")
        difference = np.abs(array.astype(np.float64) - expected_array)
        scale = float(np.abs(expected_array).max()) or 1.0
        errors[name] = float(difference.max()) / scale
        if not np.isfinite(difference).all():
            raise Mismatch(f"{name}: not finite where the reference is")
        if name == "network_output":
            measure, limit = errors[name], NETWORK_VALUE_LIMIT
        elif name == "network_gradients":
            measure = float(np.linalg.norm(difference) / (np.linalg.norm(expected_array) or 1.0))
            errors[name], limit = measure, NETWORK_GRADIENT_LIMIT
        elif name in ("grad_input", "grad_weight", "grad_bias"):
            measure = float(np.linalg.norm(difference) / (np.linalg.norm(expected_array) or 1.0))
            limit = GRADIENT_LIMIT
            if name == "grad_input":
                most = float(np.quantile(difference, 1 - MOVED_SHARE)) / scale
                if most > VALUE_LIMIT:
                    raise Mismatch(f"{name}: error {most:.2e} of most is above {VALUE_LIMIT:.0e}")
        else:
            measure, limit = errors[name], VALUE_LIMIT
        if measure > limit:
            raise Mismatch(f"{name}: error {measure:.2e} is above {limit:.0e}")
    return errors
