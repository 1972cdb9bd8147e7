"""The networks of the models suite, the same in every process: weights, modes, results, work."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from .data import Arrays
from .networks import NETWORKS
from .networks.image_to_image import EqualisedConv2d
from .shapes import TRAINING, Case, ModelShape
from .work import FLOAT, Work


def _shape(case: Case) -> ModelShape:
    assert isinstance(case.shape, ModelShape)
    return case.shape


def input_shape(case: Case) -> tuple[int, int, int, int]:
    return NETWORKS[_shape(case).name].input_shape(case.batch, case.size)


@functools.lru_cache(maxsize=4)
def output_shape(case: Case) -> tuple[int, ...]:
    with torch.device("meta"), torch.no_grad():
        network = NETWORKS[_shape(case).name].build(_shape(case).width)
        return tuple(network(torch.empty(input_shape(case))).shape)


def _settle(model: nn.Module) -> None:
    """Weights that keep the size of values through the layers, and normalisations with statistics:
    a network of default weights gives almost the same for every image, and hides errors."""
    own = {m.conv for m in model.modules() if isinstance(m, EqualisedConv2d)}  # they have theirs
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module not in own:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.ConvTranspose2d):
            # of its taps one in stride² reaches an output
            taps = module.weight[0, 0].numel() // (module.stride[0] * module.stride[1])
            nn.init.normal_(module.weight, std=(2 / (module.in_channels * taps)) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0  # every peer draws other numbers


def network(case: Case) -> nn.Module:
    """The case's network in its mode, always with the same weights."""
    shape = _shape(case)
    torch.manual_seed(zlib.crc32(shape.name.encode()))
    model = NETWORKS[shape.name].build(shape.width)
    with torch.no_grad():
        _settle(model)
    return model.train(case.mode == TRAINING)


def compared_parameters(model: nn.Module) -> list[Tensor]:
    """Those of all but the fully connected layers, whose gradients are PyTorch's in every peer."""
    return [
        parameter
        for module in model.modules()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    ]


def results(model: nn.Module, output: Tensor, training: bool) -> Arrays:
    found = {"network_output": output.detach().contiguous().numpy()}
    if training:
        gradients = [p.grad for p in compared_parameters(model)]
        assert all(g is not None for g in gradients)
        flat = [g.contiguous().numpy().ravel() for g in gradients if g is not None]
        found["network_gradients"] = np.concatenate(flat)
    return found


def expected(case: Case, arrays: Arrays) -> Arrays:
    """Output and gradients in float64, by PyTorch's layers."""
    model = network(case).double()
    x = torch.from_numpy(arrays["input"]).double()
    if case.mode != TRAINING:
        with torch.inference_mode():
            return results(model, model(x), False)
    output = model(x)
    output.backward(torch.from_numpy(arrays["grad_output"]).double())
    return results(model, output, True)


@functools.lru_cache(maxsize=4)
def count(case: Case) -> Work:
    """Operations of every convolution and fully connected layer; bytes of parameters, input and
    output (in training: parameters read twice and their gradients written)."""
    operations: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            operations.append(2 * output.numel() * module.in_features)
        elif isinstance(module, nn.ConvTranspose2d):
            operations.append(2 * inputs[0].numel() * module.weight[0].numel())
        elif isinstance(module, nn.Conv2d):
            operations.append(2 * output.numel() * module.weight[0].numel())

    with torch.device("meta"), torch.no_grad():
        model = NETWORKS[_shape(case).name].build(_shape(case).width)
        for module in model.modules():
            module.register_forward_hook(note)
        x = torch.empty(input_shape(case))
        y = model(x)
    parameters = sum(p.numel() for p in model.parameters())
    training = case.mode == TRAINING
    # the first layer's input needs no gradient
    total = 3 * sum(operations) - operations[0] if training else sum(operations)
    elements = x.numel() + y.numel() + parameters * (3 if training else 1)
    return Work(total, FLOAT * elements)
