"""The pictures show the numbers of the results document that they are drawn of."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import plots, report, results_file

pytest.importorskip("matplotlib")

RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results"
COMMITTED = sorted(RESULTS.glob("*/*.json"))


def case(name: str, operations: int, ours: float, theirs: float | None) -> dict[str, Any]:
    def measured(seconds: float) -> dict[str, Any]:
        return {"status": "measured", "seconds": {"median": seconds}}

    unsupported = {"status": "unsupported", "reason": "no such operation"}
    return {
        "id": f"{name}:inference",
        "mode": "inference",
        "operations": operations,
        "bytes": 1_000_000,
        "results": {
            "fused": measured(2 * ours),
            "fused_channels_last": measured(ours),
            "eager": unsupported if theirs is None else measured(theirs),
            "another": measured(4 * ours),
        },
    }


@pytest.fixture
def document() -> dict[str, Any]:
    labels = {"fused": "fused", "fused_channels_last": "fused, cl", "eager": "eager"}
    made: dict[str, Any] = {
        "suite": "models",
        "commit": "0123",
        "machine": {"cpu": "a processor"},
        "settings": {"threads": 2},
        "limits": {
            "threads": 2,
            "operations_per_second": 2e11,
            "copy_bytes_per_second": {"262144": 1e11, "268435456": 4e10},
        },
        "peers": {name: {"label": label} for name, label in labels.items()}
        | {"another": {"label": "Another Runtime"}},
        "cases": [case("a", 8_000_000, 1e-4, 2e-4), case("b", 64_000_000, 1e-3, None)],
    }
    made["summary"] = report.summarise(made)
    return made


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that are drawn, which are closed only afterwards."""
    plt = plots._pyplot()
    close, drawn = plt.close, []
    monkeypatch.setattr(plt, "close", drawn.append)
    yield drawn
    for figure in drawn:
        close(figure)


def test_bars_are_the_ratios(
    document: dict[str, Any], figures: list[Any], tmp_path: pathlib.Path
) -> None:
    plots.speed_up_bars(document, tmp_path / "bars.png")
    (axes,) = figures[0].axes
    tops = {c.get_label(): [b.get_y() + b.get_height() for b in c] for c in axes.containers}
    # against the faster of our two; where the peer has no result there is no bar
    assert tops == {"eager": [2.0, 1.0], "Another Runtime": [4.0, 4.0]}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a:inference", "b:inference"]


def test_the_roofline_by_hand(
    document: dict[str, Any], figures: list[Any], tmp_path: pathlib.Path
) -> None:
    rows = plots.roofline_points(document)
    assert [row["intensity"] for row in rows] == [8.0, 64.0]
    assert [row["ours"] for row in rows] == pytest.approx([80.0, 64.0])
    # of b the fastest peer is the other runtime
    assert [row["best_peer"] for row in rows] == pytest.approx([40.0, 16.0])

    assert plots.roofline(document, tmp_path / "roof.png")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    slopes = {label: line for label, line in lines.items() if str(label).startswith("copy")}
    assert set(slopes) == {"copy of 256 KiB: 100 GB/s", "copy of 256 MiB: 40 GB/s"}
    for rate, line in zip((100, 40), slopes.values(), strict=True):
        (x0, y0), (x1, y1) = line
        assert y0 == pytest.approx(rate * x0)  # GFLOP/s = operations a byte times GB/s
        assert (x1, y1) == pytest.approx((200 / rate, 200))  # and there it meets the roof
    points = {c.get_label(): c.get_offsets().tolist() for c in axes.collections}
    assert points["crossmedia_fast"] == [pytest.approx([8, 80]), pytest.approx([64, 64])]
    assert points["the fastest peer"] == [pytest.approx([8, 40]), pytest.approx([64, 16])]


def test_losses_have_no_roofline(document: dict[str, Any], tmp_path: pathlib.Path) -> None:
    for row in document["cases"]:
        row["operations"] = 0  # no multiply-add defines a softplus
    out = tmp_path / "losses.json"
    assert plots.write(document, out) == [out.with_suffix(".png")]
    assert [path.name for path in tmp_path.iterdir()] == ["losses.png"]


@pytest.mark.parametrize("columns", [80, 300])
def test_the_table_fits_the_terminal(
    columns: int,
    document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for row in document["cases"]:
        row.update(bound="arithmetic", description="", memory_ratio=4.8)
        for result in row["results"].values():
            result["share_of_limit"] = 0.5
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    report.print_table(document)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    (row,) = [line for line in lines if "a:inference" in line and "│" in line]
    cells = row.replace("│", " ").split()
    assert cells[:3] == ["a:inference", "100.0", "µs"] or columns > 80
    # the peer has a column of its own, or its name
    assert ("eager" in cells) == (columns == 80)
    assert "2.00" in cells
    assert "50%" in cells
    assert ("÷4.8" in cells) == (columns > 80)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_committed_results_can_be_drawn(
    path: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text()
    assert results_file.check(json.loads(text)) == []
    copy = tmp_path / path.name
    copy.write_text(text)
    assert plots.main([str(copy)]) == 0
    written = {path.name for path in tmp_path.glob("*.png")}
    roofs = {f"{path.stem}-roofline.png"} if plots.roofline_points(json.loads(text)) else set()
    assert written == {f"{path.stem}.png"} | roofs
    assert all(picture.stat().st_size > 10_000 for picture in tmp_path.glob("*.png"))
    assert capsys.readouterr().out.count("written") == len(written)
