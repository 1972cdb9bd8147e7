"""Every Python block of the documentation and the README runs, a page from top to bottom.

A block that needs a GPU has the comment ``<!-- needs a GPU -->`` in the line above its fence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(
    r"^(?P<gpu><!-- needs a GPU -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    line: int  # of its first statement, counted from 1
    code: str
    needs_gpu: bool


def blocks(text: str) -> Iterator[Block]:
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(line, match["code"], match["gpu"] is not None)


def run(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page.read_text()):
        if block.needs_gpu and not torch.cuda.is_available():
            continue
        # a traceback then points into the page
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        exec(code, namespace)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(blocks(p.read_text()))], ids=lambda p: p.stem
)
def test_the_blocks_of_a_page_run(page: Path) -> None:
    run(page)


def test_pages_have_blocks() -> None:
    """The pattern that finds them has not gone blind: every fence that says Python is found."""
    for page in PAGES:
        text = page.read_text()
        assert len(list(blocks(text))) == text.count("```python"), page
    names = {page.stem for page in PAGES if any(blocks(page.read_text()))}
    assert names >= {"README", "index", "training", "serving", "losses", "whole_models", "backends"}


def test_a_broken_block_fails_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run(page)
    entry = caught.traceback[-1]
    assert (str(entry.path), entry.lineno + 1) == (str(page), 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here such blocks run")
def test_a_block_for_a_gpu_is_skipped_without_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- needs a GPU -->\n```python\nraise RuntimeError\n```\n")
    run(page)
