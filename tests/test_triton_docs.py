"""The page about the fused Triton kernel quotes the kernel as it is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/triton_kernel.md"
KERNEL = ROOT / "crossmedia_fast/ops/conv_act_pool/triton_kernels/forward.py"


def lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_every_excerpt_is_in_the_source() -> None:
    excerpts = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(excerpts) > 10
    source = lines(KERNEL.read_text())
    for excerpt in excerpts:
        assert lines(excerpt) in source, excerpt
