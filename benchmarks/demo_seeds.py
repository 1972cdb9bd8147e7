"""The demo trained fused and with the reference, over several seeds: time and final quality.

    python -m benchmarks.demo_seeds --seeds 0 1 2 3 4 --out benchmarks/results/<machine>/demo.md

Every run is a process of its own, `python -m crossmedia_fast demo` with its default settings; the
two variants take turns. Seconds an epoch are the median over a run's epochs, the first left out
(it warms up); the table gives mean and standard deviation over the seeds. Quality is what the demo
itself reports: test accuracy of the CNN, and the CNN's mean confidence in the generated images.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

VARIANTS = {"fused": None, "reference": "reference"}


def run_demo(backend: str | None, seed: int, threads: int) -> dict[str, Any]:
    """One run's report.json."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "crossmedia_fast", "demo", "--seed", str(seed)]
        command += ["--threads", str(threads), "--out", folder]
        if backend is not None:
            command += ["--backend", backend]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads((pathlib.Path(folder) / "report.json").read_text())


def figures(report: dict[str, Any]) -> dict[str, float]:
    """What the table compares of one run."""

    def epoch(history: list[dict[str, float]]) -> float:
        return statistics.median(row["seconds"] for row in history[1:] or history)

    found = {
        "CNN, seconds an epoch": epoch(report["cnn"]["history"]),
        "CNN, test accuracy, %": 100 * report["cnn"]["test_accuracy"],
    }
    for kind, gan in report["gans"].items():
        verdict = gan["verdict"]
        found[f"{kind} GAN, seconds an epoch"] = epoch(gan["history"])
        found[f"{kind} GAN, mean confidence, %"] = 100 * verdict["mean_confidence"]
        found[f"{kind} GAN, classes covered"] = verdict["covered_classes"]
    return found


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation of every figure, a column a variant, as Markdown."""
    lines = ["| | " + " | ".join(runs) + " |", "|" + "---|" * (len(runs) + 1)]
    for name in next(iter(runs.values()))[0]:
        cells = []
        for rows in runs.values():
            values = [row[name] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4g} ± {spread:.2g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_seeds", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number, seed in enumerate(arguments.seeds):
        # the one that starts changes from seed to seed
        for name in sorted(VARIANTS, reverse=bool(number % 2)):
            runs[name].append(figures(run_demo(VARIANTS[name], seed, arguments.threads)))
            print(f"seed {seed}, {name}: {runs[name][-1]}", flush=True)
    text = table(runs)
    print(text, end="")
    if arguments.out is not None:
        seeds = ", ".join(map(str, arguments.seeds))
        arguments.out.write_text(
            f"# The demo, fused and reference\n\n{arguments.threads} threads, seeds {seeds}; mean "
            f"± standard deviation; `python -m benchmarks.demo_seeds`.\n\n{text}"
        )


if __name__ == "__main__":
    main()
