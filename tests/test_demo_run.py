"""The demo as a user starts it: a small run, a killed and resumed one, one on two processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("mlxtend", "matplotlib", "PIL", "rich"):
    pytest.importorskip(package)

ROOT = Path(__file__).parent.parent
# Small enough that a run is little more than the imports; one thread, as two processes share cores.
SMALL = ["--limit", "160", "--batch-size", "32", "--threads", "1"]
LONG = [*SMALL, "--gan", "mlp", "--epochs", "25"]
TIMEOUT = 540


def environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CROSSMEDIA_FAST_")}
    return inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def demo(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "crossmedia_fast", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, error
    return out, error


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """An epoch's row without what a clock says."""
    clock = ("seconds", "images_per_second")
    return [{name: row[name] for name in row if name not in clock} for row in history]


class _Resources(HTMLParser):
    """Collects whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [v or "" for k, v in attrs if k in ("src", "srcset", "href", "data")]


def test_a_whole_run(tmp_path: Path) -> None:
    out, _ = finish(demo(*SMALL, "--epochs", "2", "--out", str(tmp_path)))
    content = report(tmp_path)
    assert content["data"]["train"] == 130
    assert content["data"]["test"] == 30
    assert set(content["gans"]) == {"mlp", "dcgan"}
    assert len(content["cnn"]["history"]) == content["cnn"]["epochs"] == 2
    matrix = torch.tensor(content["cnn"]["confusion_matrix"])
    assert matrix.sum() == 30
    assert content["cnn"]["test_accuracy"] == pytest.approx(matrix.diagonal().sum().item() / 30)
    for gan in content["gans"].values():
        assert sum(gan["verdict"]["histogram"]) == gan["verdict"]["images"]
        assert all(row["discriminator_loss"] > 0 for row in gan["history"])
    steps = [(row["step"], row["variant"]) for row in content["comparison"]]
    kinds = [
        f"{kind} {player}" for kind in ("mlp", "dcgan") for player in ("discriminator", "generator")
    ]
    assert steps == [(step, v) for step in ["CNN", *kinds] for v in ("fused", "reference")]
    for row in content["comparison"]:
        assert row["fastest_ms"] <= row["median_ms"] <= row["slowest_ms"]
        assert row["saved_bytes"] > 0
    if content["backends"]["cpu"] == "available":
        cnn_fused, cnn_reference = content["comparison"][:2]
        assert cnn_fused["saved_bytes"] < cnn_reference["saved_bytes"]
    for name in content["files"].values():
        assert (tmp_path / name).stat().st_size > 500
    for grid in ("generated-mlp", "generated-dcgan", "confusion-matrix", "loss-cnn"):
        assert (tmp_path / f"{grid}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.tmp"))

    page = (tmp_path / "report.html").read_text()
    resources = _Resources()
    resources.feed(page)
    assert resources.tags.count("img") >= 9
    assert not {"script", "link", "iframe"} & set(resources.tags)
    assert all(value.startswith("data:image/png;base64,") for value in resources.found)
    assert not re.search(r"https?://|url\(|@import", page)
    # A log is no terminal: no control codes, and few lines.
    assert "\x1b" not in out
    assert len(out.splitlines()) < 30


def kill_after(process: subprocess.Popen[str], file: Path) -> None:
    """SIGKILL as soon as `file` exists."""
    deadline = time.monotonic() + TIMEOUT
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def epochs_done(file: Path) -> int:
    return int(torch.load(file, weights_only=True)["epoch"])


def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(demo(*LONG, "--out", str(whole)))
    cnn, gan = (killed / "checkpoints" / name for name in ("cnn.pt", "gan-mlp.pt"))
    kill_after(demo(*LONG, "--out", str(killed)), cnn)
    assert 1 <= epochs_done(cnn) < 25
    # Killed while it wrote: the half-written file must neither be read nor be in the way.
    (killed / "checkpoints" / "cnn.pt.tmp").write_bytes(b"half")
    kill_after(demo(*LONG, "--out", str(killed), "--resume"), gan)
    assert epochs_done(cnn) == 25
    assert 1 <= epochs_done(gan) < 25
    finish(demo(*LONG, "--out", str(killed), "--resume"))
    expected, got = report(whole), report(killed)
    assert timeless(got["cnn"]["history"]) == timeless(expected["cnn"]["history"])
    assert got["cnn"]["confusion_matrix"] == expected["cnn"]["confusion_matrix"]
    histories = [content["gans"]["mlp"]["history"] for content in (got, expected)]
    assert timeless(histories[0]) == timeless(histories[1])
    assert got["gans"]["mlp"]["verdict"] == expected["gans"]["mlp"]["verdict"]

    process = demo(*LONG, "--out", str(killed), "--resume", "--seed", "5")
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert error.count("\n") == 1
    assert "run without --resume" in error


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    out, _ = finish(demo(*SMALL, "--epochs", "2", "--out", str(tmp_path), launcher=launcher))
    content = report(tmp_path)
    assert content["run"]["processes"] == 2
    assert sum(map(sum, content["cnn"]["confusion_matrix"])) == content["data"]["test"]
    assert len(content["gans"]["dcgan"]["history"]) == 2
    # The first process alone speaks.
    assert len(re.findall(r"^cnn: epoch 2:", out, re.MULTILINE)) == 1
    assert out.count("report.html") == 1
