"""The report's pictures: grids of images with Pillow, curves and matrices with matplotlib.

Everything is returned as PNG bytes: the same bytes go to a file and into the HTML.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import SIZE
from .errors import require

_GAP = 2
# Okabe and Ito's colours, told apart with any colour vision and on both backgrounds.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_THEMES = {
    "light": {"ink": "#1c2126", "line": "#c9ced4", "map": "Blues", "paper": "#ffffff"},
    "dark": {"ink": "#dfe3e8", "line": "#4a525b", "map": "Blues_r", "paper": "#1b2026"},
}
THEMES = tuple(_THEMES)


def to_bytes(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[N, 1, 28, 28] in [-1, 1] to [N, 28, 28] bytes."""
    return ((images[:, 0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def image_grid(rows: list[Tensor | None], columns: int, scale: int = 2) -> bytes:
    """One row of images a line, black where there is none; PNG."""
    image_module = require("PIL.Image")
    step = SIZE + _GAP
    canvas = np.zeros((len(rows) * step + _GAP, columns * step + _GAP), np.uint8)
    for y, row in enumerate(rows):
        if row is None:
            continue
        for x, image in enumerate(to_bytes(row[:columns])):
            top, left = _GAP + y * step, _GAP + x * step
            canvas[top : top + SIZE, left : left + SIZE] = image
    picture = image_module.fromarray(canvas)
    size = (picture.width * scale, picture.height * scale)
    buffer = io.BytesIO()
    picture.resize(size, image_module.Resampling.NEAREST).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _figure(width: float, height: float, theme: str) -> tuple[Any, Any, dict[str, str]]:
    # The object interface, not pyplot: no window system, and nothing global is changed.
    figure_module = require("matplotlib.figure")
    colours = _THEMES[theme]
    figure = figure_module.Figure(
        figsize=(width, height), dpi=110, facecolor=colours["paper"], layout="constrained"
    )
    axes = figure.add_subplot()
    axes.set_facecolor(colours["paper"])
    axes.tick_params(colors=colours["ink"], labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_color(colours["line"])
        spine.set_visible(side in ("left", "bottom"))
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(colours["ink"])
    return figure, axes, colours


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def curves(
    series: dict[str, list[float]], y_label: str, theme: str, *, percent: bool = False
) -> bytes:
    """One line a series over the epochs; PNG."""
    figure, axes, colours = _figure(5.2, 3.0, theme)
    for (name, values), colour in zip(series.items(), _COLOURS, strict=False):
        shown = [100 * value for value in values] if percent else values
        marker = "o" if len(values) < 2 else ""
        axes.plot(range(1, len(values) + 1), shown, color=colour, marker=marker, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel(y_label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=colours["line"], linewidth=0.6, alpha=0.6)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)
    return _png(figure)


def confusion(matrix: list[list[int]], class_names: list[str], theme: str) -> bytes:
    """Test images by true class (rows) and predicted class (columns); PNG."""
    counts = np.array(matrix, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(class_names)
    size = min(9.0, 2.2 + 0.36 * classes)
    figure, axes, colours = _figure(size, size, theme)
    axes.imshow(
        np.sqrt(shares), cmap=colours["map"], vmin=0, vmax=1
    )  # the root shows the rare ones
    ticks = range(0, classes, max(1, classes // 26))
    names = [class_names[tick][:12] for tick in ticks]
    axes.set_xticks(list(ticks), names, rotation=0 if classes <= 10 else 90)
    axes.set_yticks(list(ticks), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= 12:
        light, dark = _THEMES["light"]["paper"], _THEMES["light"]["ink"]
        for y, x in zip(*np.nonzero(counts), strict=True):
            filled = shares[y, x] ** 0.5 > 0.55
            ink = (light if filled else dark) if theme == "light" else (dark if filled else light)
            text = f"{int(counts[y, x])}"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
    return _png(figure)


def histogram(bars: dict[str, list[int]], class_names: list[str], theme: str) -> bytes:
    """Share of the images that each class was predicted for, a group of bars a class; PNG."""
    classes = len(class_names)
    figure, axes, colours = _figure(min(9.0, 3.0 + 0.32 * classes), 3.0, theme)
    width = 0.8 / len(bars)
    for index, (name, counts) in enumerate(bars.items()):
        total = max(1, sum(counts))
        x = [position - 0.4 + (index + 0.5) * width for position in range(classes)]
        shares = [100 * count / total for count in counts]
        axes.bar(x, shares, width, color=_COLOURS[index % len(_COLOURS)], label=name)
    axes.set_xticks(range(classes), [name[:12] for name in class_names])
    axes.tick_params(axis="x", labelrotation=0 if classes <= 12 else 90)
    axes.set_xlabel("class the CNN sees")
    axes.set_ylabel("% of the images")
    axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)
    return _png(figure)
