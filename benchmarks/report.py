"""Ratios and the table of a results document."""

from __future__ import annotations

import math
from typing import Any

from .peers import is_ours

Document = dict[str, Any]
Row = dict[str, Any]


def seconds(case: Row, peer: str) -> float | None:
    row = case["results"].get(peer)
    if row is None or row["status"] != "measured":
        return None
    return float(row["seconds"]["median"])


def best(case: Row, ours: bool) -> tuple[str, float] | None:
    """The fastest of crossmedia_fast's variants, or of the others."""
    times = [
        (name, time)
        for name in case["results"]
        if is_ours(name) == ours and (time := seconds(case, name)) is not None
    ]
    return min(times, key=lambda pair: pair[1], default=None)


def speed_up(case: Row, peer: str | None = None) -> float | None:
    """How many times faster our best variant is than `peer`, or than the best peer of all."""
    mine, theirs = best(case, ours=True), best(case, ours=False)
    other = theirs[1] if peer is None and theirs else seconds(case, peer) if peer else None
    return other / mine[1] if mine and other else None


def geometric_mean(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def summarise(document: Document) -> Row:
    """Geometric means and worst shapes, over all cases that both sides ran."""
    summary: Row = {"against": {}}
    names: list[str | None] = [None, *(n for n in document["peers"] if not is_ours(n))]
    for name in names:
        ratios = {
            case["id"]: ratio
            for case in document["cases"]
            if (ratio := speed_up(case, name)) is not None
        }
        if not ratios:
            continue
        worst = min(ratios, key=ratios.__getitem__)
        summary["against"][name or "best"] = {
            "geometric_mean": geometric_mean(list(ratios.values())),
            "worst": {"case": worst, "ratio": ratios[worst]},
            "cases": len(ratios),
        }
    memory = [case["memory_ratio"] for case in document["cases"] if case.get("memory_ratio")]
    if memory:
        summary["memory_ratio"] = geometric_mean(memory)
    return summary


def _time(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.1f} µs"
    return f"{value * 1e3:.2f} ms"


def print_table(document: Document) -> None:
    """The time of each peer, our share of the limit, and the ratio to the best peer."""
    from rich.console import Console
    from rich.table import Table

    # Wide enough for every peer, also where the output is no terminal.
    console = Console(width=None if Console().is_terminal else 220)
    names = [n for n, peer in document["peers"].items() if "reason" not in peer]
    table = Table(title=f"{document['suite']}, {document['settings']['threads']} threads; medians")
    table.add_column("case")
    for name in names:
        table.add_column(name.replace("channels_last", "cl"), justify="right")
    for column in ("best / fused", "% of limit", "GFLOP/s", "GB/s", "memory"):
        table.add_column(column, justify="right")
    for case in document["cases"]:
        cells = []
        fastest = best(case, ours=False)
        for name in names:
            row = case["results"].get(name, {"status": "-"})
            time = seconds(case, name)
            text = row["status"] if time is None else _time(time)
            if fastest and fastest[0] == name:
                text = f"[bold]{text}[/bold]"
            cells.append(text)
        ratio, mine = speed_up(case), best(case, ours=True)
        colour = "green" if ratio is not None and ratio >= 1 else "red"
        rates = ["-", "-", "-"]
        if mine:
            share = case["results"][mine[0]]["share_of_limit"]
            rates = [
                f"{100 * share:.0f}% {case['bound']}",
                f"{case['operations'] / mine[1] / 1e9:.0f}" if case["operations"] else "-",
                f"{case['bytes'] / mine[1] / 1e9:.1f}",
            ]
        table.add_row(
            f"{case['id']}\n[dim]{case['description']}[/dim]",
            *cells,
            f"[{colour}]{ratio:.2f}[/{colour}]" if ratio else "-",
            *rates,
            f"÷{case['memory_ratio']:.1f}" if case.get("memory_ratio") else "-",
        )
    console.print(table)
    for name, row in document["summary"]["against"].items():
        worst = row["worst"]
        console.print(
            f"against {name}: geometric mean {row['geometric_mean']:.2f} over {row['cases']} cases"
            f", worst {worst['ratio']:.2f} ({worst['case']})"
        )
    for name, peer in document["peers"].items():
        if "reason" in peer:
            console.print(f"{name}: {peer['reason']}")
    absences: dict[str, list[str]] = {}
    for case in document["cases"]:
        for name, row in case["results"].items():
            if row["status"] != "measured":
                text = f"{name}: {row['status']}: {row['reason']}"
                absences.setdefault(text, []).append(case["id"])
    for text, ids in absences.items():
        console.print(f"{text} ({', '.join(ids)})")
