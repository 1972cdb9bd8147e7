"""report.json: everything that the run measured, and the pictures beside it.

    format             1
    data               source, found, dropped (by reason), train, test, class_names
    run                seed, batch_size, processes, threads, device, backend, torch, version,
                       seconds (this process, start to report), peak_rss_bytes (null where unknown)
    backends           name -> "available" or why not
    cnn                epochs, test_accuracy, confusion_matrix [true][predicted], history
    gans.<kind>        epochs, verdict, history
    test_verdict       the CNN's verdict on the real test images, to hold the GANs' against
    comparison         a row a step and variant: step, variant, backend, median_ms, fastest_ms,
                       slowest_ms, saved_bytes
    files              name -> file of the same folder

A verdict is: images, histogram (by predicted class), mean_confidence, median_confidence, sure_share
(confidence above 0.9), entropy (of the histogram, 1 = even), covered_classes (with at least a fifth
of an even share). A history is a row an epoch: losses, images_per_second, seconds. Times are in
seconds unless the name says ms; images_per_second counts all processes.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from . import plots
from .compare import Measurement
from .data import Data
from .judge import Verdict, representative_rows
from .report_html import render

FORMAT = 1
_GRID = 10


@dataclass
class GanResult:
    kind: str
    history: list[dict[str, float]]
    images: Tensor  # [N, 1, 28, 28]
    verdict: Verdict


@dataclass
class Results:
    """What the pipeline hands to the report."""

    data: Data
    run: dict[str, Any]
    backends: dict[str, str]
    cnn_history: list[dict[str, float]]
    matrix: Tensor  # [true, predicted]
    test_accuracy: float
    test_verdict: Verdict
    gans: list[GanResult] = field(default_factory=list)
    comparison: list[Measurement] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """PNG bytes by theme; pictures of images look the same in both."""

    light: bytes
    dark: bytes


def make_pictures(results: Results) -> dict[str, Picture]:
    """Every picture of the report by the name of its file."""
    names = results.data.class_names

    def themed(draw: Any, *arguments: Any, **options: Any) -> Picture:
        return Picture(*(draw(*arguments, theme=theme, **options) for theme in plots.THEMES))

    pictures: dict[str, Picture] = {}
    for gan in results.gans:
        rows: list[Tensor | None] = list(gan.images[: _GRID * _GRID].split(_GRID))
        grid = plots.image_grid(rows, _GRID)
        pictures[f"generated-{gan.kind}"] = Picture(grid, grid)
        by_class = plots.image_grid(representative_rows(gan.images, gan.verdict, _GRID), _GRID)
        pictures[f"generated-{gan.kind}-by-class"] = Picture(by_class, by_class)
        series = {
            "discriminator": [row["discriminator_loss"] for row in gan.history],
            "generator": [row["generator_loss"] for row in gan.history],
        }
        pictures[f"loss-gan-{gan.kind}"] = themed(plots.curves, series, "loss")
    loss = {"training loss": [row["loss"] for row in results.cnn_history]}
    pictures["loss-cnn"] = themed(plots.curves, loss, "cross-entropy")
    accuracy = {"test accuracy": [row["test_accuracy"] for row in results.cnn_history]}
    pictures["accuracy-cnn"] = themed(plots.curves, accuracy, "test accuracy, %", percent=True)
    pictures["confusion-matrix"] = themed(plots.confusion, results.matrix.tolist(), names)
    bars = {"test images": results.test_verdict.histogram}
    bars.update({f"{gan.kind} GAN": gan.verdict.histogram for gan in results.gans})
    pictures["predicted-classes"] = themed(plots.histogram, bars, names)
    return pictures


def as_json(results: Results, files: dict[str, str]) -> dict[str, Any]:
    data = results.data
    return {
        "format": FORMAT,
        "data": {
            "source": data.source,
            "found": data.found,
            "dropped": data.dropped,
            "train": len(data.train_labels),
            "test": len(data.test_labels),
            "class_names": data.class_names,
        },
        "run": results.run,
        "backends": results.backends,
        "cnn": {
            "epochs": len(results.cnn_history),
            "test_accuracy": results.test_accuracy,
            "confusion_matrix": results.matrix.tolist(),
            "history": results.cnn_history,
        },
        "gans": {
            gan.kind: {
                "epochs": len(gan.history),
                "verdict": gan.verdict.as_json(),
                "history": gan.history,
            }
            for gan in results.gans
        },
        "test_verdict": results.test_verdict.as_json(),
        "comparison": [asdict(row) for row in results.comparison],
        "files": files,
    }


def write_file(path: Path, content: bytes) -> None:
    """Whole or not at all, as the checkpoints."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_report(results: Results, folder: Path) -> dict[str, Any]:
    """Write pictures, report.json and report.html into `folder`; what the JSON holds."""
    pictures = make_pictures(results)
    files = {"report": "report.html"} | {name: f"{name}.png" for name in pictures}
    content = as_json(results, files)
    for name, picture in pictures.items():
        write_file(folder / files[name], picture.light)
    write_file(folder / "report.html", render(content, pictures).encode())
    write_file(folder / "report.json", (json.dumps(content, indent=2) + "\n").encode())
    return content
