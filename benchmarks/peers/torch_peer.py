"""PyTorch: eager, torch.compile, and crossmedia_fast, in both memory formats."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Arrays, gradient_names
from ..shapes import TRAINING, Case, ConvShape, LossShape, ModelShape
from . import Prepared, Unsupported, torch_models

Operands = dict[str, Tensor]
Function = Callable[[Operands], Tensor]

_REAL, _FAKE = 1.0, 0.0


def version() -> str:
    return torch.__version__


# -- the operation, three times: reference, fused, and as PyTorch's users write it -----------------


def conv_arguments(shape: ConvShape) -> dict[str, Any]:
    """The arguments of conv_act_pool2d for a shape, but for the tensors."""
    arguments: dict[str, Any] = {
        "stride": shape.stride,
        "padding": shape.padding,
        "groups": shape.groups,
        "activation": shape.activation,
        "activation_param": shape.activation_param,
        "pool": shape.pool,
    }
    if shape.pool != "none":
        arguments |= {
            "pool_size": shape.pool_size,
            "pool_stride": shape.pool_stride,
            "pool_padding": shape.pool_padding,
            "ceil_mode": shape.ceil_mode,
        }
    return arguments


def _package_function(case: Case, suffix: str) -> Function:
    import crossmedia_fast as cmf

    shape = case.shape
    if isinstance(shape, ConvShape):
        conv = getattr(cmf, f"conv_act_pool2d{suffix}")
        arguments = conv_arguments(shape)
        return lambda t: conv(t["input"], t["weight"], t["bias"], **arguments)
    if shape.loss == "log_loss":
        log_loss = getattr(cmf, f"log_loss{suffix}")
        return lambda t: log_loss(t["real"], t["target"])
    side, _, loss = shape.loss.partition("_")
    function = getattr(cmf, f"gan_{side}_loss{suffix}")
    if side == "generator":
        return lambda t: function(t["real"], loss=loss)
    return lambda t: function(t["real"], t["fake"], loss=loss)


def reference_function(case: Case) -> Function:
    return _package_function(case, "_reference")


def _activate(shape: ConvShape, z: Tensor) -> Tensor:
    # In place, as torchvision's networks have it: the convolution's output is nobody else's.
    if shape.activation == "relu":
        return F.relu(z, inplace=True)
    if shape.activation == "leaky_relu":
        return F.leaky_relu(z, shape.activation_param or 0.01, inplace=True)
    if shape.activation == "relu6":
        return F.relu6(z, inplace=True)
    if shape.activation == "tanh":
        return torch.tanh(z)
    raise Unsupported(f"activation {shape.activation}")


def _unfused_conv(shape: ConvShape, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    z = F.conv2d(input, weight, bias, shape.stride, shape.padding, 1, shape.groups)
    a = _activate(shape, z)
    size, stride, padding = shape.pool_size, shape.pool_stride, shape.pool_padding
    if shape.pool == "max":
        return F.max_pool2d(a, size, stride, padding, ceil_mode=shape.ceil_mode)
    if shape.pool == "avg":
        return F.avg_pool2d(a, size, stride, padding, shape.ceil_mode)
    return a


def _unfused_loss(shape: LossShape, softplus: bool, count: int) -> Function:
    if softplus:
        if shape.loss == "discriminator_minimax":
            return lambda t: F.softplus(-t["real"]).mean() + F.softplus(t["fake"]).mean()
        if shape.loss == "generator_non_saturating":
            return lambda t: F.softplus(-t["real"]).mean()
        raise Unsupported(f"{shape.loss} has no softplus form")
    if shape.loss == "discriminator_hinge":
        return lambda t: F.relu(1 - t["real"]).mean() + F.relu(1 + t["fake"]).mean()
    bce = F.binary_cross_entropy_with_logits
    if shape.loss == "log_loss":
        return lambda t: bce(t["real"], t["target"])
    # Labels are made once, outside the time, as careful code does it.
    ones, zeros = torch.full((count,), _REAL), torch.full((count,), _FAKE)
    if shape.loss == "generator_non_saturating":
        return lambda t: bce(t["real"], ones)
    return lambda t: bce(t["real"], ones) + bce(t["fake"], zeros)


def unfused_function(case: Case, softplus: bool = False) -> Function:
    """The layers or the loss as a PyTorch user writes them."""
    shape = case.shape
    if isinstance(shape, ConvShape):
        conv_shape = shape
        return lambda t: _unfused_conv(conv_shape, t["input"], t["weight"], t["bias"])
    return _unfused_loss(shape, softplus, shape.count)


# -- a case of a variant, ready to be timed -------------------------------------------------------


class _Layers(torch.nn.Module):
    """The unfused layers with parameters of their own: what inductor's freezing folds."""

    def __init__(self, shape: ConvShape, operands: Operands) -> None:
        super().__init__()
        self.shape = shape
        self.weight = torch.nn.Parameter(operands["weight"])
        self.bias = torch.nn.Parameter(operands["bias"])

    def forward(self, input: Tensor) -> Tensor:
        return _unfused_conv(self.shape, input, self.weight, self.bias)


