"""``python -m crossmedia_fast bench``: the comparison with the peers, from a source checkout."""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys

_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks.compare``."""
    parser.add_argument(
        "--suite",
        default="all",
        help="what to measure: all (default), or of inference, training, losses, ... some, with "
        "commas",
    )
    parser.add_argument(
        "--shapes", default="quick", help="quick (default), all, or names with commas"
    )
    parser.add_argument("--peers", default="all", help="all (default), torch, or names with commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of every peer in a process (default: 3)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=3,
        help="processes every peer runs in, one after another (default: 3)",
    )
    parser.add_argument(
        "--seconds", type=float, default=0.06, help="time of a turn (default: 0.06)"
    )
    parser.add_argument("--out", help="folder (default: benchmarks/results/<machine>)")
    parser.add_argument("--no-plot", action="store_true", help="write no pictures beside the JSON")


def run(options: argparse.Namespace) -> int:
    """Runs ``python -m benchmarks.compare``; returns its exit status.

    A table on the terminal; a JSON file and plots for each suite.
    The suite is not part of an installed package: it lives in ``benchmarks/`` of the source tree,
    with the results it is compared with.
    """
    if not (_CHECKOUT / "benchmarks" / "compare.py").is_file():
        print(
            "bench: the benchmark suite is in the directory benchmarks/ of the source checkout, "
            "which an installed package doesn't have; run this command there",
            file=sys.stderr,
        )
        return 2
    # A process of its own, in which this package and the suite come from the same checkout.
    environment = dict(os.environ)
    paths = (str(_CHECKOUT), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "benchmarks.compare"]
    names = ("suite", "shapes", "peers", "threads", "rounds", "processes", "seconds", "out")
    for name in names:
        value = getattr(options, name)
        if value is not None:
            command.append(f"--{name}={value}")
    if options.no_plot:
        command.append("--no-plot")
    return subprocess.run(command, env=environment, check=False).returncode
