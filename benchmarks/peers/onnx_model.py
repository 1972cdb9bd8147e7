"""A case as an ONNX model, for the runtimes that read one."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile

import onnx
from onnx import TensorProto, helper, numpy_helper

from ..data import Arrays
from ..shapes import TRAINING, Case, ConvShape, ModelShape
from . import Unsupported

OPSET, IR_VERSION = 17, 8  # old enough for every runtime of the last years


def output_name(case: Case) -> str:
    """What the output is called among the results."""
    return "network_output" if isinstance(case.shape, ModelShape) else "output"


def onnx_model(case: Case, arrays: Arrays) -> bytes:
    """Conv, activation, pooling; weights as initialisers; input "input", output "output"."""
    shape = case.shape
    if isinstance(shape, ModelShape):
        return _network(case)
    if not isinstance(shape, ConvShape):
        raise Unsupported("losses are not inference")
    conv = {
        "kernel_shape": [shape.kernel] * 2,
        "strides": [shape.stride] * 2,
        "pads": [shape.padding] * 4,
        "group": shape.groups,
    }
    initialisers = [numpy_helper.from_array(arrays[name], name) for name in ("weight", "bias")]
    nodes = [helper.make_node("Conv", ["input", "weight", "bias"], ["convolved"], **conv)]
    last = "output" if shape.pool == "none" else "activated"
    if shape.activation == "relu":
        nodes.append(helper.make_node("Relu", ["convolved"], [last]))
    elif shape.activation == "leaky_relu":
        slope = 0.01 if shape.activation_param is None else shape.activation_param
        nodes.append(helper.make_node("LeakyRelu", ["convolved"], [last], alpha=slope))
    elif shape.activation == "relu6":
        for name, value in (("low", 0.0), ("high", 6.0)):
            initialisers.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        nodes.append(helper.make_node("Clip", ["convolved", "low", "high"], [last]))
    else:
        raise Unsupported(f"activation {shape.activation}")
    if shape.pool != "none":
        pool = {
            "kernel_shape": [shape.pool_size] * 2,
            "strides": [shape.pool_stride] * 2,
            "pads": [shape.pool_padding] * 4,
            "ceil_mode": int(shape.ceil_mode),
        }
        if shape.pool == "avg":
            pool["count_include_pad"] = 1
        kind = "MaxPool" if shape.pool == "max" else "AveragePool"
        nodes.append(helper.make_node(kind, [last], ["output"], **pool))
    output = [case.batch, shape.filters, shape.pooled_size, shape.pooled_size]
    graph = helper.make_graph(
        nodes,
        "conv_act_pool",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, arrays["input"].shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, output)],
        initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _network(case: Case) -> bytes:
    """A whole network, exported by PyTorch: in a process of its own, whose threads end with it."""
    if case.mode == TRAINING:
        raise Unsupported("runs inference alone")
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder, "network.onnx")
        command = [sys.executable, "-m", "benchmarks.peers.export_network"]
        subprocess.run(
            [*command, json.dumps(case.to_json()), str(target)], check=True, stdout=sys.stderr
        )
        return target.read_bytes()
