"""Each layer's own kernel against the limit that binds it.

    python -m benchmarks.kernels --threads 2 --out benchmarks/results/<machine>/kernels.md

The comparison counts the operations of direct convolution, whoever computes; here an algorithm is
held to what it does itself: Winograd's transforms are not counted (they are overhead), its products
are. The share is the longer of operations over the arithmetic peak and bytes over the copy
bandwidth, divided by the measured time: what is missing to 100% went into transforms, caches, the
tiles' edges and calls.
"""

from __future__ import annotations

import argparse
import pathlib

import torch

import crossmedia_fast as cmf

from . import timing
from .data import make_arrays
from .limits import Limits, measure_apart
from .peers.torch_peer import conv_arguments
from .shapes import CONV_SHAPES, INFERENCE, Case, ConvShape
from .work import FLOAT, count

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def own_operations(algorithm: str, shape: ConvShape, batch: int) -> int:
    """Multiplications and additions of the algorithm's products over a batch."""
    per_group = shape.channels // shape.groups
    direct = 2 * batch * shape.filters * shape.conv_size**2 * per_group * shape.kernel**2
    outputs = {"winograd": 4, "winograd_f6": 6}.get(algorithm, 0)
    if algorithm == "few_channels" and (shape.kernel, shape.stride, shape.pool) == (3, 1, "max"):
        outputs = 2  # F(2x2): a tile a pooling window
    if not outputs:
        return direct
    taps = -(-shape.kernel // shape.stride)
    tiles = batch * (-(-shape.conv_size // outputs)) ** 2
    phases = shape.stride**2
    return 2 * tiles * (outputs + taps - 1) ** 2 * shape.channels * phases * shape.filters


def measure(shape: ConvShape, limits: Limits, seconds: float) -> list[str]:
    """The table's row of one layer, in the memory format in which it is faster."""
    case = Case(shape, INFERENCE)
    arrays = {name: torch.from_numpy(a) for name, a in make_arrays(case).items()}
    arguments = conv_arguments(shape)
    found = []
    for name, memory_format in FORMATS.items():
        x = arrays["input"].contiguous(memory_format=memory_format)
        tensors = (x, arrays["weight"], arrays["bias"])

        def call(tensors: tuple[torch.Tensor, ...] = tensors) -> None:
            cmf.conv_act_pool2d(*tensors, **arguments)

        with torch.inference_mode():
            algorithm = cmf.explain(*tensors, **arguments).algorithm
            block = timing.block_size(call)
            turns = [timing.turn(call, block, seconds) for _ in range(5)]
        found.append((timing.quantile(turns, 0.5), name, algorithm))
    time, name, algorithm = min(found)
    operations = own_operations(algorithm, shape, case.batch)
    size = count(case).bytes
    if algorithm == "epilogue":  # the convolution's output is written and read once more
        size += 2 * FLOAT * case.batch * shape.filters * shape.conv_size**2
    compute, memory = operations / limits.operations_per_second, size / limits.bandwidth(size)
    return [
        shape.name,
        shape.describe(case.batch),
        algorithm,
        name,
        f"{time * 1e3:.3f}",
        f"{operations / time / 1e9:.0f}",
        f"{size / time / 1e9:.1f}",
        "arithmetic" if compute >= memory else "memory",
        f"{100 * max(compute, memory) / time:.0f}%",
    ]


COLUMNS = ("layer", "problem", "algorithm", "format", "ms", "GFLOP/s", "GB/s", "bound", "of limit")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.05, help="a turn; a layer has ten")
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file")
    arguments = parser.parse_args()
    limits = measure_apart(arguments.threads)
    torch.set_num_threads(arguments.threads)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for shape in CONV_SHAPES:
        lines.append("| " + " | ".join(measure(shape, limits, arguments.seconds)) + " |")
        print(lines[-1], flush=True)
    copies = ", ".join(
        f"{rate / 1e9:.0f} GB/s at {size >> 10} KiB"
        for size, rate in sorted(limits.copy_bytes_per_second.items())
    )
    text = (
        f"# Kernels and their limits\n\n{arguments.threads} threads, float32, inference; "
        "`python -m benchmarks.kernels`. GFLOP/s are the algorithm's own products.\n\n"
        f"Limits measured in the same run: {limits.operations_per_second / 1e9:.0f} GFLOP/s "
        f"(matrix product); copies {copies}.\n\n" + "\n".join(lines) + "\n"
    )
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
