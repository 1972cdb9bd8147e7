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


def _peak_ratio(case: Row, peer: str | None) -> float | None:
    """How many times the memory of our fastest variant `peer` needs, or the fastest peer of all."""
    mine, theirs = best(case, ours=True), best(case, ours=False)
    name = theirs[0] if peer is None and theirs else peer
    peaks = [case["results"].get(n, {}).get("peak_bytes") for n in (mine and mine[0], name)]
    # a call that frees more than it takes has a peak below what there was before
    return peaks[1] / peaks[0] if all(peak is not None and peak > 0 for peak in peaks) else None


def geometric_mean(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _against(cases: list[Row], peer: str | None) -> Row | None:
    """How we compare with `peer`, or the best of all, over the cases that both sides ran."""
    ratios = {case["id"]: ratio for case in cases if (ratio := speed_up(case, peer)) is not None}
    if not ratios:
        return None
    worst = min(ratios, key=ratios.__getitem__)
    row = {
        "geometric_mean": geometric_mean(list(ratios.values())),
        "worst": {"case": worst, "ratio": ratios[worst]},
        "cases": len(ratios),
    }
    peaks = [ratio for case in cases if (ratio := _peak_ratio(case, peer))]
    return {**row, "peak_ratio": geometric_mean(peaks)} if peaks else row


def _summary(cases: list[Row], peers: list[str]) -> Row:
    rows = {name or "best": _against(cases, name) for name in (None, *peers)}
    summary: Row = {"against": {name: row for name, row in rows.items() if row}}
    memory = [case["memory_ratio"] for case in cases if case.get("memory_ratio")]
    return {**summary, "memory_ratio": geometric_mean(memory)} if memory else summary


def summarise(document: Document) -> Row:
    """Geometric means and worst shapes: of all cases, and where a suite has both, of inference and
    of training apart."""
    cases = document["cases"]
    peers = [name for name in document["peers"] if not is_ours(name)]
    summary = _summary(cases, peers)
    modes = list(dict.fromkeys(case["mode"] for case in cases))
    if len(modes) > 1:
        summary["modes"] = {
            mode: _summary([case for case in cases if case["mode"] == mode], peers)
            for mode in modes
        }
    return summary


def _time(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.1f} µs"
    return f"{value * 1e3:.2f} ms"


def _peer_cells(case: Row, names: list[str]) -> list[str]:
    """A cell a peer: its time, the fastest in bold, or why there is none."""
    fastest = best(case, ours=False)
    cells = []
    for name in names:
        time = seconds(case, name)
        text = case["results"].get(name, {"status": "-"})["status"] if time is None else _time(time)
        cells.append(f"[bold]{text}[/bold]" if fastest and fastest[0] == name else text)
    return cells


def _ratio(case: Row) -> str:
    ratio = speed_up(case)
    if ratio is None:
        return "-"
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}[/]"


def _memory(case: Row) -> str:
    return f"÷{case['memory_ratio']:.1f}" if case.get("memory_ratio") else "-"


def _wide_row(case: Row, names: list[str]) -> list[str]:
    mine = best(case, ours=True)
    rates = ["-", "-", "-"]
    if mine:
        rates = [
            f"{100 * case['results'][mine[0]]['share_of_limit']:.0f}% {case['bound']}",
            f"{case['operations'] / mine[1] / 1e9:.0f}" if case["operations"] else "-",
            f"{case['bytes'] / mine[1] / 1e9:.1f}",
        ]
    name = f"{case['id']}\n[dim]{case['description']}[/dim]"
    return [name, *_peer_cells(case, names), _ratio(case), *rates, _memory(case)]


def _narrow_row(case: Row, suite: str) -> list[str]:
    """Ours and the fastest peer alone; the JSON has them all."""
    mine, fastest = best(case, ours=True), best(case, ours=False)
    return [
        case["id"].removesuffix(f":{suite}"),
        _time(mine[1]) if mine else "-",
        _time(fastest[1]) if fastest else "-",
        fastest[0].replace("channels_last", "cl") if fastest else "",
        _ratio(case),
        f"{100 * case['results'][mine[0]]['share_of_limit']:.0f}%" if mine else "-",
    ]


def print_table(document: Document) -> None:
    """The times, our share of the limit, and the ratio to the best peer."""
    from rich.console import Console
    from rich.table import Table

    names = [n for n, peer in document["peers"].items() if "reason" not in peer]
    needed = 80 + 12 * len(names)  # a column a peer
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(220, needed))
    wide = console.width >= needed
    table = Table(title=f"{document['suite']}, {document['settings']['threads']} threads; medians")
    table.add_column("case")
    if wide:
        columns = [name.replace("channels_last", "cl") for name in names]
        columns += ["best / fused", "% of limit", "GFLOP/s", "GB/s", "memory"]
    else:
        columns = ["fused", "best peer", "", "ratio", "limit"]
    for column in columns:
        table.add_column(column, justify="right")
    for case in document["cases"]:
        table.add_row(*(_wide_row(case, names) if wide else _narrow_row(case, document["suite"])))
    console.print(table)
    summary = document["summary"]
    for mode, part in summary.get("modes", {"": summary}).items():
        for name, row in part["against"].items():
            worst = row["worst"]
            console.print(
                f"{mode} against {name}: geometric mean {row['geometric_mean']:.2f}".lstrip()
                + f" over {row['cases']} cases, worst {worst['ratio']:.2f} ({worst['case']})"
                + (f"; {row['peak_ratio']:.2f} times our memory" if row.get("peak_ratio") else "")
            )
    for case in document["cases"] if document["suite"] == "models" else ():
        row = case["results"].get("fused", {})
        if row.get("note"):  # how many layers are fused
            console.print(f"{case['id']}: {row['note']}; error {max(row['errors'].values()):.1e}")
    for name, peer in document["peers"].items():
        if "reason" in peer:
            console.print(f"{name}: {peer['reason']}")
    absences: dict[str, list[str]] = {}
    for case in document["cases"]:
        for name, row in case["results"].items():
            # that a peer doesn't start is said already
            if row["status"] != "measured" and "reason" not in document["peers"].get(name, {}):
                text = f"{name}: {row['status']}: {row['reason']}"
                absences.setdefault(text, []).append(case["id"])
    for text, ids in absences.items():
        console.print(f"{text} ({', '.join(ids)})")
