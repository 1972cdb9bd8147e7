"""The GPU's fused convolutions beside what they would replace, layer by layer: what a plan needs.

    python -m benchmarks.cuda_convolutions --dtype bfloat16 --out benchmarks/results/<gpu>/cuda.md

Ways, in turn, channels_last, all with the same values: the CUDA backend's implicit_gemm with tiles
of 64 and of 128 rows, its epilogue behind cuDNN, Triton's implicit_gemm, and PyTorch's layers one
after another. Times are medians of `triton.testing.do_bench`, which empties the cache in between.
The floor is the longer of operations over the peak of a matrix product and bytes over the bandwidth
of a copy, both measured in the same run. Float32 is multiplied as tf32, PyTorch's default.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast import cuda_support
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool, conv_output_size
from crossmedia_fast.ops.conv_act_pool.autograd_conv import conv_act_pool2d_native
from crossmedia_fast.ops.conv_act_pool.cuda_conv import FusedConv2d

from .peers.torch_peer import conv_arguments
from .shapes import CONV_SHAPES, INFERENCE, TRAINING, Case, ConvShape
from .work import FLOAT, count

COLUMNS = (
    "layer",
    "problem",
    "mode",
    "64 rows",
    "128 rows",
    "epilogue",
    "Triton",
    "PyTorch",
    "floor",
)
DEVICE = "cpu" if cuda_support.emulated() else "cuda"
BATCH = 8  # times the batch that the CPU's suites measure


def milliseconds(call: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, warmup=20, rep=100, return_mode="median"))


def limits(dtype: torch.dtype) -> tuple[float, float]:
    """Operations and bytes a millisecond: a large matrix product, and a large copy."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=dtype)
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return (
        2 * 8192**3 / milliseconds(lambda: a @ a),
        2 * source.numel() / milliseconds(lambda: target.copy_(source)),
    )


def ways(
    shape: ConvShape, x: Tensor, w: Tensor, bias: Tensor
) -> dict[str, Callable[..., Tensor] | str]:
    """Each way to compute the layer, or why it can't."""
    a = conv_arguments(shape)
    conv = check_conv(a["stride"], a["padding"], 1, a["groups"])
    pool = check_pool(
        a["activation"],
        a["activation_param"],
        a["pool"],
        a.get("pool_size", 2),
        a.get("pool_stride"),
        a.get("pool_padding", 0),
        a.get("ceil_mode", False),
        True,
    )
    z_shape = (x.shape[0], w.shape[0], *conv_output_size(x, w, conv))
    shapes = (tuple(x.shape), tuple(w.shape), z_shape, x.dtype, conv, pool, True, True)

    def fused(rows: int) -> Callable[..., Tensor] | str:
        try:
            kernels = FusedConv2d(*shapes)
        except NotImplementedError as error:
            return str(error)
        kernels.tile_rows = rows
        return lambda *tensors: conv_act_pool2d_native(*tensors, kernels)

    def in_triton() -> Callable[..., Tensor] | str:
        from crossmedia_fast.ops.conv_act_pool import triton_conv

        kernels = triton_conv.fused(x, w, z_shape, conv, pool)
        return lambda *tensors: conv_act_pool2d_native(*tensors, kernels)

    return {
        "64 rows": fused(64),
        "128 rows": fused(128),
        "epilogue": lambda *tensors: cmf.conv_act_pool2d(*tensors, backend="cuda", **a),
        "Triton": in_triton(),
        "PyTorch": lambda *tensors: cmf.conv_act_pool2d_reference(*tensors, **a),
    }


def measure(shape: ConvShape, dtype: torch.dtype, mode: str, peaks: tuple[float, float]) -> str:
    """The table's row of one layer."""
    case = Case(shape, mode)
    batch = BATCH * case.batch
    generator = torch.Generator(DEVICE).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        values = torch.randn(sizes, generator=generator, device=DEVICE)
        return values.to(dtype).requires_grad_(mode == TRAINING)

    taps = shape.channels // shape.groups * shape.kernel**2
    x = random(batch, shape.channels, shape.size, shape.size).detach()
    x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(mode == TRAINING and not shape.first)
    w = random(shape.filters, shape.channels // shape.groups, shape.kernel, shape.kernel).detach()
    w = (w * taps**-0.5).contiguous(memory_format=torch.channels_last)
    w.requires_grad_(mode == TRAINING)
    tensors = (x, w, random(shape.filters))
    wanted = [t for t in tensors if t.requires_grad]

    found, results = [], {}
    for name, way in ways(shape, *tensors).items():
        if isinstance(way, str):
            found.append("-")
            continue

        def call(way: Callable[..., Tensor] = way) -> Tensor:
            y = way(*tensors)
            if wanted:
                torch.autograd.grad(y, wanted, y.detach())
            return y

        results[name] = call().detach()
        found.append(f"{milliseconds(call):.3f}")
    for name, y in results.items():  # right before fast
        want = results["PyTorch"].float()
        torch.testing.assert_close(
            y.float(), want, rtol=0, atol=0.05 * want.abs().max().item(), msg=f"{shape.name} {name}"
        )
    work = count(case)
    size = work.bytes * BATCH * dtype.itemsize / FLOAT
    floor = max(work.operations * BATCH / peaks[0], size / peaks[1])
    row = [shape.name, shape.describe(batch), mode, *found, f"{floor:.3f}"]
    return "| " + " | ".join(row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_convolutions")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--shapes", help="names, separated by commas; all unless told")
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    dtype = getattr(torch, arguments.dtype)
    names = arguments.shapes.split(",") if arguments.shapes else [s.name for s in CONV_SHAPES]
    peaks = limits(dtype)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for shape in CONV_SHAPES:
        for mode in (INFERENCE, TRAINING) if shape.name in names else ():
            lines.append(measure(shape, dtype, mode, peaks))
            print(lines[-1], flush=True)
    text = (
        f"# Convolutions on {torch.cuda.get_device_name()}\n\n{arguments.dtype}, channels_last, "
        f"milliseconds; `python -m benchmarks.cuda_convolutions --dtype {arguments.dtype}`. "
        f"Measured peaks: {peaks[0] / 1e9:.0f} TFLOP/s, {peaks[1] / 1e6:.0f} GB/s.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
