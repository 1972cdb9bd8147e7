"""How much each convolution algorithm rounds, beside PyTorch's own convolution.

    python -m benchmarks.accuracy --out benchmarks/results/<machine>/accuracy.md

A row a layer of the inference suite (batch 1): max |error| / max |z| of the convolution alone, no
activation and no pooling, against float64; the largest over contiguous and channels_last.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import torch
import torch.nn.functional as F

from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool
from crossmedia_fast.ops.conv_act_pool.cpu_conv import ConvLaunch
from crossmedia_fast.ops.conv_act_pool.plan import CONVOLUTIONS

from .data import make_arrays
from .shapes import CONV_SHAPES, INFERENCE, Case, ConvShape

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def errors(shape: ConvShape) -> dict[str, float]:
    """Each algorithm's error on one layer; absent where it doesn't take it."""
    arrays = make_arrays(Case(dataclasses.replace(shape, inference_batch=1), INFERENCE))
    x, w = torch.from_numpy(arrays["input"]), torch.from_numpy(arrays["weight"])
    conv = check_conv(shape.stride, shape.padding, 1, shape.groups)
    nothing = check_pool("identity", None, "none", 2, None, 0, False, True)
    arguments = (conv.stride, conv.padding, conv.dilation, conv.groups)
    exact = F.conv2d(x.double(), w.double(), None, *arguments)
    scale = exact.abs().max()
    found: dict[str, float] = {}
    for name, memory_format in FORMATS.items():
        formatted = x.contiguous(memory_format=memory_format)
        own = F.conv2d(formatted, w.contiguous(memory_format=memory_format), None, *arguments)
        found[f"PyTorch {name}"] = ((own - exact).abs().max() / scale).item()
        last = name == "channels_last"
        launch = ConvLaunch(
            tuple(x.shape), tuple(w.shape), tuple(exact.shape), x.dtype, conv, nothing, last, last
        )
        for algorithm in CONVOLUTIONS:
            if launch.refusal(algorithm):
                continue
            z, _, _ = launch.forward(algorithm, formatted, w, None, save=False)
            error = ((z - exact).abs().max() / scale).item()
            found[algorithm] = max(found.get(algorithm, 0.0), error)
    return found


def table() -> str:
    """The rows of every layer, as Markdown."""
    columns = [f"PyTorch {name}" for name in FORMATS] + list(CONVOLUTIONS)
    lines = [
        "| layer | C, filter | " + " | ".join(columns) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for shape in CONV_SHAPES:
        found = errors(shape)
        cells = [f"{found[name]:.1e}" if name in found else "" for name in columns]
        filters = f"{shape.channels}, {shape.kernel}×{shape.kernel}/{shape.stride}"
        lines.append(f"| {shape.name} | {filters} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file")
    out = parser.parse_args().out
    text = table()
    print(text, end="")
    if out is not None:
        out.write_text(
            "# Rounding of the convolution algorithms\n\nmax |error| / max |z| against float64; "
            "`python -m benchmarks.accuracy`.\n\n" + text
        )


if __name__ == "__main__":
    main()