def _variant_function(case: Case, variant: str, operands: Operands) -> Function:
    kind, _, rest = variant.partition("_")
    # every case compiles the same code object anew: what earlier cases left would count against the
    # recompilation limit
    torch._dynamo.reset()
    if kind == "fused":
        return _package_function(case, "")
    softplus = rest == "softplus"
    if softplus and isinstance(case.shape, ConvShape):
        raise Unsupported("the softplus form is of losses")
    if rest == "freezing":
        if not isinstance(case.shape, ConvShape) or case.mode == TRAINING:
            raise Unsupported("freezing is for inference with weights")
        import torch._inductor.config as inductor

        inductor.freezing = True
        layers = torch.compile(_Layers(case.shape, operands).eval(), dynamic=False)
        return lambda t: layers(t["input"])
    function = unfused_function(case, softplus)
    if kind == "compile":
        return torch.compile(function, fullgraph=True, dynamic=False)
    return function


def _kept_bytes(function: Function, operands: Operands) -> int:
    """Bytes of distinct storages that backward keeps, beyond the operands'."""
    own = {t.untyped_storage().data_ptr() for t in operands.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(operands)
    # Alive until here, so that no storage's address was used twice.
    del output
    return sum(kept.values())


def _note(case: Case, variant: str, operands: Operands) -> str:
    """What the package says that it runs."""
    import crossmedia_fast as cmf

    if not variant.startswith("fused") or not isinstance(case.shape, ConvShape):
        return ""
    explain = getattr(cmf, "explain", None)
    if explain is None:
        return ""
    arguments = conv_arguments(case.shape)
    return str(explain(operands["input"], operands["weight"], operands["bias"], **arguments))


def build(case: Case, arrays: Arrays, threads: int, variant: str) -> Prepared:
    if isinstance(case.shape, ModelShape):
        if variant == "compile_freezing" and case.mode == TRAINING:
            raise Unsupported("freezing is for inference with weights")
        return torch_models.build(case, arrays, threads, variant)
    torch.set_num_threads(threads)
    channels_last = variant.endswith("channels_last")
    if channels_last and not isinstance(case.shape, ConvShape):
        raise Unsupported("a loss has no memory format")
    if variant == "compile_freezing" and not isinstance(case.shape, ConvShape):
        raise Unsupported("a loss has no weights")
    operands: Operands = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array)
        if channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        operands[name] = tensor
    leaves = {name: operands[name].requires_grad_() for name in gradient_names(case)}
    function = _variant_function(case, variant, operands)
    latest: list[Tensor] = []

    if not leaves:

        def infer() -> Tensor:
            with torch.inference_mode():
                return function(operands)

        def inferred() -> Arrays:
            # A leftover of another thread or a cached output would show: computed afresh.
            return {"output": infer().contiguous().numpy()}

        return Prepared(infer, inferred, _note(case, variant, operands))

    grad_output = operands.get("grad_output")
    parameters = tuple(leaves.values())

    def train() -> None:
        for leaf in parameters:
            leaf.grad = None
        output = function(operands)
        output.backward(grad_output)
        latest[:] = [output.detach()]

    def trained() -> Arrays:
        train()
        results = {"output": latest[0].contiguous().numpy()}
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            results[f"grad_{name}"] = leaf.grad.contiguous().numpy()
        return results

    with contextlib.suppress(Exception):  # a note is no reason to fail
        note = _note(case, variant, operands)
        return Prepared(train, trained, note, lambda: _kept_bytes(function, operands))
    return Prepared(train, trained, "", lambda: _kept_bytes(function, operands))
