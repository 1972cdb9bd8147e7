"""Every peer runs in several processes, one after another: how their turns become one result."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
from typing import Any

import pytest

from benchmarks import compare, driver, results_file
from benchmarks import limits as limits_module
from benchmarks.repetitions import pool_repetitions
from benchmarks.shapes import select

Row = dict[str, Any]


def measured(turns: list[float], **other: Any) -> Row:
    row = {"status": "measured", "turns": turns, "errors": {"output": 1e-7}, "note": ""}
    return {**row, "kept_bytes": None, "peak_bytes": None, **other}


def pooled(*rows: Row) -> Row:
    return pool_repetitions([{"fused": row} for row in rows])["fused"]


def absent(status: str, reason: str) -> Row:
    return {"status": status, "reason": reason}


def test_the_turns_of_all_processes_count_alike() -> None:
    row = pooled(measured([1.0, 2.0, 3.0]), measured([9.0, 7.0, 8.0]), measured([4.0, 6.0, 5.0]))
    assert row["status"] == "measured"
    assert row["seconds"] == pytest.approx({"median": 5.0, "p20": 2.6, "p80": 7.4})
    assert row["process_medians"] == [2.0, 8.0, 5.0]
    assert "turns" not in row
    # and not a median of medians, which would be 9 here
    row = pooled(measured([1.0, 1.0, 1.0]), measured([2.0, 9.0, 9.0]), measured([3.0, 9.0, 9.0]))
    assert row["seconds"]["median"] == 3.0
    assert row["process_medians"] == [1.0, 9.0, 9.0]


def test_every_peer_is_pooled_with_itself() -> None:
    one = {"fused": measured([1.0]), "eager": measured([10.0])}
    other = {"fused": measured([3.0]), "eager": measured([30.0])}
    rows = pool_repetitions([one, other])
    assert {name: row["process_medians"] for name, row in rows.items()} == {
        "fused": [1.0, 3.0],
        "eager": [10.0, 30.0],
    }


def test_a_failure_of_one_process_stays() -> None:
    good, failed = measured([1.0]), absent("failed", "ended with -11: ")
    unsupported = absent("unsupported", "no such operation")
    for rows in ((good, failed, good), (failed, good, good), (good, good, failed)):
        assert pooled(*rows) == failed
    assert pooled(unsupported, failed) == failed
    assert pooled(failed, unsupported) == failed
    assert pooled(good, unsupported) == unsupported


def test_the_worst_error_and_the_most_memory() -> None:
    one = measured([1.0], errors={"output": 3e-7, "grad": 1e-7}, kept_bytes=5, note="winograd")
    two = measured([1.0], errors={"output": 1e-7, "grad": 2e-7}, kept_bytes=4, peak_bytes=70)
    three = measured([1.0], errors={"output": 2e-7, "grad": 0.0}, peak_bytes=90, note="winograd")
    row = pooled(one, two, three)
    assert row["errors"] == {"output": 3e-7, "grad": 2e-7}
    assert (row["kept_bytes"], row["peak_bytes"]) == (5, 90)
    assert row["note"] == "winograd"
    row = pooled(measured([1.0], note="winograd"), measured([1.0], note="direct"))
    assert row["note"] == "winograd; direct"
    assert (row["kept_bytes"], row["peak_bytes"]) == (None, None)


class FakeWorker:
    """Stands for a peer's process; what happened is in `asked`, of all of them in order."""

    asked: list[tuple[str, str]]
    failing = ""  # the peer that fails
    starts: collections.Counter[str]

    def __init__(self, peer: Any, threads: int) -> None:
        self.peer, self.version = peer, "1"
        self.starts[peer.name] += 1
        self.asked.append(("start", peer.name))
        # in its second process: a failure that the others must not hide
        self.error = "no memory" if self.failing == peer.name and self.start() == 2 else ""

    def start(self) -> int:
        return self.starts[self.peer.name]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((request["do"], self.peer.name))
        if self.error:
            return {"ok": False, "status": "failed", "reason": self.error}
        if request["do"] == "time":
            return {"ok": True, "seconds": float(self.start())}
        errors = {"output": 1e-7}
        return {"ok": True, "errors": errors, "note": "", "kept_bytes": 8, "peak_bytes": None}

    def close(self) -> None:
        self.asked.append(("close", self.peer.name))


class FakeProgress:
    steps: list[str]
    total = 0

    def __init__(self, suite: str, steps: int) -> None:
        type(self).total, type(self).steps = steps, []

    def __enter__(self) -> FakeProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, text: str) -> None:
        self.steps.append(text)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(FakeWorker, "asked", [], raising=False)
    monkeypatch.setattr(FakeWorker, "starts", collections.Counter(), raising=False)
    monkeypatch.setattr(driver, "PeerProcess", FakeWorker)
    monkeypatch.setattr(compare, "Progress", FakeProgress)
    limits = limits_module.Limits(1, 1e11, {1 << 18: 1e11})
    monkeypatch.setattr(limits_module, "measure_apart", lambda *_: limits)
    return FakeWorker


