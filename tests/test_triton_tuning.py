"""The choice among a kernel's configurations: measured once, kept on disk, said at INFO."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmedia_fast import triton_support, triton_tuning
from crossmedia_fast.triton_tuning import Config, choose, size_class

pytestmark = pytest.mark.skipif(
    bool(triton_support.why_not_importable()), reason=triton_support.why_not_importable()
)

SLOW, FAST = Config(64, 64, 32, 4, 2), Config(128, 64, 32, 8, 3)
CUDA = torch.device("cuda", 0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """A GPU that isn't there: the configurations that were measured on it, in order."""
    calls: list[Config] = []

    def milliseconds(config: Any) -> float:
        calls.append(config)
        return {SLOW: 2.0, FAST: 1.0}[config]

    monkeypatch.setenv("CROSSMEDIA_FAST_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CROSSMEDIA_FAST_TUNE", raising=False)
    monkeypatch.setattr(triton_support, "interpreting", lambda: False)
    monkeypatch.setattr(triton_tuning, "_milliseconds", milliseconds)
    monkeypatch.setattr(triton_tuning, "_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(triton_tuning, "_loaded", None)
    monkeypatch.setattr(triton_tuning, "_chosen", {})
    return calls


def run(key: str = "key") -> Config:
    return choose(key, CUDA, (SLOW, FAST), lambda config: config)  # type: ignore[arg-type,return-value]


def test_the_fastest_is_chosen_once(
    measured: list[Config], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "crossmedia_fast.triton_tuning"):
        assert run() == FAST
        assert run() == FAST
    assert measured == [SLOW, FAST]
    assert "tuning key on a GPU: 2 configurations, once" in caplog.text
    assert len(caplog.records) == 2


def test_another_process_finds_the_choice(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    stored = json.loads(triton_tuning.cache_file().read_text())
    assert stored == {"a GPU": {"key": list(FAST)}}
    monkeypatch.setattr(triton_tuning, "_loaded", None)
    monkeypatch.setattr(triton_tuning, "_chosen", {})
    assert run() == FAST
    assert len(measured) == 2


def test_a_choice_that_is_no_candidate_any_more_is_measured_again(measured: list[Config]) -> None:
    path = triton_tuning.cache_file()
    path.write_text(json.dumps({"a GPU": {"key": [1, 2, 3, 4, 5]}}))
    assert run() == FAST
    assert len(measured) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"a GPU": 1}', '{"a GPU": {"key": ["x"]}}', "{"])
def test_what_is_no_such_file_is_as_good_as_none(measured: list[Config], content: str) -> None:
    triton_tuning.cache_file().write_text(content)
    assert run() == FAST


def test_nothing_is_measured_where_that_is_switched_off(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSMEDIA_FAST_TUNE", "0")
    assert run() == SLOW
    assert not measured


def test_nothing_is_measured_while_a_graph_is_captured(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert run() == SLOW
    assert not measured


def test_a_folder_that_can_not_be_written_loses_nothing(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSMEDIA_FAST_CACHE_DIR", str(tmp_path / "file"))
    assert run() == FAST
    assert run() == FAST
    assert len(measured) == 2


def test_classes_of_sizes() -> None:
    assert [size_class(n) for n in (0, 1, 2, 3, 4, 5, 8, 9)] == [0, 0, 1, 2, 2, 3, 3, 4]
