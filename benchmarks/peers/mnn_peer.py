"""MNN, float32, through a saved model and a session: the way it is deployed."""

from __future__ import annotations

import pathlib
import tempfile

import MNN
import MNN.expr as expr
import numpy as np

from ..data import Arrays
from ..shapes import Case, ConvShape
from . import Prepared, Unsupported


def version() -> str:
    return str(MNN.version())


def _graph(shape: ConvShape, arrays: Arrays) -> expr.Var:
    size = list(arrays["input"].shape)
    x = expr.placeholder(size, expr.NCHW)
    x.name = "input"
    weight = expr.const(arrays["weight"], list(arrays["weight"].shape))
    bias = expr.const(arrays["bias"], list(arrays["bias"].shape))
    y = expr.conv2d(
        expr.convert(x, expr.NC4HW4),
        weight,
        bias,
        stride=[shape.stride] * 2,
        padding=[shape.padding] * 2,
        group=shape.groups,
        padding_mode=expr.CAFFE,  # the paddings as given
    )
    if shape.activation == "relu":
        y = expr.relu(y)
    elif shape.activation == "leaky_relu":
        y = expr.relu(y, 0.01 if shape.activation_param is None else shape.activation_param)
    elif shape.activation == "relu6":
        y = expr.relu6(y)
    else:
        raise Unsupported(f"activation {shape.activation}")
    if shape.pool != "none":
        if shape.ceil_mode and (shape.conv_size - shape.pool_size) % shape.pool_stride:
            raise Unsupported("ceil_mode")
        pool = expr.max_pool if shape.pool == "max" else expr.avg_pool
        y = pool(
            y,
            [shape.pool_size] * 2,
            [shape.pool_stride] * 2,
            expr.CAFFE,
            [shape.pool_padding] * 2,
        )
    y = expr.convert(y, expr.NCHW)
    y.name = "output"
    return y


def build(case: Case, arrays: Arrays, threads: int, variant: str) -> Prepared:
    shape = case.shape
    if not isinstance(shape, ConvShape):
        raise Unsupported("losses are not inference")
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder, "net.mnn"))
        expr.save([_graph(shape, arrays)], path)
        interpreter = MNN.Interpreter(path)
    session = interpreter.createSession(
        {"backend": "CPU", "numThread": threads, "precision": "high"}
    )
    layout = MNN.Tensor_DimensionType_Caffe
    source = MNN.Tensor(arrays["input"].shape, MNN.Halide_Type_Float, arrays["input"], layout)
    interpreter.getSessionInput(session).copyFrom(source)
    pooled = (case.batch, shape.filters, shape.pooled_size, shape.pooled_size)

    def call() -> None:
        interpreter.runSession(session)

    def outputs() -> Arrays:
        call()
        target = MNN.Tensor(pooled, MNN.Halide_Type_Float, np.zeros(pooled, np.float32), layout)
        interpreter.getSessionOutput(session).copyToHostTensor(target)
        return {"output": np.array(target.getNumpyData(), np.float32).reshape(pooled)}

    return Prepared(call, outputs)
