"""OpenVINO, CPU plugin, latency mode, float32 arithmetic (its default may be bfloat16)."""

from __future__ import annotations

import numpy as np
import openvino as ov

from ..data import Arrays
from ..shapes import Case
from . import Prepared
from .onnx_model import onnx_model, output_name


def version() -> str:
    return str(ov.__version__)


def build(case: Case, arrays: Arrays, threads: int, variant: str) -> Prepared:
    core = ov.Core()
    model = core.read_model(onnx_model(case, arrays))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(arrays["input"], shared_memory=True))

    def call() -> None:
        request.infer()

    def outputs() -> Arrays:
        call()
        return {output_name(case): np.array(request.get_output_tensor().data)}

    return Prepared(call, outputs)
