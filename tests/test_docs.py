"""The documentation is complete and its links lead somewhere; `make docs` checks the rest."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import crossmedia_fast as cmf

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLAIN = ("README.md", "CONTRIBUTING.md", "csrc/README.md", "benchmarks/README.md")


def test_every_public_name_has_an_entry() -> None:
    entries = re.findall(r"auto(?:function|class):: ([\w.]+)", (DOCS / "api.md").read_text())
    names = {entry.removeprefix("crossmedia_fast.") for entry in entries}
    assert names == (set(cmf.__all__) - {"nn"}) | {f"nn.{name}" for name in cmf.nn.__all__}


def test_every_environment_variable_is_described() -> None:
    sources = [
        path
        for pattern in ("crossmedia_fast/**/*.py", "csrc/**/*.cpp", "csrc/**/*.cmake")
        for path in ROOT.glob(pattern)
    ]
    pattern = re.compile(r"(?:environ\.get\(|getenv\(|ENV\{)\s*\"?(CROSSMEDIA_FAST_\w+)")
    read = {name for source in sources for name in pattern.findall(source.read_text())}
    assert {f"CROSSMEDIA_FAST_{name}" for name in ("BACKEND", "ISA", "CUDA")} <= read
    described = set(
        re.findall(r"^\| `(CROSSMEDIA_FAST_\w+)`", (DOCS / "backends.md").read_text(), re.M)
    )
    assert read <= described
    assert "CROSSMEDIA_FAST_NATIVE" in described  # pyproject.toml reads it


@pytest.mark.parametrize("page", [*PLAIN, *(f"docs/{p.name}" for p in sorted(DOCS.glob("*.md")))])
def test_every_verb_exists(page: str) -> None:
    verbs = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)\b", "\n".join(code_of(ROOT / page))))
    known = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert verbs <= {line.split()[0] for line in known.splitlines()}


def code_of(page: Path) -> list[str]:
    text = page.read_text()
    return re.findall(r"^```.*?^```$", text, re.M | re.S) + re.findall(r"`[^`\n]+`", text)


@pytest.mark.parametrize("page", PLAIN)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert links or page != "README.md"
    for link in links:
        assert (path.parent / link).exists(), link
