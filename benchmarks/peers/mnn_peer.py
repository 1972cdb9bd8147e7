"""MNN, float32, through a saved model and a session: the way it is deployed."""

from __future__ import annotations

import pathlib
import tempfile

import _tools  # MNN's converter
import MNN
import numpy as np

from ..data import Arrays
from ..shapes import Case, LossShape, ModelShape
from . import Prepared, Unsupported
from .onnx_model import onnx_model


def version() -> str:
    return str(MNN.version())


def _convert(case: Case, arrays: Arrays, folder: str) -> str:
    """MNN's own model file, by its converter.

    The extension module is called directly: the Python package around it (MNN.tools) installs a
    package and reports over the network when it is imported.
    """
    source, target = pathlib.Path(folder, "net.onnx"), pathlib.Path(folder, "net.mnn")
    source.write_bytes(onnx_model(case, arrays))
    command = ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)]
    _tools.mnnconvert(command)
    if not target.is_file():
        raise RuntimeError("MNN did not convert the model")
    return str(target)


def build(case: Case, arrays: Arrays, threads: int, variant: str) -> Prepared:
    shape = case.shape
    if isinstance(shape, LossShape):
        raise Unsupported("losses are not inference")
    with tempfile.TemporaryDirectory() as folder:
        interpreter = MNN.Interpreter(_convert(case, arrays, folder))
    session = interpreter.createSession(
        {"backend": "CPU", "numThread": threads, "precision": "high"}
    )
    layout = MNN.Tensor_DimensionType_Caffe
    source = MNN.Tensor(arrays["input"].shape, MNN.Halide_Type_Float, arrays["input"], layout)
    interpreter.getSessionInput(session).copyFrom(source)
    if isinstance(shape, ModelShape):
        from ..models import output_shape

        name, pooled = "network_output", output_shape(case)
    else:
        name = "output"
        pooled = (case.batch, shape.filters, shape.pooled_size, shape.pooled_size)

    def call() -> None:
        interpreter.runSession(session)

    def outputs() -> Arrays:
        call()
        target = MNN.Tensor(pooled, MNN.Halide_Type_Float, np.zeros(pooled, np.float32), layout)
        interpreter.getSessionOutput(session).copyToHostTensor(target)
        return {name: np.array(target.getNumpyData(), np.float32).reshape(pooled)}

    return Prepared(call, outputs)
