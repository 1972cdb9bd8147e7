"""Compares crossmedia_fast with its peers, each in a process of its own, variants in turn.

    python -m benchmarks.compare --suite inference --shapes quick --peers all --threads 2

Prints a table; writes JSON and a plot beside it. benchmarks/README.md says how it is measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import shlex
import sys
from typing import Any

from . import limits as limits_module
from . import report, results_file, work
from .driver import PeerProcess, measure_case, processes
from .peers import select as select_peers
from .shapes import SUITES, Case, ModelShape
from .shapes import select as select_cases


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument(
        "--shapes", default="quick", help="quick, all, or names or their beginnings with commas"
    )
    parser.add_argument("--peers", default="all", help="all, torch, or names with commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7, help="turns of every peer, per case")
    parser.add_argument("--seconds", type=float, default=0.06, help="time of one turn")
    parser.add_argument(
        "--out", type=pathlib.Path, help="default: benchmarks/results/<machine>/<suite>.json"
    )
    parser.add_argument("--no-plot", action="store_true")
    options = parser.parse_args(argv)
    if options.threads < 1 or options.rounds < 1 or options.seconds <= 0:
        parser.error("--threads, --rounds and --seconds: expected positive numbers")
    try:
        options.cases = select_cases(options.suite, options.shapes)
        options.selected = select_peers(options.suite, options.peers)
    except ValueError as error:
        parser.error(str(error))
    if options.out is None:
        folder = pathlib.Path(__file__).parent / "results" / results_file.machine_name()
        options.out = folder / f"{options.suite}.json"
    return options


def case_row(case: Case, rows: dict[str, Any], limits: limits_module.Limits) -> dict[str, Any]:
    """A case's entry in the document: its physics and everyone's result."""
    needed = work.count(case)
    limit = needed.limit_seconds(limits)
    for row in rows.values():
        if row["status"] == "measured":
            row["share_of_limit"] = limit / row["seconds"]["median"]
    # of a layer what backward keeps, of a network by how much memory grows in a step
    measure = "peak_bytes" if isinstance(case.shape, ModelShape) else "kept_bytes"
    kept = {name: row.get(measure) for name, row in rows.items()}
    ours = [kept[name] for name in ("fused", "fused_channels_last") if kept.get(name) is not None]
    # A layout may keep a converted copy, so each side is taken at its best.
    eager = [kept[name] for name in ("eager", "eager_channels_last") if kept.get(name) is not None]
    return {
        "id": case.id,
        "description": case.description,
        **case.to_json(),
        "operations": needed.operations,
        "bytes": needed.bytes,
        "limit_seconds": limit,
        "bound": needed.bound(limits),
        "memory_ratio": min(eager) / min(ours) if ours and eager and min(ours) else None,
        "results": rows,
    }


def _peer_rows(options: argparse.Namespace, workers: list[PeerProcess]) -> dict[str, Any]:
    started = {worker.peer.name: worker for worker in workers}
    rows: dict[str, Any] = {}
    for peer in options.selected:
        row: dict[str, Any] = {"label": peer.label}
        worker = started.get(peer.name)
        if worker is None:
            row["reason"] = peer.missing()
        elif worker.error:
            row["reason"] = worker.error
        else:
            row["version"] = worker.version
        rows[peer.name] = row
    return rows


def run(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measures; returns the document."""

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    machine = results_file.machine()
    progress("limits of the machine")
    limits = limits_module.measure_apart(options.threads, min(0.5, 5 * options.seconds))
    cases = []
    with processes([p for p in options.selected if not p.missing()], options.threads) as workers:
        peers = _peer_rows(options, workers)
        able = [worker for worker in workers if not worker.error]
        for case in options.cases:
            rows = measure_case(case, able, options.rounds, options.seconds, progress)
            cases.append(case_row(case, rows, limits))
    progress("")
    document = {
        "format": results_file.FORMAT,
        "suite": options.suite,
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": results_file.commit(),
        "machine": machine,
        "settings": {
            "threads": options.threads,
            "rounds": options.rounds,
            "seconds_a_turn": options.seconds,
        },
        "limits": limits.to_json(),
        "peers": peers,
        "cases": cases,
        "summary": {},
    }
    document["summary"] = report.summarise(document)
    return document


def main(argv: list[str] | None = None) -> int:
    options = _arguments(argv)
    words = sys.argv[1:] if argv is None else argv
    document = run(options, shlex.join(["python", "-m", "benchmarks.compare", *words]))
    wrong = results_file.check(document)
    if wrong:
        raise RuntimeError("the results are malformed: " + "; ".join(wrong))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    report.print_table(document)
    print(f"written: {options.out}")
    if not options.no_plot:
        picture = options.out.with_suffix(".png")
        report.plot(document, picture)
        print(f"written: {picture}")
    # A peer that fails is reported; that ours fails or is wrong is an error.
    ours = [row for case in document["cases"] for n, row in case["results"].items()
            if n.startswith("fused") and row["status"] == "failed"]  # fmt: skip
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
