"""Starts the peers' processes and lets them take turns."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import data
from .peers import Peer
from .shapes import Case

ROOT = pathlib.Path(__file__).resolve().parent.parent
_CAN_STOP = hasattr(signal, "SIGSTOP")


class PeerProcess:
    """A peer in its process. Between its turns the process is stopped (SIGSTOP): a runtime whose
    idle threads spin would otherwise slow down the one that is being timed."""

    def __init__(self, peer: Peer, threads: int) -> None:
        self.peer = peer
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close())
        environment = dict(os.environ)
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", peer.name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        hello = self._read()
        self.error = "" if hello["ok"] else hello["reason"]
        self.version = hello.get("version", "")
        self._stop()

    def _stop(self) -> None:
        if _CAN_STOP and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or [""])[-1]
            return {"ok": False, "status": "failed", "reason": f"ended with {code}: {last}"}
        return json.loads(line)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.error:  # it never started
            return {"ok": False, "status": "failed", "reason": self.error}
        if self.process.poll() is not None:
            return {"ok": False, "status": "failed", "reason": "its process has ended"}
        assert self.process.stdin is not None
        if _CAN_STOP:
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return self._read()
        except BrokenPipeError:
            return {"ok": False, "status": "failed", "reason": "its process has ended"}
        finally:
            self._stop()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.log.close()


@contextlib.contextmanager
def processes(peers: list[Peer], threads: int) -> Iterator[list[PeerProcess]]:
    started: list[PeerProcess] = []
    try:
        for peer in peers:
            started.append(PeerProcess(peer, threads))
        yield started
    finally:
        for process in started:
            process.close()


def _save(arrays: data.Arrays, folder: pathlib.Path) -> str:
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


def measure_case(
    case: Case,
    workers: list[PeerProcess],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None] = lambda text: None,
    earlier_rounds: int = 0,
) -> dict[str, dict[str, Any]]:
    """A row a peer: status, and for those that ran their turns, seconds a call, one a round.

    `earlier_rounds`: how many the processes before these had; who begins goes on from there.
    """
    rows: dict[str, dict[str, Any]] = {}
    running: list[tuple[PeerProcess, list[float]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        arrays = data.make_arrays(case)
        request = {
            "do": "prepare",
            "case": case.to_json(),
            "arrays": _save(arrays, folder / "arrays"),
            "expected": _save(data.expected(case, arrays), folder / "expected"),
        }
        for worker in workers:
            progress(f"{case.name}: prepare {worker.peer.name}")
            answer = worker.ask(request)
            if answer["ok"]:
                turns: list[float] = []
                rows[worker.peer.name] = {
                    "status": "measured",
                    "turns": turns,
                    "errors": answer["errors"],
                    "note": answer["note"],
                    "kept_bytes": answer["kept_bytes"],
                    "peak_bytes": answer["peak_bytes"],
                }
                running.append((worker, turns))
            else:
                rows[worker.peer.name] = {k: answer[k] for k in ("status", "reason")}
    for number in range(rounds):
        progress(f"{case.name}: round {number + 1} of {rounds}")
        # In turn, and each round starts with another one: none is always the first.
        offset = (earlier_rounds + number) % max(1, len(running))
        for worker, turns in running[offset:] + running[:offset]:
            answer = worker.ask({"do": "time", "seconds": seconds})
            if answer["ok"]:
                turns.append(answer["seconds"])
            else:
                rows[worker.peer.name] = {k: answer[k] for k in ("status", "reason")}
    return rows
