"""The rows of fusion_report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class FusionRow(NamedTuple):
    """A convolution of the model: what follows it, and whether it is fused."""

    path: str  # of the convolution, in the model
    pattern: str  # "Conv2d -> BatchNorm2d -> ReLU -> MaxPool2d"
    fused: bool
    reason: str  # why not, or what is to be known


# What runs as ours beside the convolutions: the report's attribute, and its title in print.
KINDS = {
    "residuals": "sums, and the activation behind them, in the convolution's pass",
    "pools": "pooling as one pass",
    "transposed": "transposed convolutions by the kernels of convolutions",
    "norms": "BatchNorm in training as one pass",
    "linears": "fully connected layers of few rows",
}
Named = dict[str, dict[str, str]]  # kind -> path -> pattern


class FusionReport(tuple[FusionRow, ...]):
    """The rows of :func:`fusion_report`; prints as a table.

    `residuals`: path and pattern of the convolutions whose pass adds another tensor to them.
    `pools`: path and pattern of the poolings that run as one pass without a convolution.
    `transposed`: the same of the transposed convolutions, which run by the kernels of convolutions.
    `norms`: the same of the BatchNorms without a convolution, which are one pass where they train.
    `linears`: the same of the fully connected layers whose weights are read once.
    """

    residuals: tuple[tuple[str, str], ...]
    pools: tuple[tuple[str, str], ...]
    transposed: tuple[tuple[str, str], ...]
    norms: tuple[tuple[str, str], ...]
    linears: tuple[tuple[str, str], ...]

    def __new__(cls, rows: Iterable[FusionRow] = (), others: Named | None = None) -> Any:
        report = super().__new__(cls, rows)
        for kind in KINDS:
            setattr(report, kind, tuple((others or {}).get(kind, {}).items()))
        return report

    def __str__(self) -> str:
        parts = [self._table()]
        for kind, title in KINDS.items():
            names = ", ".join(f"{path} ({pattern})" for path, pattern in getattr(self, kind))
            if names:
                parts.append(f"{title}, where that is faster: {names}")
        return "\n\n".join(parts)

    def _table(self) -> str:
        if not self:
            return "no convolution found"
        header = ("module", "pattern", "fused", "why not / note")
        rows = [(r.path or "(root)", r.pattern, "yes" if r.fused else "no", r.reason) for r in self]
        widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
        lines = (header, tuple("-" * width for width in widths), *rows)
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    __repr__ = __str__
