"""``python -m crossmedia_fast bench``: runs the benchmark suites of a source checkout.

The suites, their peers and their committed results live in the checkout's ``benchmarks`` folder; an
installed package has none of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="passed on to `python -m benchmarks.compare` (--suite, --peers, --rounds, --out ...)",
    )


def _checkout() -> Path | None:
    for folder in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if (folder / "benchmarks" / "compare.py").is_file():
            return folder
    return None


def run(arguments: argparse.Namespace) -> int:
    folder = _checkout()
    if folder is None:
        print(
            "error: the benchmark suites are in the source checkout, not in the installed package: "
            "run this from a clone of crossmedia_fast",
            file=sys.stderr,
        )
        return 2
    command = [sys.executable, "-m", "benchmarks.compare", *arguments.arguments]
    return subprocess.run(command, cwd=folder, check=False).returncode
