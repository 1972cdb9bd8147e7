"""The pictures of a results document: speed-up bars and the roofline.

python -m benchmarks.plots results/<machine>/inference.json ...    draws them again
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from .limits import Limits
from .report import Document, Row, best, speed_up

_SUFFIXES = ("B", "KiB", "MiB", "GiB")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _title(document: Document) -> str:
    machine = document["machine"]
    return (
        f"{document['suite']}: {machine['cpu']}, {document['settings']['threads']} threads, "
        f"commit {document['commit']}"
    )


def _label(document: Document, peer: str) -> str:
    return str(document["peers"][peer]["label"])


def speed_up_bars(document: Document, path: pathlib.Path) -> None:
    """How many times faster than each peer, a group a case. Above the line at 1 we win."""
    plt = _pyplot()
    names = [n for n in document["summary"]["against"] if n != "best"]
    cases = document["cases"]
    figure, axes = plt.subplots(figsize=(max(8.0, 0.75 * len(cases)), 5.5), layout="constrained")
    width = 0.85 / max(1, len(names))
    for i, name in enumerate(names):
        ratios = [speed_up(case, name) or 1.0 for case in cases]
        positions = [k + (i - (len(names) - 1) / 2) * width for k in range(len(cases))]
        heights = [ratio - 1 for ratio in ratios]
        axes.bar(positions, heights, width, bottom=1, label=_label(document, name))
    # from "as fast" upwards and downwards alike: twice as fast is as far as half as fast
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks(range(len(cases)), [case["id"] for case in cases], rotation=40, ha="right")
    axes.set_ylabel("times faster than the peer")
    axes.set_title(_title(document), fontsize=9)
    axes.legend(fontsize=8, ncols=2)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def roofline_points(document: Document) -> list[Row]:
    """A row a case with counted operations: operations per byte, and both sides' GFLOP/s."""
    rows = []
    for case in document["cases"]:
        mine, theirs = best(case, ours=True), best(case, ours=False)
        if case["operations"] and mine:
            rows.append(
                {
                    "id": case["id"],
                    "intensity": case["operations"] / case["bytes"],
                    "ours": case["operations"] / mine[1] / 1e9,
                    "best_peer": case["operations"] / theirs[1] / 1e9 if theirs else None,
                }
            )
    return rows


def _bytes(size: int) -> str:
    power = min((size.bit_length() - 1) // 10, len(_SUFFIXES) - 1)
    return f"{size / 1024**power:g} {_SUFFIXES[power]}"


def _draw_ceilings(axes: Any, limits: Limits, low: float, high: float) -> None:
    """The roof of arithmetic, and a slope for each size of copy: caches hold the small ones."""
    peak = limits.operations_per_second
    axes.plot([low, high], [peak / 1e9] * 2, color="black", linewidth=1)
    axes.annotate(
        f"fastest matrix product: {peak / 1e9:.0f} GFLOP/s",
        (high, peak / 1e9), xytext=(-4, -11), textcoords="offset points", ha="right", fontsize=7,
    )  # fmt: skip
    for i, (size, rate) in enumerate(sorted(limits.copy_bytes_per_second.items())):
        meets = peak / rate
        axes.plot(
            [low, meets], [rate * low / 1e9, peak / 1e9],
            color="black", linewidth=0.8, linestyle=("-", "--", "-.", ":")[i % 4],
            label=f"copy of {_bytes(size)}: {rate / 1e9:.0f} GB/s",
        )  # fmt: skip


def roofline(document: Document, path: pathlib.Path) -> bool:
    """Operations per byte against GFLOP/s under the machine's ceilings; False if nothing to draw.

    A point above the roof is no mistake: operations are those of direct convolution, and Winograd
    does with fewer.
    """
    rows = roofline_points(document)
    if not rows:
        return False
    plt = _pyplot()
    limits = Limits.from_json(document["limits"])
    figure, axes = plt.subplots(figsize=(9.5, 6.5), layout="constrained")
    fastest = max(limits.copy_bytes_per_second.values())
    meets = limits.operations_per_second / fastest
    low = min(meets, *(row["intensity"] for row in rows)) / 2
    high = max(row["intensity"] for row in rows) * 4
    _draw_ceilings(axes, limits, low, high)
    for row in rows:
        if row["best_peer"]:
            pair = [row["best_peer"], row["ours"]]
            axes.plot([row["intensity"]] * 2, pair, color="tab:blue", linewidth=0.6, alpha=0.5)
        place = (row["intensity"], row["ours"])
        axes.annotate(
            row["id"].removesuffix(f":{document['suite']}"),
            place,
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=6,
        )
    intensities = [row["intensity"] for row in rows]
    axes.scatter(intensities, [row["ours"] for row in rows], 22, label="crossmedia_fast", zorder=3)
    others = [(row["intensity"], row["best_peer"]) for row in rows if row["best_peer"]]
    if others:
        axes.scatter(
            *zip(*others, strict=True), 22, facecolors="white", edgecolors="tab:blue",
            label="the fastest peer", zorder=3,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(low, high)
    axes.set_xlabel("operations of direct convolution per byte that must move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(_title(document), fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def write(document: Document, results: pathlib.Path) -> list[pathlib.Path]:
    """The pictures beside the JSON `results`; returns those that were drawn."""
    bars = results.with_suffix(".png")
    speed_up_bars(document, bars)
    roof = results.with_name(f"{results.stem}-roofline.png")
    return [bars, roof] if roofline(document, roof) else [bars]


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    for name in arguments:
        results = pathlib.Path(name)
        for picture in write(json.loads(results.read_text()), results):
            print(f"written: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
