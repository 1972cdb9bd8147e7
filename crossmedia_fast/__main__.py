"""``python -m crossmedia_fast info | demo | bench``."""

from __future__ import annotations

import argparse
import sys

from . import bench, info
from .demo import cli as demo


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (2: bad usage, as argparse)."""
    parser = argparse.ArgumentParser(
        prog="python -m crossmedia_fast",
        description="Fused convolution + activation + pooling and GAN losses for PyTorch.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module, text in (
        ("info", info, "versions, build, CPU features, GPUs, backends, OpenMP runtimes"),
        ("bench", bench, "run the benchmark suites of a source checkout"),
        ("demo", demo, "train a CNN and two GANs on real digits, fused beside reference"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    chosen = parser.parse_args(arguments)
    return int(chosen.run(chosen))


if __name__ == "__main__":
    sys.exit(main())
