"""The comparison from end to end on a tiny budget: every suite gives a well-formed document."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import time
from typing import Any

import pytest
import torch

from benchmarks import compare, driver, results_file
from benchmarks.driver import PeerProcess
from benchmarks.peers import PEERS, Peer, select
from benchmarks.shapes import SUITES, Case
from crossmedia_fast import __main__ as cli
from crossmedia_fast import bench

SHAPES = {
    "inference": "lenet.conv2",
    "training": "lenet.conv2",
    "losses": "discriminator_minimax.64",
    "overhead": "overhead.conv",
    "models": "lenet5",
}


@pytest.mark.parametrize("suite", SUITES)
def test_suite_writes_a_checked_document(suite: str, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "results.json"
    arguments = ["--suite", suite, "--shapes", SHAPES[suite], "--peers", "eager", "--threads", "1"]
    arguments += ["--rounds", "2", "--processes", "1", "--seconds", "0.002", "--out", str(out)]
    assert compare.main(arguments) == 0
    document = json.loads(out.read_text())
    assert results_file.check(document) == []
    assert document["suite"] == suite
    for case in document["cases"]:
        assert case["results"]["fused"]["status"] == "measured"
        assert case["results"]["eager"]["status"] == "measured"
    assert document["summary"]["against"]["best"]["cases"] == len(document["cases"])
    modes = {case["mode"] for case in document["cases"]}
    assert set(document["summary"].get("modes", ())) == (modes if len(modes) > 1 else set())
    assert document["versions"]["torch"] == torch.__version__
    assert out.with_suffix(".png").stat().st_size > 1000
    assert out.with_name("results-roofline.png").exists() == (suite != "losses")


def test_several_suites_go_into_a_folder(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", "losses,overhead", "--shapes", "log_loss.64", "--peers", "eager"]
    arguments += ["--threads", "1", "--rounds", "1", "--processes", "1", "--seconds", "0.001"]
    arguments += ["--no-plot"]
    assert compare.main([*arguments, "--out", str(tmp_path)]) == 0
    for suite in ("losses", "overhead"):
        assert json.loads((tmp_path / f"{suite}.json").read_text())["suite"] == suite
    # no terminal: a line a case, not one a step
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("losses: log_loss.64") == 1
    with pytest.raises(SystemExit):
        compare.main([*arguments, "--out", str(tmp_path / "one.json")])
    with pytest.raises(SystemExit):
        compare.main(["--suite", "losses,nosuch"])
    assert "nosuch" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_writes_what_it_has(
    processes: int,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the second case of the only processes, or of the second ones."""
    measured: list[str] = []

    def measure_case(case: Case, *arguments: Any) -> dict[str, dict[str, Any]]:
        if len(measured) == 2 * processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        measured.append(case.name)
        return driver.measure_case(case, *arguments)

    monkeypatch.setattr(compare, "measure_case", measure_case)
    shapes = ["log_loss.64", "discriminator_minimax.64"]
    arguments = ["--suite", "losses", "--shapes", ",".join(shapes), "--peers", "eager"]
    arguments += ["--threads", "1", "--rounds", "1", "--processes", str(processes)]
    arguments += ["--seconds", "0.001", "--no-plot", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        compare.main(arguments)
    document = json.loads((tmp_path / "losses.json").read_text())
    assert results_file.check(document) == []
    first = measured[: 1 if processes == 1 else 2]
    assert [case["id"].split(":")[0] for case in document["cases"]] == first
    assert "interrupted" in capsys.readouterr().err


def test_the_check_notices_what_is_missing(tmp_path: pathlib.Path) -> None:
    assert results_file.check([]) != []
    assert results_file.check({"format": 1}) != []
    assert "versions: expected dict" in results_file.check({"format": results_file.FORMAT})
    bad_row = {"status": "measured", "seconds": {"p20": 2.0, "median": 1.0, "p80": 3.0}}
    case = {"id": "c", "operations": 1, "bytes": 1, "limit_seconds": 1, "results": {"x": bad_row}}
    document = {
        "format": 1, "suite": "s", "command": "c", "date": "d", "commit": "c", "machine": {},
        "settings": {}, "limits": {}, "peers": {}, "cases": [case], "summary": {},
    }  # fmt: skip
    wrong = "; ".join(results_file.check(document))
    assert "ordered" in wrong
    assert "not validated" in wrong
    assert "share_of_limit" in wrong


def test_an_absent_peer_is_reported() -> None:
    peer = Peer("absent", "Absent", "absent_peer", ("surely_no_such_module",), ("inference",))
    assert peer.missing() == "not installed: surely_no_such_module"


def test_a_peer_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = PeerProcess(PEERS["eager"], 1)
    try:
        worker.process.kill()
        worker.process.wait()
        answer = worker.ask({"do": "time", "seconds": 0.001})
    finally:
        worker.close()
    assert answer["ok"] is False
    assert "ended" in answer["reason"]


def test_ours_is_always_among_the_peers() -> None:
    assert [peer.name for peer in select("losses", "eager")] == ["fused", "eager"]
    with pytest.raises(ValueError, match="nosuch"):
        select("losses", "nosuch")
    with pytest.raises(ValueError, match="no peer of suite"):
        select("losses", "ncnn")


def test_the_bench_command_runs_a_comparison(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "results.json"
    options = ["bench", "--suite", "losses", "--shapes", "log_loss.64", "--peers", "eager"]
    options += ["--threads", "1", "--rounds", "1", "--processes", "2", "--seconds", "0.001"]
    assert cli.main([*options, "--no-plot", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert results_file.check(document) == []
    assert document["settings"]["processes"] == 2
    for case in document["cases"]:
        for row in case["results"].values():
            assert len(row["process_medians"]) == 2


def test_the_bench_command_says_where_the_suite_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_CHECKOUT", tmp_path)
    assert cli.main(["bench"]) == 2
    assert "source checkout" in capsys.readouterr().err
