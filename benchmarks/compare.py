"""Compares crossmedia_fast with its peers, each in processes of its own, variants in turn.

    python -m benchmarks.compare --suite inference --shapes quick --peers all --threads 2

Prints a table a suite; writes JSON and plots beside it. benchmarks/README.md says how it is
measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

from . import limits as limits_module
from . import plots, report, results_file, work
from .driver import PeerProcess, measure_case, processes
from .peers import Peer, is_ours
from .peers import select as select_peers
from .progress import Progress
from .repetitions import pool_repetitions
from .shapes import SUITES, Case, ModelShape
from .shapes import select as select_cases


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", required=True, help=f"all, or of {', '.join(SUITES)} some")
    parser.add_argument(
        "--shapes", default="quick", help="quick, all, or names or their beginnings with commas"
    )
    parser.add_argument("--peers", default="all", help="all, torch, or names with commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of every peer, per case and process"
    )
    parser.add_argument(
        "--processes", type=int, default=3, help="processes every peer runs in, one after another"
    )
    parser.add_argument("--seconds", type=float, default=0.06, help="time of one turn")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="a folder, or for one suite a .json file (default: benchmarks/results/<machine>/)",
    )
    parser.add_argument("--no-plot", action="store_true")
    options = parser.parse_args(argv)
    if min(options.threads, options.rounds, options.processes) < 1 or options.seconds <= 0:
        parser.error("--threads, --rounds, --processes and --seconds: expected positive numbers")
    options.interrupted = False
    options.suites = list(SUITES) if options.suite == "all" else options.suite.split(",")
    try:
        for suite in options.suites:
            if suite not in SUITES:
                raise ValueError(f"suite: expected all or of {', '.join(SUITES)}, got {suite!r}")
            select_cases(suite, options.shapes)
            select_peers(suite, options.peers)
    except ValueError as error:
        parser.error(str(error))
    if options.out is None:
        options.out = pathlib.Path(__file__).parent / "results" / results_file.machine_name()
    elif options.out.suffix == ".json" and len(options.suites) > 1:
        parser.error("--out: several suites need a folder")
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


def _peer_rows(selected: list[Peer], started: list[PeerProcess]) -> dict[str, Any]:
    """A row a peer, from all the processes of a suite: its version, or why it didn't run."""
    rows: dict[str, Any] = {}
    for peer in selected:
        row: dict[str, Any] = {"label": peer.label}
        workers = [worker for worker in started if worker.peer.name == peer.name]
        errors = [worker.error for worker in workers if worker.error]
        if not workers:
            row["reason"] = peer.missing()
        elif errors:
            row["reason"] = errors[0]
        else:
            row["version"] = workers[0].version
        rows[peer.name] = row
    return rows


def _measure(
    cases: Sequence[Case], peers: list[Peer], options: argparse.Namespace, progress: Progress
) -> tuple[list[PeerProcess], list[dict[str, Any]]]:
    """The processes, by now closed, and for every case its peers' rows.

    All cases are measured before the next processes start, because starts are what takes long.
    Interrupted, what the processes before had measured counts, or else the first ones' cases.
    """
    started: list[PeerProcess] = []
    repetitions: list[list[dict[str, Any]]] = []
    try:
        for number in range(options.processes):
            progress.step(f"processes {number + 1} of {options.processes}: start")
            earlier = number * options.rounds
            with processes(peers, options.threads) as workers:
                started += workers
                repetitions.append([])
                for case in cases:
                    rows = measure_case(
                        case, workers, options.rounds, options.seconds, progress.step, earlier
                    )
                    repetitions[-1].append(rows)
    except KeyboardInterrupt:
        if len(repetitions) > 1:
            repetitions.pop()
        if not repetitions or not repetitions[0]:
            raise
        options.interrupted, options.processes = True, len(repetitions)
    return started, [pool_repetitions(list(rows)) for rows in zip(*repetitions, strict=True)]


def _steps(cases: int, peers: int, options: argparse.Namespace) -> int:
    """Of a suite: the limits; then in turn starts, and for every case preparations and rounds."""
    return 1 + int(options.processes) * (1 + cases * (peers + int(options.rounds)))


def run(suite: str, options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measures a suite; returns the document."""
    machine = results_file.machine()
    cases, selected = select_cases(suite, options.shapes), select_peers(suite, options.peers)
    present = [peer for peer in selected if not peer.missing()]
    with Progress(suite, _steps(len(cases), len(present), options)) as progress:
        progress.step("limits of the machine")
        limits = limits_module.measure_apart(options.threads, min(0.5, 5 * options.seconds))
        started, results = _measure(cases, present, options, progress)
    document = {
        "format": results_file.FORMAT,
        "suite": suite,
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": results_file.commit(),
        "machine": machine,
        "versions": results_file.versions(),
        "settings": {
            "threads": options.threads,
            "rounds": options.rounds,
            "processes": options.processes,
            "seconds_a_turn": options.seconds,
        },
        "limits": limits.to_json(),
        "peers": _peer_rows(selected, started),
        # an interrupted run has fewer results
        "cases": [case_row(*pair, limits) for pair in zip(cases, results, strict=False)],
        "summary": {},
    }
    document["summary"] = report.summarise(document)
    return document


def main(argv: list[str] | None = None) -> int:
    options = _arguments(argv)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "benchmarks.compare", *words])
    # asked to end (timeout, a batch system), it writes what it has, as at Ctrl-C
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        worked = [_run_and_write(suite, options, command) for suite in options.suites]
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if all(worked) else 1


def _run_and_write(suite: str, options: argparse.Namespace, command: str) -> bool:
    """Whether nothing of ours failed. Ends the program where it was interrupted."""
    document = run(suite, options, command)
    wrong = results_file.check(document)
    if wrong:
        raise RuntimeError("the results are malformed: " + "; ".join(wrong))
    out = options.out if options.out.suffix == ".json" else options.out / f"{suite}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    report.print_table(document)
    pictures = [] if options.no_plot else plots.write(document, out)
    for path in (out, *pictures):
        print(f"written: {path}")
    if options.interrupted:
        print(f"{suite}: interrupted; written is what was measured before", file=sys.stderr)
        sys.exit(1)
    # A peer that fails is reported; that ours fails or is wrong is an error.
    return not any(
        row["status"] == "failed"
        for case in document["cases"]
        for name, row in case["results"].items()
        if is_ours(name)
    )


if __name__ == "__main__":
    sys.exit(main())
