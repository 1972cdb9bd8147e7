"""One peer in one process. Reads a JSON request a line, answers with a JSON object a line.

{"do": "prepare", "case": {...}, "arrays": PATH, "expected": PATH}
    -> {"ok": true, "errors": {name: relative error}, "note": "...", "kept_bytes": n or null,
        "peak_bytes": n or null}
{"do": "time", "seconds": s}   -> {"ok": true, "seconds": median of this turn's samples}
{"do": "stop"}
anything that fails -> {"ok": false, "status": "unsupported" or "failed", "reason": ...}
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import signal
import sys
from typing import Any, TextIO

import numpy as np

from . import memory, timing
from .data import Arrays, compare
from .peers import PEERS, Prepared, Unsupported
from .shapes import TRAINING, Case, ModelShape

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """A worker that is stopped between its turns must not outlive the driver."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def load(folder: str) -> Arrays:
    return {path.stem: np.load(path) for path in sorted(pathlib.Path(folder).glob("*.npy"))}


class Worker:
    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.peer = importlib.import_module(f"benchmarks.peers.{PEERS[name].module}")
        self.prepared: Prepared | None = None
        self.arrays: Arrays = {}
        self.block = 1

    def prepare(self, case: Case, arrays: str, expected: str) -> dict[str, Any]:
        self.prepared = None
        gc.collect()
        self.arrays = load(arrays)  # some runtimes borrow the memory and hold no reference
        # A runtime keeps weights in its own form, and memory between calls: all of it counts.
        serving = isinstance(case.shape, ModelShape) and case.mode != TRAINING
        before = memory.resident_bytes() if serving else None
        prepared = self.peer.build(case, self.arrays, self.threads, self.name)
        errors = compare(prepared.outputs(), load(expected))  # right first, then fast
        self.block = timing.block_size(prepared.call)
        kept = None if prepared.kept_bytes is None else prepared.kept_bytes()
        peak = None
        if before is not None:
            peak = memory.peak_bytes(prepared.call, before)
        elif prepared.peak_bytes is not None:
            peak = prepared.peak_bytes()
        self.prepared = prepared
        return {"errors": errors, "note": prepared.note, "kept_bytes": kept, "peak_bytes": peak}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "prepare":
            case = Case.from_json(request["case"])
            return self.prepare(case, request["arrays"], request["expected"])
        if request["do"] == "time" and self.prepared is not None:
            seconds = timing.turn(self.prepared.call, self.block, request["seconds"])
            return {"seconds": seconds}
        raise ValueError(f"unexpected request {request}")


def serve(name: str, threads: int, requests: TextIO, answers: TextIO) -> None:
    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        worker = Worker(name, threads)
        say({"ok": True, "version": worker.peer.version(), "pid": os.getpid()})
    except Exception as error:
        say({"ok": False, "status": "failed", "reason": f"{type(error).__name__}: {error}"})
        return
    for line in requests:
        request = json.loads(line)
        if request["do"] == "stop":
            return
        try:
            say({"ok": True, **worker.answer(request)})
        except Unsupported as error:
            say({"ok": False, "status": "unsupported", "reason": str(error)})
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            say({"ok": False, "status": "failed", "reason": reason})


def main() -> None:
    _die_with_parent()
    # Libraries print to stdout as they like: keep the real one for answers, give them stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], int(sys.argv[2]), sys.stdin, answers)


if __name__ == "__main__":
    main()
