"""The GPU backends beside PyTorch's own ways, and beside what the card can do.

    python -m benchmarks.gpu [--cases REGEX] [--quick] [--out FOLDER]
    CROSSMEDIA_FAST_CUDA_SHIM=1 python -m benchmarks.gpu --dry-run    no GPU: tiny, right, untimed

A time is the median of CUDA events over calls; before each call a buffer larger than the L2 cache
is written, so that operands come from memory as they do in a network. The ceilings are measured
first: a copy, bytes read and written, and the best matrix product of each dtype.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

from . import gpu_timing
from .driver import ROOT
from .gpu_cases import DTYPES, Case, cases
from .results_file import commit, versions

COLUMNS = ("case", "way", "ms", "TFLOP/s", "GB/s", "of limit", "note")


@contextlib.contextmanager
def _exact_or_tf32(dtype: str) -> Iterator[None]:
    """Convolutions in IEEE float32, or in TF32 where that is the case's dtype."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.backends.cudnn.benchmark = True  # the best of cuDNN's own algorithms
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


def _measure(case: Case, ceilings: gpu_timing.Ceilings | None) -> list[dict[str, Any]]:
    rows = []
    with _exact_or_tf32(case.dtype):
        for way in case.ways():
            row: dict[str, Any] = {"case": case.name, "way": way.name}
            try:
                call = way.prepare()
                way.check()
                if ceilings is not None:
                    time = gpu_timing.seconds(call)
                    limit = max(
                        case.operations / ceilings.operations_per_second[case.dtype],
                        case.bytes / ceilings.copy_bytes_per_second,
                    )
                    row |= {
                        "seconds": time,
                        "operations_per_second": case.operations / time,
                        "bytes_per_second": case.bytes / time,
                        "share_of_limit": limit / time,
                    }
            except NotImplementedError as error:
                row["unsupported"] = str(error)
            except Exception as error:  # one way that fails must not end the others
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
            finally:
                way.forget()
            rows.append(row)
            print(" | ".join(_cells(row)), flush=True)
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    note = row.get("unsupported") or row.get("failed", "")
    if "seconds" not in row:
        return [row["case"], row["way"], "-", "-", "-", "-", note]
    return [
        row["case"],
        row["way"],
        f"{row['seconds'] * 1e3:.4f}",
        f"{row['operations_per_second'] / 1e12:.2f}",
        f"{row['bytes_per_second'] / 1e9:.0f}",
        f"{100 * row['share_of_limit']:.0f}%",
        note,
    ]


def _write(folder: pathlib.Path, rows: list[dict[str, Any]], ceilings: gpu_timing.Ceilings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    products = {name: rate / 1e12 for name, rate in ceilings.operations_per_second.items()}
    document = {
        "command": "python -m benchmarks.gpu " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "gpu": torch.cuda.get_device_name(),
        "versions": {
            **versions(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
        "copy_bytes_per_second": ceilings.copy_bytes_per_second,
        "operations_per_second": ceilings.operations_per_second,
        "rows": rows,
    }
    (folder / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [
        f"# {document['gpu']}",
        "",
        f"`{document['command']}`, {document['date']}, commit {document['commit']}.",
        f"Ceilings, measured: copies {ceilings.copy_bytes_per_second / 1e9:.0f} GB/s; products "
        + ", ".join(f"{name} {rate:.1f} TFLOP/s" for name, rate in products.items())
        + ".",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
    ]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--cases", default="", help="a regular expression; empty = all")
    parser.add_argument("--quick", action="store_true", help="one shape of each kind")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: tiny, right, untimed")
    parser.add_argument("--out", type=pathlib.Path, help="benchmarks/results/<GPU> unless given")
    given = parser.parse_args(arguments)
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; --dry-run checks the cases without one")
    ceilings = None if given.dry_run else gpu_timing.measure(DTYPES)
    device = "cpu" if given.dry_run else "cuda"
    rows: list[dict[str, Any]] = []
    for case in cases(device, given.quick, tiny=given.dry_run):
        if re.search(given.cases, case.name):
            rows += _measure(case, ceilings)
    if ceilings is not None:
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        _write(given.out or ROOT / "benchmarks" / "results" / name, rows, ceilings)
    failed = [row for row in rows if "failed" in row]
    for row in failed:
        print(f"failed: {row['case']} {row['way']}: {row['failed']}", file=sys.stderr)
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
