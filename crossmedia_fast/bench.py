"""``python -m crossmedia_fast bench``: the comparison with the peers, from a source checkout."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] = ()) -> int:
    """Runs ``python -m benchmarks.compare`` with `arguments`; returns its exit status.

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
    chosen = list(arguments) or ["--suite", "inference", "--shapes", "quick"]
    command = [sys.executable, "-m", "benchmarks.compare", *chosen]
    return subprocess.run(command, env=environment, check=False).returncode
