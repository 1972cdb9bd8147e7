"""One result of a case from its repetitions, each of which had processes of its own.

Where a process's memory happens to lie makes the same peer up to 40% faster or slower from one
start to the next. So no single start is believed: the turns of all of them count alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .timing import quantile

Row = dict[str, Any]


def pool_repetitions(repetitions: list[dict[str, Row]]) -> dict[str, Row]:
    """A row a peer, from those of driver.measure_case; every repetition has the same peers."""
    return {name: _pool([rows[name] for rows in repetitions]) for name in repetitions[0]}


def _pool(rows: list[Row]) -> Row:
    # what goes wrong in one start of three has gone wrong
    for status in ("failed", "unsupported"):
        for row in rows:
            if row["status"] == status:
                return {"status": status, "reason": row["reason"]}
    turns = [seconds for row in rows for seconds in row["turns"]]
    return {
        "status": "measured",
        "errors": _worst(row["errors"] for row in rows),
        "note": "; ".join(filter(None, dict.fromkeys(row["note"] for row in rows))),
        "kept_bytes": _largest(row["kept_bytes"] for row in rows),
        "peak_bytes": _largest(row["peak_bytes"] for row in rows),
        "seconds": {
            "median": quantile(turns, 0.5),
            "p20": quantile(turns, 0.2),
            "p80": quantile(turns, 0.8),
        },
        "process_medians": [quantile(row["turns"], 0.5) for row in rows],
    }


def _worst(repetitions: Iterable[dict[str, float]]) -> dict[str, float]:
    """The largest error of every name."""
    worst: dict[str, float] = {}
    for errors in repetitions:
        for name, error in errors.items():
            worst[name] = max(error, worst.get(name, error))
    return worst


def _largest(counts: Iterable[int | None]) -> int | None:
    """None where no process could tell."""
    return max((count for count in counts if count is not None), default=None)
