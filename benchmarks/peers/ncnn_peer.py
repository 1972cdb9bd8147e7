"""ncnn, float32, its default choice of algorithms. It has no batch: the images go one by one."""

from __future__ import annotations

import pathlib
import tempfile

import ncnn
import numpy as np

from ..data import Arrays
from ..shapes import Case, ConvShape
from . import Prepared, Unsupported

_MAGIC = 7767517


def version() -> str:
    return str(ncnn.__version__)


def _param(shape: ConvShape, weight_count: int) -> str:
    """The network in ncnn's text form; numbers are its parameter ids."""
    if shape.activation == "relu":
        activation = "9=1"
    elif shape.activation == "leaky_relu":
        slope = 0.01 if shape.activation_param is None else shape.activation_param
        activation = f"9=2 -23310=1,{slope:e}"
    elif shape.activation == "relu6":
        activation = f"9=3 -23310=2,{0.0:e},{6.0:e}"
    else:
        raise Unsupported(f"activation {shape.activation}")
    kind = "Convolution" if shape.groups == 1 else "ConvolutionDepthWise"
    conv_out = "output" if shape.pool == "none" else "activated"
    layers = [
        "Input input 0 1 input",
        f"{kind} conv 1 1 input {conv_out} 0={shape.filters} 1={shape.kernel} 3={shape.stride} "
        f"4={shape.padding} 5=1 6={weight_count} 7={shape.groups} {activation}",
    ]
    if shape.pool != "none":
        layers.append(
            f"Pooling pool 1 1 activated output 0={int(shape.pool == 'avg')} 1={shape.pool_size} "
            f"2={shape.pool_stride} 3={shape.pool_padding} 5={int(not shape.ceil_mode)} 6=1"
        )
    return f"{_MAGIC}\n{len(layers)} {len(layers)}\n" + "\n".join(layers) + "\n"


def build(case: Case, arrays: Arrays, threads: int, variant: str) -> Prepared:
    shape = case.shape
    if not isinstance(shape, ConvShape):
        raise Unsupported("losses are not inference")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    with tempfile.TemporaryDirectory() as folder:
        param, model = pathlib.Path(folder, "net.param"), pathlib.Path(folder, "net.bin")
        param.write_text(_param(shape, arrays["weight"].size))
        tag = np.uint32(0).tobytes()  # the weights follow as plain float32
        model.write_bytes(tag + arrays["weight"].tobytes() + arrays["bias"].tobytes())
        if net.load_param(str(param)) != 0 or net.load_model(str(model)) != 0:
            raise RuntimeError("ncnn did not read the network")
    images = [ncnn.Mat(image).clone() for image in arrays["input"]]

    def call() -> list[ncnn.Mat]:
        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("input", image)
            status, output = extractor.extract("output")
            if status != 0:
                raise RuntimeError(f"ncnn: extract returned {status}")
            results.append(output)
        return results

    def outputs() -> Arrays:
        pooled = (shape.filters, shape.pooled_size, shape.pooled_size)
        return {"output": np.stack([np.array(mat).reshape(pooled) for mat in call()])}

    return Prepared(call, outputs)