ARGUMENTS = ["--suite", "losses", "--shapes", "log_loss.64,discriminator_minimax.64"]
ARGUMENTS += ["--peers", "eager", "--threads", "1", "--no-plot"]


def run(out: pathlib.Path, *more: str) -> tuple[int, dict[str, Any]]:
    code = compare.main([*ARGUMENTS, "--out", str(out), *more])
    return code, json.loads(out.read_text())


def test_all_cases_are_measured_before_the_next_processes_start(
    fakes: type[FakeWorker], tmp_path: pathlib.Path
) -> None:
    code, document = run(tmp_path / "r.json", "--rounds", "3", "--processes", "2")
    assert code == 0
    assert len(document["cases"]) == 2
    both = [("start", "fused"), ("start", "eager")]
    case = [("prepare", "fused"), ("prepare", "eager")]
    order = ["fused", "eager", "eager", "fused", "fused", "eager"]
    first = [("time", name) for name in order]
    # three rounds are odd: in the second processes it is the other's turn to begin
    second = [("time", name) for name in reversed(order)]
    closed = [("close", "fused"), ("close", "eager")]
    assert fakes.asked == [
        *both, *case, *first, *case, *first, *closed,
        *both, *case, *second, *case, *second, *closed,
    ]  # fmt: skip
    for row in document["cases"]:
        for result in row["results"].values():
            assert result["process_medians"] == [1.0, 2.0]
            assert result["seconds"]["median"] == 1.5


@pytest.mark.parametrize("failing", ["", "fused", "eager"])
@pytest.mark.parametrize("processes", [1, 3])
def test_the_bar_ends_where_it_said(
    processes: int, failing: str, fakes: type[FakeWorker], monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(fakes, "failing", failing)
    run(tmp_path / "r.json", "--rounds", "4", "--processes", str(processes))
    assert len(FakeProgress.steps) == FakeProgress.total
    cases, peers, rounds = 2, 2, 4
    assert FakeProgress.total == 1 + processes * (1 + cases * (peers + rounds))
    assert f"processes {processes} of {processes}: start" in FakeProgress.steps


def test_ours_failing_in_one_process_is_an_error(
    fakes: type[FakeWorker], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(fakes, "failing", "fused")
    code, document = run(tmp_path / "r.json")
    assert fakes.starts == {"fused": 3, "eager": 3}
    assert code == 1
    for row in document["cases"]:
        assert row["results"]["fused"] == absent("failed", "no memory")
        assert row["results"]["eager"]["process_medians"] == [1.0, 2.0, 3.0]
    assert document["peers"]["fused"]["reason"] == "no memory"
    assert results_file.check(document) == []


def test_a_peer_failing_in_one_process_is_reported_once(
    fakes: type[FakeWorker],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fakes, "failing", "eager")
    code, document = run(tmp_path / "r.json")
    assert code == 0
    assert {row["results"]["eager"]["status"] for row in document["cases"]} == {"failed"}
    assert capsys.readouterr().out.count("no memory") == 1


def test_the_defaults_are_nine_turns(fakes: type[FakeWorker], tmp_path: pathlib.Path) -> None:
    _, document = run(tmp_path / "r.json")
    settings = document["settings"]
    assert (settings["rounds"], settings["processes"]) == (3, 3)
    assert fakes.asked.count(("time", "fused")) == 9 * len(document["cases"])


@pytest.mark.parametrize("option", ["--processes", "--rounds"])
def test_no_turns_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main([*ARGUMENTS, option, "0"])
    assert "positive" in capsys.readouterr().err


def test_the_check_of_the_medians(fakes: type[FakeWorker], tmp_path: pathlib.Path) -> None:
    def wrong() -> str:
        return "; ".join(results_file.check(document))

    _, document = run(tmp_path / "r.json")
    row = document["cases"][0]["results"]["fused"]
    for medians in ([1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, "3"], None):
        row["process_medians"] = medians
        assert "fused.process_medians" in wrong(), medians
    row["process_medians"] = [1.0, 2.0, 3.0]
    assert not wrong()
    for processes in (0, "3", True, 1.5):
        document["settings"]["processes"] = processes
        assert "settings.processes" in wrong(), processes


def test_older_documents_have_no_medians(fakes: type[FakeWorker], tmp_path: pathlib.Path) -> None:
    _, document = run(tmp_path / "r.json")
    del document["settings"]["processes"]
    assert results_file.check(document) == []
    for case in document["cases"]:
        for row in case["results"].values():
            del row["process_medians"]
    assert results_file.check(document) == []


def test_a_process_that_did_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one: its peer is unknown to the worker."""
    peer = argparse.Namespace(name="nosuch")
    worker = driver.PeerProcess(peer, 1)  # type: ignore[arg-type]
    try:
        assert worker.error
        (case,) = select("losses", "log_loss.64")[:1]
        rows = driver.measure_case(case, [worker], 1, 0.001)
    finally:
        worker.close()
    assert rows == {"nosuch": absent("failed", worker.error)}
    assert "nosuch" in worker.error
