"""Ratios, the table and the plot of a results document."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from .peers import PEERS

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
        if PEERS[name].ours == ours and (time := seconds(case, name)) is not None
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
    names: list[str | None] = [None, *(n for n in document["peers"] if not PEERS[n].ours)]
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
    if document["suite"] == "models":
        for case in document["cases"]:
            row = case["results"]["fused"]
            if row["status"] == "measured":
                error = max(row["errors"].values())
                console.print(f"{case['id']}: {row['note']}, largest error {error:.1e}")
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


def plot(document: Document, path: pathlib.Path) -> None:
    """Bars: how many times faster than each peer, a group a case. Above the line at 1 we win."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in document["summary"]["against"] if n != "best"]
    cases = document["cases"]
    figure, axes = plt.subplots(figsize=(max(8.0, 0.75 * len(cases)), 5.5), layout="constrained")
    width = 0.85 / max(1, len(names))
    for i, name in enumerate(names):
        ratios = [speed_up(case, name) or 1.0 for case in cases]
        positions = [k + (i - (len(names) - 1) / 2) * width for k in range(len(cases))]
        heights = [ratio - 1 for ratio in ratios]
        axes.bar(positions, heights, width, bottom=1, label=PEERS[name].label)
    # from "as fast" upwards and downwards alike: twice as fast is as far as half as fast
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks(range(len(cases)), [case["id"] for case in cases], rotation=40, ha="right")
    axes.set_ylabel("times faster than the peer")
    machine = document["machine"]
    axes.set_title(
        f"{document['suite']}: {machine['cpu']}, {document['settings']['threads']} threads, "
        f"commit {document['commit']}",
        fontsize=9,
    )
    axes.legend(fontsize=8, ncols=2)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
