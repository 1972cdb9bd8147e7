"""ONNX Runtime, CPU provider, all graph optimisations, tensors bound once."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from ..data import Arrays
from ..shapes import Case
from . import Prepared
from .onnx_model import onnx_model, output_name


def version() -> str:
    return ort.__version__


def build(case: Case, arrays: Arrays, threads: int, variant: str) -> Prepared:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(
        onnx_model(case, arrays), options, providers=["CPUExecutionProvider"]
    )
    output = np.empty([int(n) for n in session.get_outputs()[0].shape], np.float32)
    output_value = ort.OrtValue.ortvalue_from_numpy(output)
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(arrays["input"]))
    binding.bind_ortvalue_output("output", output_value)

    def call() -> None:
        session.run_with_iobinding(binding)

    def outputs() -> Arrays:
        call()
        return {output_name(case): output_value.numpy()}

    return Prepared(call, outputs)
